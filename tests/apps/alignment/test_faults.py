"""What goes wrong with sections, disks and jobs: each case ends in a right volume or in a report that names it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.alignment.quality import QUALITY, read
from apps.alignment.scoring import AlignmentReport
from apps.alignment.stage import AlignmentParameters, AlignmentResult, run
from apps.alignment.storage import load_mesh, mesh_path
from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from tests.apps.alignment.synthetic import EXTENT, VOXEL, Section, error, save, stack

ROOT = Path(__file__).resolve().parents[3]
SEED = 7
SETTINGS: dict[str, Any] = {
    "matching": {"spacing": 16, "finest": 1, "max_rotation_deg": 8.0},
    "rendering": {"chunks": [4, 64, 64], "group": [1, 2, 2]},
}
DARK, UPSIDE_DOWN, HOLE, SMALL, TORN, ONE_GREY, NO_IMAGE, TWO_PLANES = 1, 3, 5, 6, 8, 10, 11, 12
DEPTH = 14
WHOLE = [n for n in range(DEPTH) if n not in (UPSIDE_DOWN, TORN, ONE_GREY, NO_IMAGE, TWO_PLANES)]


def parameters(montage: Path, output: Path, **given: Any) -> AlignmentParameters:
    return AlignmentParameters.from_json({"montage": str(montage), "output": str(output), **SETTINGS, **given})


def torn(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A fold along the middle: 12 rows of tissue are hidden, what is below lies that much higher."""
    found = np.zeros_like(image)
    found[: EXTENT // 2] = image[: EXTENT // 2]
    found[EXTENT // 2 : -12] = image[EXTENT // 2 + 12 :]
    return found


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    return stack(DEPTH, SEED)


@pytest.fixture(scope="module")
def montage(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("montage")
    for number, section in enumerate(sections):
        image = section.image.copy()
        if number == DARK:
            image = np.where(image > 0, image // 3 + 10, 0).astype(np.uint8)
        if number == UPSIDE_DOWN:
            image = image[::-1, ::-1].copy()
        if number == HOLE:
            image[50:90, 60:110] = 0  # where a tile is missing
        if number == SMALL:
            image = image[:120, :130]
        if number == TORN:
            image = torn(image)
        if number == ONE_GREY:
            image = np.full_like(image, 77)
        save(folder, number, image)
    path = folder / "sections" / f"{NO_IMAGE:05d}.zarr"
    shutil.rmtree(path)
    path.mkdir()
    write_volume(folder / "sections" / f"{TWO_PLANES:05d}.zarr", np.ones((2, 8, 8), np.uint8), VOXEL)
    return folder


@pytest.fixture(scope="module")
def done(montage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AlignmentResult]:
    output = tmp_path_factory.mktemp("done") / "out"
    return output, run(parameters(montage, output), silent)


def contents(output: Path) -> dict[str, bytes]:
    """All that a run leaves, but for digests, which hold times."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.parent.name != "digests"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def test_every_section_has_a_plane_and_every_fault_a_name(done: tuple[Path, AlignmentResult]) -> None:
    output, result = done
    kinds = {fault.section: fault.kind for fault in result.faults}
    unreadable = dict.fromkeys((NO_IMAGE, TWO_PLANES), "unreadable")
    assert kinds == {UPSIDE_DOWN: "unmatched", ONE_GREY: "blank", **unreadable}
    assert "expected (1, H, W)" in next(fault.message for fault in result.faults if fault.section == TWO_PLANES)
    report = AlignmentReport.load(output / "alignment.json")
    assert [section.section for section in report.sections] == list(range(DEPTH))
    assert result.shape is not None and result.shape[0] == DEPTH


def test_dark_small_and_incomplete_sections_lie_where_they_belong(
    done: tuple[Path, AlignmentResult], sections: list[Section]
) -> None:
    meshes = {n: stored.mesh for n in WHOLE if (stored := load_mesh(mesh_path(done[0], n)))}
    assert error({n: sections[n] for n in WHOLE}, meshes) < 1.2
    origin = AlignmentReport.load(done[0] / "alignment.json").origin
    y, x = np.rint(meshes[HOLE](np.array([70.0, 85.0])) - origin).astype(int)
    shown = open_volume(str(done[1].aligned)).read()[:, y - 10 : y + 10, x - 15 : x + 15]
    assert not shown[HOLE].any() and shown[HOLE - 1].all()  # a hole that shows, not something made up


def test_a_torn_and_an_unmatched_section_stand_out(done: tuple[Path, AlignmentResult]) -> None:
    found = {quality.section: quality.values for quality in read(done[0], None)}
    misfits = {n: found[n]["misfit"] for n in (*WHOLE, TORN)}
    assert all(value is not None for value in misfits.values())
    assert max(misfits, key=lambda n: misfits[n] or 0.0) == TORN
    best = found[UPSIDE_DOWN]["best_correlation"]
    assert best is not None and best < QUALITY.default_gate["best_correlation"]
    assert all((found[n]["best_correlation"] or 0.0) > 0.5 for n in WHOLE)


def test_killed_in_the_middle_of_a_group_it_ends_with_the_same_bytes(
    done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path
) -> None:
    """A real SIGKILL, between the chunks of a group and the marker that says that they are whole."""
    output, whole = tmp_path / "out", contents(done[0])
    shutil.copytree(done[0], output)
    for name in ("aligned.zarr", "rendered"):
        shutil.rmtree(output / name)
    (output / "alignment.json").unlink()
    run(parameters(montage, output, action="solve"), silent)
    program = f"""
import os, signal
from apps.alignment.stage import AlignmentParameters, run
from apps.core.progress import silent
from apps.core.volumes import Volume
written, write = [], Volume.write
def write_and_die(volume, box, data):
    written.append(box)
    if len(written) == 3:
        data[:] = 111  # as much as a writer that is torn away has of it
    write(volume, box, data)
    if len(written) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
Volume.write = write_and_die
run(AlignmentParameters.load({str(tmp_path / "parameters.json")!r}), silent)
"""
    parameters(montage, output, action="render").save(tmp_path / "parameters.json")
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((output / "rendered").glob("*.json"))) == 2
    left = contents(output)
    assert any(left[name] != whole[name] for name in left if name.startswith("aligned.zarr/0/c"))
    run(parameters(montage, output), silent)
    assert contents(output) == whole


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:20])


def make_empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("spoil", [cut_short, make_empty])
@pytest.mark.parametrize(
    ("name", "action", "said"),
    [
        ("pairs/00000-00001.npz", "solve", "00000-00001.npz: is damaged .*; remove it and run again"),
        ("meshes/00001.npz", "solve", "00001.npz: is damaged .*; remove it and run again"),
        ("solution.json", "score", 'solution.json: .*run the action "solve" again'),
        ("aligned.zarr/zarr.json", "score", "aligned.zarr: is not an OME-Zarr"),
    ],
)
def test_a_damaged_file_is_named(
    done: tuple[Path, AlignmentResult],
    montage: Path,
    tmp_path: Path,
    name: str,
    action: str,
    said: str,
    spoil: Callable[[Path], None],
) -> None:
    output = tmp_path / "out"
    shutil.copytree(done[0], output)
    spoil(output / name)
    with pytest.raises(DataError, match=said):
        run(parameters(montage, output, action=action), silent)


def test_a_damaged_chunk_of_the_volume_is_named_when_it_is_scored(
    done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(done[0], output)
    (output / "alignment.json").unlink()
    chunk = next(path for path in (output / "aligned.zarr" / "0" / "c").rglob("*") if path.is_file())
    cut_short(chunk)
    with pytest.raises(DataError, match="cannot be read"):
        run(parameters(montage, output, action="score"), silent)


@pytest.mark.parametrize("spoil", [cut_short, make_empty])
def test_records_that_are_damaged_are_made_again(
    done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    output = tmp_path / "out"
    shutil.copytree(done[0], output)
    for name in ("digests/00000.json", "rendered/000001.json", "alignment.json"):
        spoil(output / name)
    again = run(parameters(montage, output), silent)
    assert again.made == 1
    assert contents(output) == contents(done[0])
    assert json.loads((output / "digests" / "00000.json").read_text())["blank"] is False


def test_an_output_that_cannot_be_written_is_said_before_any_work(montage: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        run(parameters(montage, tmp_path / "file" / "out"), silent)


def test_a_stack_of_nothing_but_blank_sections_is_one_clear_error(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "in", number, np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"no section has an image to show; .*empty or of one grey level"):
        run(parameters(tmp_path / "in", tmp_path / "out"), silent)


def test_the_last_section_may_be_missing_held_or_alone(sections: list[Section], tmp_path: Path) -> None:
    save(tmp_path / "in", 0, sections[0].image)
    alone = run(parameters(tmp_path / "in", tmp_path / "alone"), silent)
    assert alone.faults[0].kind == "unmatched" and alone.shape is not None and alone.shape[0] == 1
    missing = run(parameters(tmp_path / "in", tmp_path / "missing", last=2), silent)
    assert [fault.kind for fault in missing.faults] == ["unmatched", "missing", "missing"]
    with pytest.raises(DataError, match="no section has an image"):
        run(parameters(tmp_path / "in", tmp_path / "held", held=[0]), silent)


def test_two_parts_of_a_stack_that_nothing_connects(sections: list[Section], tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "in", number, sections[number].image)
    for number, other in enumerate(stack(2, SEED + 50), 3):
        save(tmp_path / "in", number, other.image)
    result = run(parameters(tmp_path / "in", tmp_path / "out"), silent)
    assert [(fault.section, fault.kind) for fault in result.faults] == [(3, "apart")]
    assert "no match connects it" in result.faults[0].message
