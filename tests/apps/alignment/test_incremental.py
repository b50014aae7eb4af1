"""What a section that is added, held back or let through changes, and who may work on one output at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.alignment import locks, scoring
from apps.alignment.scoring import AlignmentReport
from apps.alignment.settings import RenderSettings
from apps.alignment.stage import AlignmentParameters, AlignmentResult, run
from apps.alignment.volume import Layout, group_identities, plan_groups, plane_identities
from apps.core.errors import StateError
from apps.core.files import lock
from apps.core.progress import silent
from apps.core.volumes import open_volume
from tests.apps.alignment.synthetic import Section, save, stack

SETTINGS: dict[str, Any] = {
    "matching": {"spacing": 16, "finest": 1, "max_rotation_deg": 8.0},
    "solving": {"window": 3, "overlap": 1},
    "rendering": {"chunks": [2, 64, 64], "group": [1, 2, 2]},
}
RENDERING = RenderSettings.from_json(SETTINGS["rendering"])
DEPTH, HELD = 6, 3


@pytest.fixture(scope="module")
def sections() -> list[Section]:
    return stack(DEPTH)


@pytest.fixture(scope="module")
def montage(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("montage")
    for number, section in enumerate(sections):
        save(folder, number, section.image)
    return folder


def align(montage: Path, output: Path, **given: Any) -> AlignmentResult:
    return run(
        AlignmentParameters.from_json({"montage": str(montage), "output": str(output), **SETTINGS, **given}), silent
    )


def report_of(output: Path) -> AlignmentReport:
    return AlignmentReport.load(output / "alignment.json")


def layout_of(output: Path) -> Layout:
    return Layout.load(output / "solution.json")


@pytest.fixture(scope="module")
def anew(montage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All sections, from nothing."""
    output = tmp_path_factory.mktemp("anew") / "out"
    align(montage, output)
    return output


@pytest.fixture(scope="module")
def grown(montage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, list[tuple[int, int]]]:
    """A stack of five sections to which a sixth is added: the layout before, and the planes that were compared then."""
    output = tmp_path_factory.mktemp("grown") / "out"
    align(montage, output, last=DEPTH - 2)
    before = layout_of(output)
    compared: list[tuple[int, int]] = []
    compare = scoring.correlations

    def watch(volume: Any, pairs: Sequence[tuple[int, int]], report: Any) -> list[float | None]:
        compared.extend(pairs)
        return compare(volume, pairs, report)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "correlations", watch)
        align(montage, output, last=DEPTH - 1)
    return output, before, compared


def test_a_score_is_not_computed_again_where_both_planes_are_as_they_were(
    grown: tuple[Path, Layout, list[tuple[int, int]]], anew: Path
) -> None:
    output, before, compared = grown
    now, old = layout_of(output), plane_identities(before, RENDERING)
    same = {z for z, identity in enumerate(plane_identities(now, RENDERING)[:-1]) if identity == old[z]}
    assert 2 <= len(same) < DEPTH
    assert compared == [(z, z + 1) for z in range(DEPTH - 1) if not {z, z + 1} <= same]
    assert (anew / "alignment.json").read_bytes() == (output / "alignment.json").read_bytes()


def test_identities_tell_which_groups_and_planes_have_changed(
    grown: tuple[Path, Layout, list[tuple[int, int]]],
) -> None:
    output, before, _ = grown
    now = layout_of(output)
    boxes, identities = plan_groups(now, RENDERING), group_identities(now, RENDERING)
    assert len(identities) == len(boxes) == len(set(identities))
    assert len(plane_identities(now, RENDERING)) == DEPTH
    kept = {str(box) for box in plan_groups(before, RENDERING)}
    unchanged = set(identities) & set(group_identities(before, RENDERING))
    assert unchanged and len(unchanged) < len(kept)
    same = [a == b for a, b in zip(before.contents, now.contents, strict=False)]
    for box, identity in zip(boxes, identities, strict=True):
        assert (identity in unchanged) == (str(box) in kept and all(same[box.offset[0] : box.end[0]]))
    other = RenderSettings.from_json({**SETTINGS["rendering"], "interpolation": "cubic"})
    assert not set(group_identities(now, other)) & set(identities)
    assert not set(plane_identities(now, other)) & set(plane_identities(now, RENDERING))
    # Those that rendering has left beside the volume are the same.
    markers = sorted((output / "rendered").glob("*.json"))
    assert [json.loads(marker.read_text())["identity"] for marker in markers] == identities


