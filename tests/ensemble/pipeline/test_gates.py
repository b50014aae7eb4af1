"""Gates: what they hold, and how far an acceptance goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.core.errors import ParameterError
from apps.core.quality import Measure, SectionQuality, StageQuality
from ensemble.pipeline.gates import Acceptance, accept, judge, load_acceptances, misses, revoke

QUALITY = StageQuality(
    (Measure("likeness", "higher", "", "how alike"), Measure("residual", "lower", "px", "how far")),
    lambda output, sections: [],
    {},
)
GATE = {"likeness": 0.5, "residual": 2.0}


def section(likeness: float | None, residual: float | None) -> SectionQuality:
    return SectionQuality(section=7, values={"likeness": likeness, "residual": residual})


def test_a_measure_that_is_worse_than_its_threshold_is_missed() -> None:
    assert misses(section(0.5, 2.0), GATE, QUALITY) == []
    assert misses(section(None, None), GATE, QUALITY) == []
    worse = misses(section(0.4, 2.5), GATE, QUALITY)
    assert [str(miss) for miss in worse] == [
        "likeness 0.4, expected at least 0.5",
        "residual 2.5 px, expected at most 2",
    ]


def test_an_acceptance_holds_for_what_is_no_worse_than_what_was_accepted() -> None:
    accepted = Acceptance(step="s", section=7, values={"likeness": 0.4})
    assert judge([], None) == "passed"
    assert judge(misses(section(0.4, 1.0), GATE, QUALITY), None) == "held"
    assert judge(misses(section(0.4, 1.0), GATE, QUALITY), accepted) == "accepted"
    assert judge(misses(section(0.45, 1.0), GATE, QUALITY), accepted) == "accepted"
    assert judge(misses(section(0.381, 1.0), GATE, QUALITY), accepted) == "accepted", "within five percent"
    assert judge(misses(section(0.379, 1.0), GATE, QUALITY), accepted) == "held"
    assert judge(misses(section(0.4, 3.0), GATE, QUALITY), accepted) == "held"


def test_acceptances_are_kept_with_who_and_why_and_can_be_taken_back(tmp_path: Path) -> None:
    missed = misses(section(0.4, 2.5), GATE, QUALITY)
    accept(tmp_path, "montage", {7: missed, 8: missed}, "looked at")
    accept(tmp_path, "alignment", {7: missed[:1]}, "")
    accept(tmp_path, "montage", {8: missed[:1]}, "again")
    known = load_acceptances(tmp_path)
    assert [(each.step, each.section, each.reason) for each in known.accepted] == [
        ("alignment", 7, ""),
        ("montage", 7, "looked at"),
        ("montage", 8, "again"),
    ]
    found = known.of("montage", 7)
    assert found is not None and found.values == {"likeness": 0.4, "residual": 2.5} and found.who and found.when > 0
    revoke(tmp_path, "montage", [7, 8])
    assert [each.step for each in load_acceptances(tmp_path).accepted] == ["alignment"]
    with pytest.raises(ParameterError, match=r"step montage, sections \[7\]: were not accepted"):
        revoke(tmp_path, "montage", [7])
