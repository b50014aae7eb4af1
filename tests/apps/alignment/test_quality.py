"""Scores without ground truth: what they say of sections that lie wrong, and how gates and tables read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.alignment.misfit import Misfits
from apps.alignment.poses import Pair
from apps.alignment.quality import QUALITY, read
from apps.alignment.scoring import AlignmentReport, SectionScore
from apps.alignment.stack import Fault
from apps.alignment.transforms import IDENTITY, Grid, Mesh, section_grid
from apps.core.errors import DataError
from apps.core.quality import load_quality


def mesh(shift: tuple[float, float] = (0.0, 0.0)) -> Mesh:
    grid = section_grid((65, 65), 16.0)
    return Mesh(IDENTITY, Grid(0.0, 16.0, grid.values + np.array(shift)))


def pair(a: int, b: int, noise: float) -> Pair:
    """The same points in both, but for errors that are opposite in neighbouring points."""
    y, x = np.mgrid[4:64:8, 4:64:8].astype(float)
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    sign = np.where((y + x).ravel() % 16 == 8, noise, -noise)
    return Pair(a, b, points, points + np.stack([sign, 0 * sign], axis=1), np.ones(len(points)), IDENTITY)


def test_a_misfit_is_what_neighbouring_residuals_have_in_common() -> None:
    """Section 1 lies wrong by (3, 4) pixels; matches err by 2 pixels each, to and fro."""
    meshes = {0: mesh(), 1: mesh((3.0, 4.0)), 2: mesh(), 3: mesh()}
    found = Misfits()
    for a, b in ((0, 1), (1, 2), (2, 3), (0, 2), (1, 3)):
        found.add(pair(a, b, 2.0), meshes)
    misfits = found.finished()
    assert misfits[1] == pytest.approx(5.0)
    # Section 0 has matches with 1 (weight 1) and 2 (weight 1/2), section 2 with 1, 3 (1) and 0 (1/2).
    assert misfits[0] == pytest.approx(5.0 / 1.5) and misfits[2] == pytest.approx(5.0 / 2.5)
    assert misfits[3] == pytest.approx(5.0 * 0.5 / 1.5)


def test_misfits_that_differ_over_the_section_do_not_cancel() -> None:
    """The left half is 2 pixels too high, the right one too low: nothing on the whole."""
    values = section_grid((65, 65), 16.0).values.copy()
    values[:, :2, 0], values[:, 3:, 0] = -2.0, 2.0
    found = Misfits()
    found.add(pair(0, 1, 0.0), {0: mesh(), 1: Mesh(IDENTITY, Grid(0.0, 16.0, values))})
    assert found.finished()[1] == pytest.approx(1.5)  # a cell of two vertices, in one half of which it goes to 0


def test_a_finished_section_is_kept_when_others_are_added() -> None:
    found, meshes = Misfits(), {n: mesh((float(n), 0.0)) for n in range(3)}
    found.add(pair(0, 1, 0.0), meshes)
    found.finish([0])
    found.add(pair(1, 2, 0.0), meshes)
    assert found.finished() == {0: pytest.approx(1.0), 1: pytest.approx(0.0), 2: pytest.approx(1.0)}


def score(section: int, **given: Any) -> SectionScore:
    nothing: dict[str, Any] = dict.fromkeys(("residual", "misfit", "strain", "largest_strain", "folds"))
    plain = {"plane": section, "state": "aligned", "shown": "own", "shown_section": section, "matched_with": ()}
    return SectionScore(**{"section": section, **plain, **nothing, **given})


def write(folder: Path) -> None:
    sections = (
        score(0, residual=0.8, misfit=0.2, strain=0.01, folds=0, correlation_next=0.9),
        score(1, residual=2.0, misfit=1.5, strain=0.2, folds=2, correlation_previous=0.9, correlation_next=0.4),
        score(2, state="missing", shown="black", shown_section=None),
    )
    faults = (Fault(section=2, kind="held", message="held back by a gate"),)
    report = AlignmentReport(identity="x", origin=(0, 0), shape=(3, 64, 64), sections=sections, pairs=(), faults=faults)
    report.save(folder / "alignment.json")


def test_measures_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, None) == []
    write(tmp_path)
    first, second, third = read(tmp_path, None)
    assert first.values == {
        "misfit": 0.2,
        "residual": 0.8,
        "correlation": 0.9,
        "best_correlation": 0.9,
        "matches": None,
        "strain": 0.01,
        "folds": 0.0,
    }
    assert (second.values["correlation"], second.values["best_correlation"], second.values["folds"]) == (0.4, 0.9, 2.0)
    assert set(third.values.values()) == {None} and third.faults == ("held back by a gate",)
    assert first.faults == ()


def test_a_section_that_nothing_matches_is_held(tmp_path: Path) -> None:
    write(tmp_path)
    report = AlignmentReport.load(tmp_path / "alignment.json")
    alone = Fault(section=1, kind="unmatched", message="no other section matches it")
    sections = [each.to_dict() for each in report.sections]
    sections[0]["matched_with"] = [1]
    content = report.to_dict() | {"faults": [alone.to_dict()], "sections": sections}
    AlignmentReport.from_json(content).save(tmp_path / "alignment.json")
    found = {quality.section: quality.values["matches"] for quality in read(tmp_path, None)}
    assert (found[0], found[1]) == (1.0, 0.0) and QUALITY.default_gate["matches"] == 1.0


def test_some_sections_are_read(tmp_path: Path) -> None:
    write(tmp_path)
    assert [quality.section for quality in read(tmp_path, (1, 7))] == [1]


def test_a_report_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "alignment.json").write_text("{")
    with pytest.raises(DataError, match=r"alignment\.json: .*score the alignment again"):
        read(tmp_path, None)


def test_the_stage_tells_its_quality() -> None:
    assert load_quality("alignment") is QUALITY
    assert set(QUALITY.default_gate) <= {measure.name for measure in QUALITY.measures}
