"""Several drivers on one search: real drivers, journals and locks; only what a trial does is simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import StateError
from ensemble.campaigns import open_campaign
from ensemble.jobs import Outcome
from ensemble.search import events
from ensemble.search.definition import Configuration, Search
from ensemble.search.driver import Driver, Limits
from ensemble.search.ledger import Ledger, TrialState
from ensemble.search.optimizers.contract import Observation, Optimizer
from ensemble.search.promotion import AsynchronousHalving
from ensemble.search.run import SearchRun, make_suggestions, open_ledger, run_search
from ensemble.search.runners.contract import Report
from ensemble.search.runners.threads import ThreadRunner
from ensemble.search.seats import Seat, take_seat
from ensemble.search.suggestions import InlineSuggestions
from tests.ensemble.search.simulated import (
    SimulatedRunner,
    parabola,
    prepared_campaign,
    record_of,
    simulated_search,
)

RUNGS = (1, 2, 4)


def evaluate(seconds: float) -> Callable[[Configuration, int | None], dict[str, Any]]:
    """A trial that takes so long, and is nearer to its parabola with a larger budget."""

    def run(configuration: Configuration, budget: int | None) -> dict[str, Any]:
        time.sleep(seconds)
        vi = parabola(configuration["x"], configuration["kind"]) + 1.0 / (budget or 1)
        return {"scores": {"vi": vi}, "checkpoint": "c"}

    return run


def drive(run: SearchRun, search: Search, workers: int, trials: int, seconds: float = 0.005) -> Ledger:
    with run.campaign.driver_lock(shared=True):
        return run_search(
            run, search, lambda: ThreadRunner(run.name, evaluate(seconds), workers), lambda: Limits(workers, trials)
        )


class Listening(InlineSuggestions):
    """Writes down what it is told."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self.told: list[str] = []
        self.avoided: list[str] = []

    def tell(self, observations: Sequence[Observation]) -> None:
        self.told += [str(observation.configuration) for observation in observations]
        super().tell(observations)

    def avoid(self, configurations: Iterable[Configuration]) -> None:
        listed = list(configurations)
        self.avoided += map(str, listed)
        super().avoid(listed)


def with_rungs() -> Search:
    return simulated_search(rungs=RUNGS, promotion=AsynchronousHalving(factor=3))


@pytest.fixture
def run(tmp_path: Path) -> SearchRun:
    return SearchRun(prepared_campaign(tmp_path), "s")


