"""The stage: sections to an aligned volume, whatever is wrong with some of them, and however the work is divided."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.alignment.picture import main as picture
from apps.alignment.scoring import AlignmentReport
from apps.alignment.stage import STAGE, AlignmentParameters, AlignmentResult, run
from apps.alignment.storage import load_mesh, mesh_path
from apps.alignment.volume import Layout
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from tests.apps.alignment.synthetic import VOXEL, Section, error, save, stack

ROOT = Path(__file__).resolve().parents[3]
SETTINGS: dict[str, Any] = {
    "matching": {"spacing": 16, "finest": 1, "max_rotation_deg": 8.0},
    "rendering": {"chunks": [4, 64, 64], "group": [1, 2, 2]},
}
DEPTH, MISSING, UNRELATED, BLANK, DAMAGED = 11, 3, 6, 8, 9


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    return stack(DEPTH)


@pytest.fixture(scope="module")
def montage(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack with a missing, an unrelated, a blank and a damaged section."""
    folder = tmp_path_factory.mktemp("montage")
    for number, section in enumerate(sections):
        image = section.image
        if number == UNRELATED:
            image = np.random.default_rng(5).integers(1, 256, image.shape, np.uint8)
        if number == BLANK:
            image = np.zeros_like(image)
        if number != MISSING:
            save(folder, number, image)
    return folder


def parameters(montage: Path, output: Path, **given: Any) -> AlignmentParameters:
    content = {"montage": str(montage), "output": str(output), "damaged": [DAMAGED], **SETTINGS, **given}
    return AlignmentParameters.from_json(json.dumps(content))


@pytest.fixture(scope="module")
def done(montage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AlignmentResult]:
    output = tmp_path_factory.mktemp("aligned") / "out"
    return output, run(parameters(montage, output), silent)


