"""The stage: positions and images of whole sections, the same bytes however the work is divided, ended or repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import lock
from apps.core.progress import silent
from apps.core.volumes import content_hash, open_volume
from apps.montage.parameters import MontageParameters
from apps.montage.records import SectionRecord
from apps.montage.stage import STAGE, MontageResult, run
from tests.apps.montage.samples import Section, cut, texture, write

ROOT = Path(__file__).resolve().parents[3]


def montage(table: Path, output: Path, **more: Any) -> MontageResult:
    given: dict[str, Any] = {"tiles": str(table), "output": str(output), "search": 20, "chunk": 64, "blend": 8}
    return run(MontageParameters(**{**given, **more}), silent)


def record_of(output: Path, section: int) -> SectionRecord:
    return SectionRecord.load(output / "sections" / f"{section:05d}.json")


def positions_of(record: SectionRecord) -> np.ndarray:
    return np.array([(tile.y, tile.x) for tile in record.tiles])


def contents(output: Path) -> dict[str, bytes]:
    """All that a run leaves, but for locks."""
    files = sorted(path for path in output.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def works(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Section]]:
    sections = {4: cut(seed=1, shade=0.3, drift=0.08), 7: cut(seed=2, noise=20, grid=(2, 3))}
    return write(tmp_path_factory.mktemp("two"), sections), sections


def test_the_example_is_valid() -> None:
    assert MontageParameters.from_json(STAGE.example).sections == (0, 1, 2)


def test_sections_are_put_together(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    table, sections = two
    said: list[float] = []
    result = run(
        MontageParameters(tiles=str(table), output=str(tmp_path), search=20, voxel_size_nm=(30.0, 4.0, 4.0)),
        lambda done, total, what="": said.append(done / total),
    )
    assert said == sorted(said) and said[-1] == 1
    assert [summary.section for summary in result.sections] == [4, 7] and result.faults == 0
    for section, truth in sections.items():
        record = record_of(tmp_path, section)
        assert truth.rms(positions_of(record)) < 0.15
        assert record.scores.seam_residual is not None and record.scores.seam_residual < 0.3
        assert record.scores.overlap_correlation is not None and record.scores.overlap_correlation > 0.7
        assert record.scores.pairs_used == record.scores.tiles_connected == 1.0
        assert all(pair.used and pair.offset is not None for pair in record.pairs)
        volume = open_volume(str(tmp_path / "sections" / f"{section:05d}.zarr"))
        assert volume.shape == (1, *record.shape) and volume.dtype == np.uint8
        assert volume.voxel_size_nm == (30.0, 4.0, 4.0)


def test_the_image_shows_the_section_where_the_record_says(
    tmp_path: Path, two: tuple[Path, dict[int, Section]]
) -> None:
    from scipy import ndimage

    table, sections = two
    montage(table, tmp_path, sections=(4,))
    record, truth = record_of(tmp_path, 4), sections[4]
    image = open_volume(str(tmp_path / "sections" / "00004.zarr")).read()[0]
    shift = (truth.true - positions_of(record)).mean(axis=0)  # of the section image in the true section
    where = np.meshgrid(*(s + np.arange(n) for s, n in zip(shift, image.shape, strict=True)), indexing="ij")
    scene = ndimage.map_coordinates(texture((352, 352), 1), where, order=3, prefilter=False)
    inner = image > 0
    assert inner.mean() > 0.9
    assert np.corrcoef(image[inner], scene[inner])[0, 1] > 0.9
    # A seam is no place where the image differs more from the scene than elsewhere.
    error = np.where(inner, image - scene, np.nan)[:, 8:-8]
    columns = np.sqrt(np.nanmean((error - np.nanmean(error)) ** 2, axis=0))
    assert columns.max() < 1.6 * np.median(columns)


def test_the_same_bytes_however_it_is_divided(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    table, _ = two
    montage(table, tmp_path / "one")
    montage(table, tmp_path / "jobs", sections=(7,), cache_mib=0)
    montage(table, tmp_path / "jobs", sections=(4,), workers=3)
    assert contents(tmp_path / "jobs") == contents(tmp_path / "one")


def test_a_group_of_sections_tells_the_illumination_whoever_asks(
    tmp_path: Path, two: tuple[Path, dict[int, Section]]
) -> None:
    table, _ = two
    montage(table, tmp_path / "one", illumination_sections=10)
    montage(table, tmp_path / "jobs", illumination_sections=10, sections=(7,))
    montage(table, tmp_path / "jobs", illumination_sections=10, sections=(4,))
    assert contents(tmp_path / "jobs") == contents(tmp_path / "one")
    assert record_of(tmp_path / "one", 4).flat_field == record_of(tmp_path / "one", 7).flat_field is not None


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    table = write(tmp_path, {0: cut(seed=1, grid=(2, 2)), 1: cut(seed=2, grid=(2, 2))})
    first = montage(table, tmp_path / "out")
    files = [tmp_path / "out" / "sections" / f"0000{n}.json" for n in (0, 1)]
    made = [file.stat().st_mtime_ns for file in files]

    def again(**more: Any) -> list[bool]:
        """Which of the two sections were made again."""
        before = [file.stat().st_mtime_ns for file in files]
        montage(table, tmp_path / "out", **more)
        return [file.stat().st_mtime_ns != b for file, b in zip(files, before, strict=True)]

    assert montage(table, tmp_path / "out", workers=2) == first
    assert [file.stat().st_mtime_ns for file in files] == made
    assert again(blend=9) == [True, True]
    # A tile is imaged anew: its section alone is.
    tile = tmp_path / "tiles" / "001_000.tif"
    tifffile.imwrite(tile, tifffile.imread(tile) // 2 + 40)
    os.utime(tile, ns=(made[1] + 10**12, made[1] + 10**12))
    assert again(blend=9) == [False, True]
    write(tmp_path, {0: cut(seed=1, grid=(2, 2)), 1: cut(seed=2, grid=(2, 2)), 2: cut(seed=3, grid=(2, 2))})
    os.utime(tile, ns=(1, 1))
    for file in (tmp_path / "tiles").iterdir():
        os.utime(file, ns=(1, 1))
    assert again(blend=9) == [False, False]  # a section was acquired: only that is added
    assert record_of(tmp_path / "out", 2).shape != (0, 0)


def test_killed_while_it_draws_it_ends_with_the_same_bytes(
    tmp_path: Path, two: tuple[Path, dict[int, Section]]
) -> None:
    table, _ = two
    montage(table, tmp_path / "whole", sections=(7,))
    code = f"""