def test_drivers_share_the_trials_and_end_together(run: SearchRun) -> None:
    ledgers: list[Ledger] = []
    threads = [
        threading.Thread(target=lambda: ledgers.append(drive(run, with_rungs(), workers=2, trials=30, seconds=0.03)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = Ledger(run.journal).trials
    assert len(ledgers) == 3
    assert all(ledger.trials == trials for ledger in ledgers), "each has read all of it"
    assert len(trials) == 30, "together, not each"
    assert len({str(trial.configuration) for trial in trials}) == 30
    assert len({trial.suggested_by for trial in trials}) > 1
    assert {trial.state for trial in trials} == {TrialState.DONE, TrialState.STOPPED}
    assert sum(trial.state is TrialState.DONE for trial in trials) >= 1
    assert sum(len(trial.reports) > 1 for trial in trials) >= 30 // 3
    submitted = [(e["trial"], e["rung"], e["attempt"]) for e in lines(run.journal) if e["event"] == "submitted"]
    assert len(submitted) == len(set(submitted)), "none was handed out twice"
    assert any(trial.driver != trial.suggested_by for trial in trials), "promoted by whoever had a node free"


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


DRIVER = """
import sys
from pathlib import Path
from ensemble.campaigns import open_campaign
from ensemble.search.run import SearchRun
from tests.ensemble.search.test_shared import drive, with_rungs
drive(SearchRun(open_campaign(Path(sys.argv[1]), sys.argv[2]), "s"), with_rungs(), 3, 24, seconds=float(sys.argv[3]))
"""


def test_driver_that_lives_finishes_the_trials_of_one_that_was_killed(
    run: SearchRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ensemble.search.driver.DEATH_LOOK_S", 0.2)
    command = [sys.executable, "-c", DRIVER, str(tmp_path), run.campaign.name, "3600"]
    other = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        while len(Ledger(run.journal).in_state(TrialState.SUBMITTED)) < 3:
            assert other.poll() is None
            time.sleep(0.05)
        found: list[Ledger] = []
        thread = threading.Thread(target=lambda: found.append(drive(run, with_rungs(), workers=2, trials=24)))
        thread.start()
        while len(Ledger(run.journal).trials) < 24:
            time.sleep(0.05)
        time.sleep(0.5)
        assert thread.is_alive(), "the others' trials may still be promoted"
        assert len(Ledger(run.journal).in_state(TrialState.SUBMITTED)) == 3
        other.kill()
        other.wait()
        thread.join(30)
    finally:
        other.kill()
    (ledger,) = found
    assert len(ledger.trials) == 24
    assert all(trial.state.final for trial in ledger.trials)
    taken = [event for event in lines(run.journal) if event["event"] == "taken over"]
    assert sorted(event["trial"] for event in taken) == [0, 1, 2]
    assert {event["driver"] for event in taken} == {1}
    assert {trial.suggested_by for trial in ledger.trials} == {0, 1}


def test_each_driver_learns_what_the_others_found(run: SearchRun) -> None:
    def listening(seat: int) -> Listening:
        suggestions = make_suggestions(run, search, Ledger(run.journal), 2, seat)
        assert isinstance(suggestions, InlineSuggestions)
        return Listening(suggestions._optimizer)

    search = simulated_search()
    ledgers = open_ledger(run, search), open_ledger(run, search)
    heard = listening(0), listening(1)
    drivers = [
        Driver(search, ledger, suggestions, SimulatedRunner(), lambda: Limits(2, 8), Seat(number, run.folder))
        for number, (ledger, suggestions) in enumerate(zip(ledgers, heard, strict=True))
    ]
    with take_seat(run.folder), take_seat(run.folder):
        threads = [threading.Thread(target=driver.run) for driver in drivers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    everything = {str(trial.configuration) for trial in ledgers[0].trials}
    assert len(everything) == 8
    last = {str(trial.configuration) for trial in ledgers[0].ended[-2:]}
    for suggestions in heard:
        assert everything - last <= set(suggestions.told) <= everything
    of_second = {str(trial.configuration) for trial in ledgers[0].trials if trial.suggested_by == 1}
    assert set(heard[0].avoided) <= of_second


@dataclass(frozen=True)
class Pair:
    """A driver at seat 0 that takes single steps, and the ledger of another one, at seat 1."""

    driver: Driver
    mine: Ledger
    theirs: Ledger


@pytest.fixture
def pair(run: SearchRun) -> Iterator[Pair]:
    search = simulated_search(rungs=(1, 2), promotion=AsynchronousHalving(factor=3))
    with take_seat(run.folder) as seat, take_seat(run.folder):
        mine, theirs = open_ledger(run, search), open_ledger(run, search)
        suggestions = make_suggestions(run, search, mine, 2)
        driver = Driver(search, mine, suggestions, SimulatedRunner(), lambda: Limits(2, 3), seat)
        theirs.suggest([{"x": float(x), "kind": "b"} for x in range(3)])
        theirs.append([events.submitted(number, driver=1) for number in range(3)])
        driver._take_up()
        yield Pair(driver, mine, theirs)


def outcome(trial: int) -> Outcome:
    return Outcome(f"search/s/trial-{trial:04d}", 0, record_of(1.0))


def test_a_report_of_another_driver_at_the_last_moment_is_decided_about(pair: Pair) -> None:
    for number, value in enumerate((1.0, 0.5)):
        pair.theirs.append([events.reported(number, 0, (value,), outcome(number))])
    pair.driver._hear_of_others()
    pair.driver._decide()
    pair.theirs.append([events.reported(2, 0, (9.0,), outcome(2))])
    assert pair.driver._close_rungs()
    assert list(pair.driver._promoted) == [2]
    assert {trial.state for trial in pair.mine.trials} == {TrialState.PAUSED}


def test_a_driver_that_was_taken_for_dead_drops_what_others_look_after(pair: Pair) -> None:
    pair.theirs.append([events.reported(0, 0, (1.0,), outcome(0))])
    pair.driver._hear_of_others()
    pair.driver._promoted.append(0)
    pair.driver._hand_out_known()
    (assignment,) = pair.driver._outstanding.values()
    assert pair.mine.trials[0].driver == 0
    pair.theirs.append([events.taken_over(0, driver=1)])
    pair.theirs.append([events.ended(0, 1, (2.0,), outcome(0))])
    pair.driver._take_in([Report(assignment, outcome(0))])
    assert pair.mine.trials[0].objectives == (2.0,)
    assert not pair.driver._outstanding


def test_jobs_that_go_on_without_their_driver_are_not_run_a_second_time(run: SearchRun, pair: Pair) -> None:
    pair.theirs.append([events.taken_over(0, driver=7, lasting=True), events.taken_over(1, driver=7)])
    pair.driver._hear_of_others()
    assert [trial.number for trial in pair.driver._orphans()] == [1]
    pair.theirs.append([events.taken_over(0, driver=0, lasting=True)])
    pair.mine.refresh()
    with pytest.raises(StateError, match=r"1 trials of this search are Balsam jobs.*--site"):
        pair.driver._take_up()


def test_drivers_have_random_streams_of_their_own_and_go_on_with_them(run: SearchRun) -> None:
    def first(seat: int, count: int) -> list[str]:
        return [str(c) for c in make_suggestions(run, search, Ledger(run.journal), 2, seat).take(count)]

    search = simulated_search()
    assert not set(first(0, 8)) & set(first(1, 8))
    expected = first(1, 4)
    with take_seat(run.folder):
        drive(run, search, workers=1, trials=2)  # at seat 1
    trials = Ledger(run.journal).trials
    assert [trial.suggested_by for trial in trials] == [1, 1]
    assert [str(trial.configuration) for trial in trials] + first(1, 2) == expected


def test_a_campaign_is_shared_by_those_alone_that_say_so(run: SearchRun, tmp_path: Path) -> None:
    again = open_campaign(tmp_path, run.campaign.name)
    with run.campaign.driver_lock(shared=True):
        with again.driver_lock(shared=True):
            pass
        assert again.driven
        with pytest.raises(StateError, match="--shared"), again.driver_lock():
            pass
    assert not again.driven
    with run.campaign.driver_lock(), pytest.raises(StateError, match="all started with --shared"):
        again.driver_lock(shared=True).__enter__()