def test_a_held_section_is_as_if_it_were_not_there(montage: Path, anew: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    held = align(montage, output, held=[HELD])
    assert [(fault.section, fault.kind) for fault in held.faults] == [(HELD, "held")]
    assert "held back by a gate" in held.faults[0].message
    assert not list((output / "pairs").glob(f"*{HELD:05d}*"))
    assert not (output / "meshes" / f"{HELD:05d}.npz").exists()
    score = report_of(output).sections[HELD]
    assert (score.state, score.shown, score.matched_with, score.misfit) == ("missing", "black", (), None)
    assert not open_volume(str(held.aligned)).read()[HELD].any()
    assert report_of(output).sections[HELD + 1].matched_with[:2] == (HELD - 2, HELD - 1)
    rendering = {**SETTINGS["rendering"], "missing": "copy"}
    planes = open_volume(str(align(montage, output, held=[HELD], rendering=rendering).aligned)).read()
    assert planes[HELD].any() and np.array_equal(planes[HELD], planes[HELD - 1])
    # Accepted, it is matched, and it changes what it has to; all is as if it had never been held.
    pairs = {path.name: path.stat().st_mtime_ns for path in (output / "pairs").iterdir()}
    align(montage, output, action="match")
    align(montage, output, action="solve")
    with pytest.raises(StateError, match="are not rendered"):  # what is there is of the solution before
        align(montage, output, action="score")
    accepted = align(montage, output)
    assert accepted.faults == ()
    assert all((output / "pairs" / name).stat().st_mtime_ns == time for name, time in pairs.items())
    for name in ("alignment.json", "solution.json"):
        assert (output / name).read_bytes() == (anew / name).read_bytes()
    volumes = [open_volume(str(folder / "aligned.zarr")).read() for folder in (output, anew)]
    assert np.array_equal(volumes[0], volumes[1])


def test_two_do_not_solve_one_output_at_once(grown: tuple[Path, Layout, Any], montage: Path) -> None:
    output = grown[0]
    before = (output / "solution.json").read_bytes()
    with (output / "solve.lock").open("a") as stream:
        lock(stream, output / "solve.lock")
        with pytest.raises(StateError, match=r"solve\.lock: another process works on this output"):
            align(montage, output, action="solve", held=[HELD])
        assert align(montage, output, action="render").made == 0
    assert (output / "solution.json").read_bytes() == before


def test_the_volume_is_not_made_anew_under_those_that_render(
    grown: tuple[Path, Layout, Any], montage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = grown[0]
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.0)
    with locks.using_volume(output, alone=False):
        assert align(montage, output, action="render", last=DEPTH - 1).made == 0  # others may
        with pytest.raises(StateError, match="still renders or scores the volume"):
            align(montage, output, action="solve")
    with locks.using_volume(output, alone=True):
        for action in ("render", "score"):
            with pytest.raises(StateError, match="still makes the volume"):
                align(montage, output, action=action)


def test_a_solve_waits_for_those_that_render(grown: tuple[Path, Layout, Any], montage: Path) -> None:
    output = grown[0]
    held, go = threading.Event(), threading.Event()

    def render() -> None:
        with locks.using_volume(output, alone=False):
            held.set()
            go.wait(10)

    other = threading.Thread(target=render)
    other.start()
    assert held.wait(10)
    threading.Timer(0.2, go.set).start()
    align(montage, output, action="solve")
    assert go.is_set()
    other.join()


def test_a_section_that_changes_after_it_was_solved_is_not_rendered(sections: list[Section], tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / "in", number, sections[number].image)
    for action in ("match", "solve"):
        align(tmp_path / "in", tmp_path / "out", action=action)
    save(tmp_path / "in", 1, sections[4].image)
    with pytest.raises(StateError, match="section 1: its mesh or image is not the one that was solved; solve again"):
        align(tmp_path / "in", tmp_path / "out", action="render")
