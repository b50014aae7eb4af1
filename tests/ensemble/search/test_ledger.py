"""The journal of a search."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from apps.core.errors import DataError, FailureKind, StateError
from ensemble.jobs import Outcome
from ensemble.search import events
from ensemble.search.ledger import TRANSITIONS, Ledger, TrialState
from ensemble.search.optimizers.contract import Observation

RECORD = {"result": {"scores": {"vi": 1.0}}, "cost": {"start": 1.0, "end": 2.0}}
GOOD = Outcome("k", 7, RECORD)
BEGUN = events.search_begun(["x"], ["vi"], [], 0, "hash")


def lost(kind: FailureKind, attempts: int = 1) -> Outcome:
    return Outcome("k", 8, None, kind, "what happened", attempts)


def filled(path: Path) -> Ledger:
    """A journal with a trial in every state."""
    journal = Ledger(path)
    journal.begin(BEGUN)
    journal.suggest([{"x": x} for x in range(7)])
    journal.append([events.submitted(number) for number in range(6)])
    journal.append([events.ended(0, 0, (-1.0,), GOOD)])
    journal.append([events.ended(1, 0, None, lost(FailureKind.DIVERGED))])
    journal.append([events.attempt_failed(2, 0, lost(FailureKind.KILLED), 1e9)])
    journal.append([events.reported(3, 0, (-3.0,), GOOD), events.reported(4, 0, (-4.0,), GOOD)])
    journal.append([events.stopped(4, "hopeless")])
    return journal


STATES = ["DONE", "FAILED", "WAITING", "PAUSED", "STOPPED", "SUBMITTED", "SUGGESTED"]


def test_journal_read_again_gives_the_same_trials(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    again = Ledger(tmp_path / "j")
    assert again.trials == journal.trials
    assert again.begun == BEGUN
    assert [t.state.value for t in again.trials] == STATES
    assert [t.number for t in again.ended] == [0, 1, 4]
    assert [t.number for t in again.open_trials()] == [2, 3, 5, 6]
    assert [t.objective for t in again.trials] == [-1.0, None, None, -3.0, -4.0, None, None]
    assert again.trials[1].failure is FailureKind.DIVERGED
    assert again.trials[2].failure is None, "it is tried again"
    assert again.trials[4].reason == "hopeless"


def test_life_of_a_trial_over_rungs_and_attempts(tmp_path: Path) -> None:
    journal = Ledger(tmp_path / "j")
    (trial,) = journal.suggest([{"x": 1}])
    journal.append([events.submitted(0)])
    journal.append([events.attempt_failed(0, 0, lost(FailureKind.KILLED), 5.0)])
    assert (trial.state, trial.not_before, trial.observation()) == (TrialState.WAITING, 5.0, None)
    journal.append([events.submitted(0, 0, 2, nodes=3)])
    assert (trial.attempt, trial.nodes) == (2, 3)
    journal.append([events.reported(0, 0, (1.0, 2.0), GOOD)])
    assert trial.observation() == Observation({"x": 1}, (1.0, 2.0))
    journal.append([events.submitted(0, 1, 1)])
    journal.append([events.ended(0, 1, (3.0, 4.0), replace(GOOD, attempts=2))])
    assert (trial.state, trial.objective, trial.starts) == (TrialState.DONE, (3.0, 4.0), 4)
    assert [report.objectives for report in trial.reports] == [(1.0, 2.0), (3.0, 4.0)]
    assert trial.submitted is not None
    assert trial.ended is not None
    assert trial.ended >= trial.submitted


@pytest.mark.parametrize("kind", list(FailureKind))
def test_optimiser_learns_of_failures_that_the_configuration_is_to_blame_for(tmp_path: Path, kind: FailureKind) -> None:
    journal = Ledger(tmp_path / "j")
    journal.suggest([{"x": 1}])
    journal.append([events.submitted(0), events.ended(0, 0, None, lost(kind))])
    own_fault = kind in (FailureKind.BAD_CONFIGURATION, FailureKind.DIVERGED, FailureKind.HUNG)
    assert journal.trials[0].observation() == (Observation({"x": 1}, None) if own_fault else None)


def test_configuration_has_one_trial(tmp_path: Path) -> None:
    journal = Ledger(tmp_path / "j")
    (a,), (b,) = journal.suggest([{"x": 1, "y": 2}]), journal.suggest([{"y": 2, "x": 1}])
    assert a is b
    assert len(journal.trials) == 1
    assert journal.find({"x": 1, "y": 2}) is a
    assert journal.find({"x": 1, "y": 3}) is None


def test_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        journal = Ledger(path)
        assert path.read_bytes() == whole[:length], "who only reads leaves a line that is being written alone"
        journal.suggest([{"x": "after"}])
        there = path.read_bytes().splitlines(keepends=True)
        assert there[:-1] == lines[: whole[:length].count(b"\n")]
        assert Ledger(path).trials == journal.trials


def test_two_writers_share_a_journal(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "j"), Ledger(tmp_path / "j")
    one.begin(BEGUN)
    other.begin(BEGUN)
    one.suggest([{"x": 0}])
    other.suggest([{"x": 0}, {"x": 1}])
    one.suggest([{"x": 2}])
    assert [trial.configuration["x"] for trial in one.trials] == [0, 1, 2]
    assert [trial.number for trial in other.news()] == [0, 2], "of others' alone"
    assert other.news() == []
    one.append([events.submitted(0, driver=0)])
    with pytest.raises(ValueError, match="'submitted' cannot happen where it is SUBMITTED"):
        other.append([events.submitted(0, driver=1)])
    assert [trial.number for trial in one.news()] == [1]
    other.append([events.taken_over(0, driver=1)])
    assert one.news() == [], "who looks after it is no news"
    one.refresh()
    assert (one.trials[0].driver, one.trials[0].suggested_by) == (1, 0)
    assert one.trials == other.trials == Ledger(tmp_path / "j").trials


def test_who_holds_the_journal_decides_on_all_that_is_written(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "j"), Ledger(tmp_path / "j")
    one.suggest([{"x": x} for x in range(50)])
    taken: list[tuple[int, int]] = []

    def take(ledger: Ledger, driver: int) -> None:
        while True:
            with ledger.alone():
                free = ledger.in_state(TrialState.SUGGESTED)
                if not free:
                    return
                ledger.append([events.submitted(free[0].number, driver=driver)])
            taken.append((free[0].number, driver))

    threads = [threading.Thread(target=take, args=(ledger, n)) for n, ledger in enumerate((one, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in taken) == list(range(50))
    assert {number: trial.driver for number, trial in enumerate(Ledger(tmp_path / "j").trials)} == dict(taken)


def test_reader_follows_a_journal_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(b"")
    reader = Ledger(path)
    assert not reader.refresh()
    for start in range(0, len(whole), 50):
        with path.open("ab") as stream:
            stream.write(whole[start : start + 50])
        reader.refresh()
    assert reader.trials == Ledger(path).trials
    assert not reader.refresh()


def test_writer_does_not_read_its_own_events_again(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    assert not journal.refresh()
    assert [t.state.value for t in journal.trials] == STATES


def test_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    filled(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], '{"event": "ended", "trial": 0}\n', *lines[1:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        Ledger(path)
    path.write_text("nonsense\n")
    with pytest.raises(DataError, match="line 1 is no JSON"):
        Ledger(path)


def test_unwritable_journal_changes_nothing(tmp_path: Path) -> None:
    journal = Ledger(tmp_path / "missing" / "j")
    with pytest.raises(DataError, match="cannot be written"):
        journal.suggest([{"x": 1}])
    assert journal.trials == []


def test_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = filled(path)
    before, trials = path.read_bytes(), len(journal.trials)
    write = os.write

    def half(descriptor: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data[: len(data) // 2]))

    with monkeypatch.context() as patch:
        patch.setattr("ensemble.search.ledger.os.write", half)
        with pytest.raises(DataError, match="No space left"):
            journal.suggest([{"x": "does not fit"}])
    assert path.read_bytes() == before
    assert len(journal.trials) == trials
    journal.suggest([{"x": "fits"}])
    assert Ledger(path).trials == journal.trials


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"names": ["x", "y"]}, "hyperparameters"),
        ({"objectives": ["a", "b"]}, "objectives"),
        ({"rungs": [1, 2]}, "rungs"),
        ({"seed": 1}, "seed"),
    ],
)
def test_journal_of_another_search_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    journal = filled(tmp_path / "j")
    journal.begin(BEGUN)
    with pytest.raises(StateError, match=word):
        journal.begin(BEGUN | change, accept_changes=True)


def test_changed_search_file_is_to_be_accepted(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    changed = BEGUN | {"source": "other"}
    with pytest.raises(StateError, match="--accept-changes"):
        journal.begin(changed)
    journal.begin(changed, accept_changes=True)
    lines = (tmp_path / "j").read_text().splitlines()
    assert json.loads(lines[-1])["source"] == "other"
    Ledger(tmp_path / "j").begin(changed)


def test_file_that_other_drivers_run_is_not_changed_under_them(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    with pytest.raises(StateError, match="other drivers go on with it as it was"):
        journal.begin(BEGUN | {"source": "other"}, accept_changes=True, others=True)
    journal.begin(BEGUN, others=True)


def test_a_trial_that_is_measured_again_at_a_rung_has_not_ended(tmp_path: Path) -> None:
    journal = Ledger(tmp_path / "j")
    journal.suggest([{"x": 1}])
    journal.append([events.submitted(0), events.ended(0, 0, None, lost(FailureKind.BUG))])
    assert journal.trials[0].ended is not None
    journal.append([events.reported(0, 0, (1.0,), GOOD)])
    assert (journal.trials[0].state, journal.trials[0].ended) == (TrialState.PAUSED, None)


def test_only_the_transitions_of_the_table_are_possible(tmp_path: Path) -> None:
    happens = {
        TrialState.SUBMITTED: lambda number: events.submitted(number),
        TrialState.WAITING: lambda number: events.attempt_failed(number, 0, lost(FailureKind.KILLED), 1.0),
        TrialState.PAUSED: lambda number: events.reported(number, 0, (1.0,), GOOD),
        TrialState.DONE: lambda number: events.ended(number, 0, (1.0,), GOOD),
        TrialState.FAILED: lambda number: events.ended(number, 0, None, lost(FailureKind.BUG)),
        TrialState.STOPPED: lambda number: events.stopped(number, "hopeless"),
    }
    for number, before in enumerate(map(TrialState, STATES)):
        for after, event in happens.items():
            path = tmp_path / f"{before}-{after}"
            journal = filled(path)
            written = path.read_bytes()
            if after in TRANSITIONS[before]:
                journal.append([event(number)])
                assert journal.trials[number].state is after
            else:
                with pytest.raises(ValueError, match=f"cannot happen where it is {before}"):
                    journal.append([event(number)])
                assert path.read_bytes() == written


def test_event_that_cannot_happen_is_never_written(tmp_path: Path) -> None:
    journal = filled(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    done, unknown = events.ended(0, 0, (-1.0,), GOOD), {**events.submitted(6), "event": "mislaid"}
    twice = events.ended(5, 0, (-1.0,), GOOD)
    for wrong in ([done], [events.suggested(9, {"x": 9})], [unknown], [twice, twice], [events.submitted(6), done]):
        with pytest.raises((ValueError, IndexError)):
            journal.append(wrong)
    assert (tmp_path / "j").read_bytes() == before
    assert [trial.state.value for trial in journal.trials] == STATES