import os, pathlib, psutil, signal
from apps.montage.parameters import MontageParameters
from apps.montage.stage import run
def report(done, total, what=""):
    if done > 0.8:
        children = [str(child.pid) for child in psutil.Process().children()]
        pathlib.Path({str(tmp_path / "children")!r}).write_text(" ".join(children))
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    run(MontageParameters(tiles={str(table)!r}, output={str(tmp_path / "killed")!r}, search=20, chunk=64, blend=8,
                          sections=(7,), workers=2, worker_kind="processes"), report)
"""
    (tmp_path / "program.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(tmp_path / "program.py")], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    left = contents(tmp_path / "killed")
    assert left and all(name.startswith("sections/.00007.zarr.partial/") for name in left)
    children = [int(pid) for pid in (tmp_path / "children").read_text().split()]
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(map(works, children)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(works, children))
    montage(table, tmp_path / "killed", sections=(7,))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_broken_record_is_made_again(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    table, _ = two
    montage(table, tmp_path, sections=(7,))
    before = contents(tmp_path)
    (tmp_path / "sections" / "00007.json").write_text("{")
    montage(table, tmp_path, sections=(7,))
    assert contents(tmp_path) == before


def test_two_processes_do_not_make_one_section(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    held = tmp_path / "sections" / "00007.lock"
    held.parent.mkdir()
    with held.open("a") as stream:
        lock(stream, held)
        with pytest.raises(StateError, match="another process"):
            montage(two[0], tmp_path, sections=(7,))


def test_what_cannot_work_is_said_before_any_work(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    table, _ = two
    with pytest.raises(ParameterError, match=r"sections 5: not in .* which has 2 sections from 4 to 7"):
        montage(table, tmp_path, sections=(4, 5))
    with pytest.raises(ParameterError, match="smaller value first"):
        montage(table, tmp_path, grey_range=(5.0, 5.0))
    with pytest.raises(ParameterError, match="positive sizes"):
        montage(table, tmp_path, voxel_size_nm=(1.0, 0.0, 1.0))
    with pytest.raises(ParameterError, match="names none"):
        montage(table, tmp_path, sections=())
    moved = tmp_path / "elsewhere.csv"
    moved.write_text(table.read_text())
    with pytest.raises(DataError, match=r"none of the 15 tiles it lists is there"):
        montage(moved, tmp_path)
    assert not (tmp_path / "sections").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        montage(table, tmp_path / "file")


def test_16_bit_tiles_give_the_image_of_8_bit_ones(tmp_path: Path) -> None:
    shallow = cut(seed=5, grid=(2, 2))
    deep = Section([tile.astype(np.uint16) * 100 + 3000 for tile in shallow.tiles], shallow.true, shallow.nominal)
    one = write(tmp_path / "8", {0: shallow})
    other = write(tmp_path / "16", {0: deep})
    montage(one, tmp_path / "a")
    montage(other, tmp_path / "b", grey_range=(3000.0, 3000.0 + 25500.0))
    a, b = (open_volume(str(tmp_path / name / "sections" / "00000.zarr")) for name in "ab")
    assert content_hash(a) == content_hash(b)
    montage(other, tmp_path / "b")
    found = record_of(tmp_path / "b", 0)
    assert found.grey_range is not None and deep.rms(positions_of(found)) < 0.1
    assert np.corrcoef(a.read().ravel(), open_volume(b.name).read().ravel())[0, 1] > 0.99


def test_as_a_module_with_processes_it_makes_the_same(tmp_path: Path, two: tuple[Path, dict[int, Section]]) -> None:
    parameters = MontageParameters(
        tiles=str(two[0]), output=str(tmp_path / "out"), sections=(7,), search=20, workers=2, worker_kind="processes"
    )
    parameters.save(tmp_path / "parameters.json")
    done = subprocess.run(
        [sys.executable, "-m", "apps.montage", str(tmp_path / "parameters.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (section,) = json.loads((tmp_path / "result.json").read_text())["result"]["sections"]
    assert section["connected"] == section["tiles"] == 6 and section["faults"] == []
    montage(two[0], tmp_path / "here", sections=(7,), chunk=512, blend=24)
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
