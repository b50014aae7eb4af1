"""The journal of a search."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from apps.core.errors import DataError, FailureKind
from ensemble.jobs import Outcome
from ensemble.search.ledger import TRANSITIONS, Ledger, Trial, TrialState

RECORD = {"result": {"scores": {"vi": 1.0}}, "cost": {"start": 1.0, "end": 2.0}}


def filled(path: Path) -> Ledger:
    ledger = Ledger(path)
    first, second, third = ledger.suggest([{"x": 1}, {"x": 2}, {"x": None}])
    for trial in (first, second):
        ledger.submitted(trial)
    ledger.ended(first, Outcome("k0", 7, RECORD, attempts=2), -1.0)
    ledger.ended(second, Outcome("k1", 8, None, FailureKind.DIVERGED, "loss is NaN"), None)
    assert third.state is TrialState.SUGGESTED
    return ledger


def test_journal_read_again_gives_the_same_trials(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "j")
    again = Ledger(tmp_path / "j")
    assert again.trials == ledger.trials
    assert [t.state.value for t in again.trials] == ["DONE", "FAILED", "SUGGESTED"]
    assert again.trials[0].objective == -1.0
    assert again.trials[1].outcome is not None
    assert again.trials[1].outcome.failure is FailureKind.DIVERGED


def test_objectives_come_back_as_a_tuple(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "j")
    (trial,) = ledger.suggest([{"x": 1}])
    ledger.submitted(trial)
    ledger.ended(trial, Outcome("k", 1, RECORD), (1.0, 2.0))
    assert Ledger(tmp_path / "j").trials[0].objective == (1.0, 2.0)


def test_configuration_has_one_trial(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "j")
    (a,), (b,) = ledger.suggest([{"x": 1, "y": 2}]), ledger.suggest([{"y": 2, "x": 1}])
    assert a is b
    assert len(ledger.trials) == 1
    assert ledger.find({"x": 1, "y": 2}) is a
    assert ledger.find({"x": 1, "y": 3}) is None


def test_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert len(Ledger(path).trials) == min(whole[:length].count(b"\n"), 3)
        assert path.read_bytes() == whole[:length], "who only reads leaves a line that is being written alone"
        ledger = Ledger(path, repair=True)
        lines = whole[:length].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
        assert len(ledger.trials) == min(lines, 3)
    ledger.suggest([{"x": "after"}])
    assert Ledger(path).find({"x": "after"}) is not None


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], '{"event": "ended", "trial": 0}\n', *lines[1:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        Ledger(path)
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match="no JSON"):
        Ledger(path)


def test_unwritable_journal_changes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "missing" / "j")
    with pytest.raises(DataError, match="cannot be written"):
        ledger.suggest([{"x": 1}])
    assert ledger.trials == []


@pytest.mark.parametrize(("before", "after"), list(product(TrialState, TrialState)))
def test_only_the_transitions_of_the_table_are_possible(before: TrialState, after: TrialState) -> None:
    trial = Trial(0, {}, 0.0, state=before)
    if after in TRANSITIONS[before]:
        trial.move(after)
        assert trial.state is after
    else:
        with pytest.raises(ValueError, match="no transition"):
            trial.move(after)
        assert trial.state is before