def tree(folder: Path) -> str:
    """Hash of the names and bytes of all files but digests, which hold times."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "digests":
            digest.update(f"{path.relative_to(folder)}".encode() + path.read_bytes())
    return digest.hexdigest()


def test_tissue_comes_to_lie_together(done: tuple[Path, AlignmentResult], sections: list[Section]) -> None:
    output, result = done
    good = {n: sections[n] for n in range(DEPTH) if n not in (MISSING, UNRELATED, BLANK, DAMAGED)}
    meshes = {n: stored.mesh for n in good if (stored := load_mesh(mesh_path(output, n)))}
    assert error(good, meshes) < 1.2
    report = AlignmentReport.load(output / "alignment.json")
    assert all(s.correlation_next is None or s.correlation_next > 0.9 for s in report.sections if s.section in (0, 1))
    assert all(s.strain is not None and s.strain < 0.1 and s.folds == 0 for s in report.sections if s.section in good)
    volume = open_volume(str(result.aligned))
    assert volume.shape == result.shape == report.shape
    assert volume.voxel_size_nm == VOXEL
    assert volume.array.chunks == (4, 64, 64)


def test_what_is_wrong_is_named(done: tuple[Path, AlignmentResult]) -> None:
    output, result = done
    kinds = {fault.section: fault.kind for fault in result.faults}
    assert kinds == {MISSING: "missing", UNRELATED: "unmatched", BLANK: "blank", DAMAGED: "damaged"}
    report = AlignmentReport.load(output / "alignment.json")
    states = {s.section: (s.state, s.shown) for s in report.sections}
    assert states[MISSING] == ("missing", "black")
    assert states[UNRELATED] == ("placed", "own")
    assert states[BLANK] == ("missing", "black")
    assert states[DAMAGED] == ("placed", "own")
    assert states[10] == ("aligned", "own")
    assert len(report.sections) == DEPTH


def test_matches_reach_over_what_is_missing(done: tuple[Path, AlignmentResult]) -> None:
    report = AlignmentReport.load(done[0] / "alignment.json")
    assert report.sections[4].matched_with[:2] == (1, 2)
    assert report.sections[10].matched_with == (5, 7)
    refused = {(pair.a, pair.b) for pair in report.pairs if not pair.accepted}
    assert {(5, 6), (6, 7)} <= refused
    assert all(UNRELATED in pair for pair in refused)


def test_a_damaged_section_lies_where_its_neighbours_put_it(
    done: tuple[Path, AlignmentResult], sections: list[Section]
) -> None:
    meshes = {n: stored.mesh for n in (7, 9, 10) if (stored := load_mesh(mesh_path(done[0], n)))}
    assert not meshes[9].grid.values.any()
    between = (meshes[7].rigid.angle + 2 * meshes[10].rigid.angle) / 3
    assert meshes[9].rigid.angle == pytest.approx(between)


def test_a_second_run_makes_nothing_again(done: tuple[Path, AlignmentResult], montage: Path) -> None:
    output, first = done
    before = tree(output)
    again = run(parameters(montage, output), silent)
    assert (again.made, again.kept) == (0, first.made)
    assert tree(output) == before


def test_the_same_bytes_in_parts_and_processes(
    done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path
) -> None:
    output = tmp_path / "parts"
    run(parameters(montage, output, action="match", sections=[10, 4, 2]), silent)
    run(parameters(montage, output, action="match", workers=2), silent)
    solved = run(parameters(montage, output, action="solve"), silent)
    assert solved.groups is not None
    for group in reversed(range(solved.groups)):
        run(parameters(montage, output, action="render", groups=[group]), silent)
    run(parameters(montage, output, action="score"), silent)
    assert tree(output) == tree(done[0])


def test_the_same_bytes_after_kills(done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path) -> None:
    """A process that is killed while it matches; then what a kill in the middle of rendering leaves behind."""
    output, work = tmp_path / "killed", tmp_path / "work"
    work.mkdir()
    parameters(montage, output).save(work / "parameters.json")
    command = [sys.executable, "-m", "apps.alignment", str(work / "parameters.json")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while len(list(output.glob("pairs/*.npz"))) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    run(parameters(montage, output), silent)
    assert tree(output) == tree(done[0])
    (output / "rendered" / "000001.json").unlink()
    (output / "alignment.json").unlink()
    shutil.rmtree(output / "aligned.zarr" / "0" / "c" / "0" / "0")
    (output / "rendered" / "000000.json").unlink()
    run(parameters(montage, output), silent)
    assert tree(output) == tree(done[0])


def test_a_section_that_is_added_adds_its_own_jobs_only(sections: list[Section], tmp_path: Path) -> None:
    for number in range(5):
        save(tmp_path / "in", number, sections[number].image)
    given: dict[str, Any] = {"damaged": [], "solving": {"window": 3, "overlap": 1}}
    given["rendering"] = {"chunks": [2, 64, 64], "group": [1, 2, 2]}
    first = run(parameters(tmp_path / "in", tmp_path / "out", last=3, **given), silent)
    mesh = mesh_path(tmp_path / "out", 0).stat().st_mtime_ns
    assert first.made == 5 + (first.groups or 0)
    second = run(parameters(tmp_path / "in", tmp_path / "out", last=4, **given), silent)
    assert second.shape is not None
    assert second.shape[0] == 5
    assert mesh_path(tmp_path / "out", 0).stat().st_mtime_ns == mesh
    assert second.kept >= 5 + (first.groups or 0) // 3


def test_windows_agree_with_all_at_once(
    done: tuple[Path, AlignmentResult], montage: Path, sections: list[Section], tmp_path: Path
) -> None:
    output = tmp_path / "windows"
    shutil.copytree(done[0] / "pairs", output / "pairs")
    run(parameters(montage, output, action="solve", solving={"window": 6, "overlap": 3}), silent)
    good = {n: sections[n] for n in (0, 1, 2, 4, 5, 7, 10)}
    assert error(good, {n: s.mesh for n in good if (s := load_mesh(mesh_path(output, n)))}) < 1.3
    streamed, whole = (Layout.load(folder / "solution.json").sections for folder in (output, done[0]))
    assert [section.misfit or 0.0 for section in streamed] == pytest.approx([s.misfit or 0.0 for s in whole], abs=0.3)


def test_copies_stand_in(done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path) -> None:
    output = tmp_path / "copies"
    shutil.copytree(done[0] / "pairs", output / "pairs")
    rendering = {**SETTINGS["rendering"], "missing": "copy", "damaged": "black"}
    result = run(parameters(montage, output, rendering=rendering), silent)
    planes = open_volume(str(result.aligned)).read()
    assert np.array_equal(planes[MISSING], planes[2])
    assert not planes[DAMAGED].any()
    report = AlignmentReport.load(output / "alignment.json")
    assert report.sections[MISSING].shown_section == 2
    assert report.sections[2].correlation_next == pytest.approx(report.sections[4].correlation_previous)


def test_a_repeated_section_and_a_broken_one_are_named(sections: list[Section], tmp_path: Path) -> None:
    for number, source in enumerate((0, 1, 1, 2)):
        save(tmp_path / "in", number, sections[source].image)
    write_volume(tmp_path / "in" / "sections" / "00004.zarr", np.zeros((1, 8, 8), np.uint16), VOXEL)
    save(tmp_path / "in", 5, sections[3].image)
    chunk = next((tmp_path / "in" / "sections" / "00005.zarr" / "0" / "c").rglob("1"))
    next(path for path in (chunk, *chunk.rglob("*")) if path.is_file()).write_bytes(b"no chunk")
    result = run(parameters(tmp_path / "in", tmp_path / "out", damaged=[]), silent)
    assert {fault.section: fault.kind for fault in result.faults} == {2: "repeated", 4: "unreadable", 5: "unreadable"}
    assert "uint16" in next(fault.message for fault in result.faults if fault.section == 4)


def test_steps_in_the_wrong_order_are_refused(montage: Path, tmp_path: Path) -> None:
    for action, missing in (("solve", 'run the action "match"'), ("render", "solve"), ("score", "solve")):
        with pytest.raises(StateError, match=missing):
            run(parameters(montage, tmp_path / "out", action=action), silent)


def test_parts_that_do_not_exist_are_refused(done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"sections \[99\]"):
        run(parameters(montage, tmp_path / "out", action="match", sections=[99]), silent)
    with pytest.raises(ParameterError, match=r"groups \[1000\]"):
        run(parameters(montage, done[0], action="render", groups=[1000]), silent)
    with pytest.raises(DataError, match="holds no section"):
        run(parameters(tmp_path, tmp_path / "out"), silent)
    for wrong in ({"sections": [1]}, {"groups": [1]}, {"first": 3, "last": 1}, {"output": str(montage)}):
        with pytest.raises(ParameterError):
            parameters(montage, Path(wrong.pop("output", "out")), **wrong)  # type: ignore[arg-type]


def test_the_example_is_valid() -> None:
    assert AlignmentParameters.from_json(json.dumps(STAGE.example)).damaged == (17,)
    assert set(AlignmentParameters.schema()["$defs"]["AlignmentParameters"]["required"]) <= set(STAGE.example)


def test_a_picture_is_drawn(done: tuple[Path, AlignmentResult], montage: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert picture([str(montage), str(done[0]), str(tmp_path / "cut.png")]) == 0
    with Image.open(tmp_path / "cut.png") as drawn:
        assert drawn.mode == "L"
        left, right = np.asarray(drawn)[:, : drawn.width // 2 - 4], np.asarray(drawn)[:, drawn.width // 2 + 4 :]
    assert left.any()
    assert right.any()
    assert not np.array_equal(left, right)
    assert picture([str(montage), str(tmp_path), str(tmp_path / "no.png")]) == 2
