"""The driver, with simulated runners (tests/ensemble/test_end_to_end.py has it on a real Balsam)."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError, DivergedError, FailureKind, ParameterError, StateError
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration, JobSize, Retries, Search
from ensemble.search.driver import Limits, best_trial
from ensemble.search.ledger import Ledger, TrialState
from ensemble.search.promotion import AsynchronousHalving, Decision, RungTrial
from ensemble.search.run import SearchRun, run_search
from ensemble.search.runners import Assignment, Runner
from ensemble.search.runners.threads import ThreadRunner
from ensemble.search.table import campaign_table, table_bytes
from tests.ensemble.search.simulated import (
    SimulatedRunner,
    prepared_campaign,
    record_of,
    result_at,
    simulated_search,
)


def limits(workers: int, trials: int) -> Callable[[], Limits]:
    return lambda: Limits(workers, trials)


def searched(run: SearchRun, search: Search, runner: Runner, workers: int, trials: int) -> Ledger:
    return run_search(run, search, lambda: runner, limits(workers, trials))


@pytest.fixture
def run(tmp_path: Path) -> SearchRun:
    return SearchRun(prepared_campaign(tmp_path), "s")


def test_search_runs_every_trial_once_and_finds_a_good_one(run: SearchRun) -> None:
    runner = SimulatedRunner()
    search = simulated_search(optimizer="cbo", optimizer_options={"n_points": 500})
    ledger = searched(run, search, runner, workers=4, trials=30)
    assert [trial.state for trial in ledger.trials] == [TrialState.DONE] * 30
    assert len(runner.submitted) == 30
    assert runner.most == 4
    assert runner.closed
    assert len({str(trial.configuration) for trial in ledger.trials}) == 30
    best = best_trial(ledger)
    assert best is not None
    assert isinstance(best.objective, float)
    assert best.objective > -1.5


def test_failures_are_typed_observations_and_the_search_goes_on(run: SearchRun) -> None:
    ledger = searched(run, simulated_search(low=-10.0), SimulatedRunner(), workers=3, trials=16)
    assert len(ledger.final_trials()) == 16
    table = campaign_table(run.campaign)
    diverged = table["p:x"] < 0
    assert 0 < diverged.sum() < 16
    assert (table.loc[diverged, "m:failure"] == "diverged").all()
    assert table.loc[diverged, "objective"].isna().all()
    assert table.loc[~diverged, "objective"].notna().all()


def test_interrupted_search_repeats_nothing(run: SearchRun) -> None:
    first = SimulatedRunner()

    def stop_after_five(ledger: Ledger) -> None:
        if len(ledger.final_trials()) >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(run, simulated_search(), lambda: first, limits(2, 12), stop_after_five)
    before = Ledger(run.journal)
    second = SimulatedRunner()
    ledger = searched(run, simulated_search(), second, workers=2, trials=12)
    assert [t.state for t in ledger.trials] == [TrialState.DONE] * 12
    # What was running is asked for again, as the same attempt; what had ended is not.
    assert [a.trial for a in second.submitted][:2] == [t.number for t in before.in_state(TrialState.SUBMITTED)]
    assert {a.attempt for a in second.submitted} == {1}
    assert not {a.trial for a in second.submitted} & {trial.number for trial in before.final_trials()}
    assert [t.configuration for t in ledger.trials[: len(before.trials)]] == [t.configuration for t in before.trials]
    assert len({str(trial.configuration) for trial in ledger.trials}) == 12
    assert run.campaign.table.is_file()


def test_continued_search_suggests_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = SearchRun(prepared_campaign(tmp_path / "whole"), "s")
    parts = SearchRun(prepared_campaign(tmp_path / "parts"), "s")
    expected = searched(whole, simulated_search(), SimulatedRunner(), workers=1, trials=8)
    for trials in (3, 4, 8):
        found = searched(parts, simulated_search(), SimulatedRunner(), workers=1, trials=trials)
    assert [t.configuration for t in found.trials] == [t.configuration for t in expected.trials]


def test_finished_search_asked_for_again_submits_nothing(run: SearchRun) -> None:
    searched(run, simulated_search(), SimulatedRunner(), workers=2, trials=6)
    runner = SimulatedRunner()
    assert len(searched(run, simulated_search(), runner, workers=2, trials=6).final_trials()) == 6
    assert runner.submitted == []


def test_result_without_a_finite_objective_is_recorded_as_a_bug(run: SearchRun) -> None:
    search = simulated_search(objective=lambda result: float("nan"))
    ledger = searched(run, search, SimulatedRunner(), workers=1, trials=2)
    assert [trial.failure for trial in ledger.trials] == [FailureKind.BUG] * 2
    assert "objective" in str(ledger.trials[0].outcome)


def test_objective_that_fails_at_once_ends_the_search_and_one_that_fails_later_its_trial(run: SearchRun) -> None:
    def fails_where(x: float) -> Callable[[dict[str, Any]], float]:
        return lambda result: {True: -1.0}[result["scores"]["vi"] > x]

    with pytest.raises(ParameterError, match="objective fails on the first result: KeyError"):
        searched(run, simulated_search(objective=fails_where(1e9)), SimulatedRunner(), workers=1, trials=2)
    assert [t.state for t in Ledger(run.journal).trials] == [TrialState.SUBMITTED]
    ledger = searched(run, simulated_search(objective=fails_where(5.0)), SimulatedRunner(), workers=1, trials=12)
    assert {trial.failure for trial in ledger.trials} == {None, FailureKind.BUG}
    # Mended: what had run has its objective, and nothing runs again.
    runner = SimulatedRunner()
    ledger = searched(run, simulated_search(), runner, workers=1, trials=12)
    assert {trial.state for trial in ledger.trials} == {TrialState.DONE}
    assert [trial.starts for trial in ledger.trials] == [1] * 12
    assert runner.submitted == []
    assert Ledger(run.journal).trials == ledger.trials


def test_objectives_of_another_number_end_the_search_and_lose_no_result(run: SearchRun) -> None:
    def search(objective: Callable[..., object]) -> Search:
        return simulated_search(objective=objective)

    with pytest.raises(ParameterError, match=r"gives \(1\.0, 2\.0\), expected 1 number\(s\): objective"):
        searched(run, search(lambda result: (1.0, 2.0)), SimulatedRunner(), workers=3, trials=6)
    begun = [trial.number for trial in Ledger(run.journal).in_state(TrialState.SUBMITTED)]
    assert begun == [0, 1, 2]
    runner = SimulatedRunner()
    ledger = searched(run, search(lambda result: 1.0), runner, workers=3, trials=6)
    assert [(a.trial, a.attempt) for a in runner.submitted[:3]] == [(0, 1), (1, 1), (2, 1)], "what runners find again"
    assert [trial.state for trial in ledger.trials] == [TrialState.DONE] * 6


def test_small_space_ends_the_search_early(run: SearchRun) -> None:
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter([1.0, 2.0, 3.0], "x")
    problem.add_hyperparameter("b", "kind")
    ledger = searched(run, simulated_search(problem=problem), SimulatedRunner(), workers=2, trials=9)
    assert sorted(trial.configuration["x"] for trial in ledger.trials) == [1.0, 2.0, 3.0]


@dataclass
class Lossy:
    """Loses the first `losses` attempts of every rung of every trial; notes when attempts came."""

    losses: int
    kind: FailureKind = FailureKind.KILLED
    seen: list[tuple[int, int, float]] = field(default_factory=list)

    def __call__(self, assignment: Assignment) -> Outcome | None:
        self.seen.append((assignment.trial, assignment.attempt, time.time()))
        if assignment.attempt > self.losses:
            return result_at(assignment)
        return Outcome("k", 1, None, self.kind, "the node went away")


def test_lost_attempts_are_tried_again_after_a_while(run: SearchRun) -> None:
    lossy = Lossy(losses=2)
    search = simulated_search(retries=Retries(attempts=3, backoff_s=0.1))
    ledger = searched(run, search, SimulatedRunner(lossy), workers=2, trials=3)
    assert [(t.state, t.starts) for t in ledger.trials] == [(TrialState.DONE, 3)] * 3
    for number in range(3):
        times = [at for trial, _, at in lossy.seen if trial == number]
        assert times[1] - times[0] >= 0.1
        assert times[2] - times[1] >= 0.2


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [(FailureKind.KILLED, 2), (FailureKind.LOST_NODE, 2), (FailureKind.HUNG, 1), (FailureKind.BAD_CONFIGURATION, 1)],
)
def test_attempts_are_bounded_and_only_for_what_can_succeed(run: SearchRun, kind: FailureKind, attempts: int) -> None:
    search = simulated_search(retries=Retries(attempts=2, backoff_s=0.0))
    ledger = searched(run, search, SimulatedRunner(Lossy(losses=9, kind=kind)), workers=1, trials=1)
    assert (ledger.trials[0].failure, ledger.trials[0].starts) == (kind, attempts)


def test_interrupted_back_off_goes_on_where_it_was(run: SearchRun) -> None:
    search = simulated_search(retries=Retries(attempts=2, backoff_s=0.3))

    def stop(ledger: Ledger) -> None:
        if ledger.in_state(TrialState.WAITING):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(run, search, lambda: SimulatedRunner(Lossy(losses=1)), limits(1, 1), stop)
    lossy = Lossy(losses=1)
    ledger = searched(run, search, SimulatedRunner(lossy), workers=1, trials=1)
    assert [attempt for _, attempt, _ in lossy.seen] == [2]
    assert ledger.trials[0].state is TrialState.DONE


def halving_search(**changes: Any) -> Search:
    return simulated_search(rungs=(10, 30, 90), promotion=AsynchronousHalving(factor=3), **changes)


def test_rungs_go_on_with_the_best_and_give_up_the_rest(run: SearchRun) -> None:
    runner = SimulatedRunner()
    ledger = searched(run, halving_search(), runner, workers=3, trials=27)
    by_rung = [[a.trial for a in runner.submitted if a.rung == rung] for rung in range(3)]
    assert len(by_rung[0]) == 27
    assert len(by_rung[1]) < 18
    assert 1 <= len(by_rung[2]) < 7
    assert {a.budget for a in runner.submitted if a.rung == 1} == {30}
    assert set(by_rung[2]) <= set(by_rung[1]) <= set(by_rung[0])
    assert {trial.state for trial in ledger.trials} == {TrialState.DONE, TrialState.STOPPED}
    best = max(ledger.trials, key=lambda trial: trial.reports[0].objectives)
    assert best.state is TrialState.DONE, "the best at the lowest rung goes all the way"
    table = campaign_table(run.campaign)
    assert table.loc[table["job_status"] == "STOPPED", "objective"].notna().all()
    assert set(table["m:budget"]) <= {10, 30, 90}
    assert (table.loc[table["m:rung"] == 2, "m:wall_seconds"] == 6.0).all(), "the cost of all rungs"


def test_rungs_survive_a_killed_driver(run: SearchRun) -> None:
    promoted: list[int] = []

    def stop(ledger: Ledger) -> None:
        if sum(trial.rung > 0 for trial in ledger.trials) >= 2 and ledger.in_state(TrialState.PAUSED):
            promoted.extend(trial.number for trial in ledger.trials if trial.rung > 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(run, halving_search(), lambda: SimulatedRunner(), limits(3, 15), stop)
    done = {(t.number, r.rung) for t in Ledger(run.journal).trials for r in t.reports}
    runner = SimulatedRunner()
    ledger = searched(run, halving_search(), runner, workers=3, trials=15)
    assert not {(a.trial, a.rung) for a in runner.submitted} & done
    assert all(trial.state.final for trial in ledger.trials)
    assert promoted


def test_small_search_ends_with_a_trial_of_the_full_budget(run: SearchRun) -> None:
    ledger = searched(run, halving_search(), SimulatedRunner(), workers=1, trials=2)
    assert sorted(trial.state.value for trial in ledger.trials) == ["DONE", "STOPPED"]


def test_trials_are_sized_by_their_configuration(run: SearchRun) -> None:
    search = simulated_search(size=lambda configuration: JobSize(num_nodes=3 if configuration["kind"] == "a" else 1))
    runner = SimulatedRunner(nodes=8)
    searched(run, search, runner, workers=4, trials=20)
    assert {a.size.num_nodes for a in runner.submitted} == {1, 3}
    assert runner.most <= 4 + 2, "a trial begins where at least one node is free"


def test_number_of_trials_follows_the_nodes_that_are_there(run: SearchRun) -> None:
    runner = SimulatedRunner(nodes=0)
    seen: list[int] = []

    def change(ledger: Ledger) -> None:
        seen.append(len(runner.running))
        if len(seen) == 3:
            runner.there = 5
        if len(seen) == 6:
            runner.there = 2

    run_search(run, simulated_search(), lambda: runner, limits(8, 20), change)
    assert seen[:3] == [0, 0, 0]
    assert seen[3] == 5
    assert set(seen[9:-2]) == {2}


def test_limits_can_be_changed_while_it_runs(run: SearchRun) -> None:
    runner = SimulatedRunner(nodes=50)
    now = [1, 6]
    most: list[int] = []

    def change(ledger: Ledger) -> None:
        most.append(len(runner.running))
        if len(ledger.ended) == 2:
            now[:] = [4, 9]

    ledger = run_search(run, simulated_search(), lambda: runner, lambda: Limits(now[0], now[1]), change)
    assert len(ledger.trials) == 9
    assert (most[0], max(most)) == (1, 4)


def test_wide_search_keeps_some_trials_waiting_at_the_runner(run: SearchRun) -> None:
    runner = SimulatedRunner(nodes=20)
    searched(run, simulated_search(), runner, workers=20, trials=60)
    assert 21 <= runner.most <= 20 + 1 + 1.5 * 6, "at most 60 ends in ten seconds"
    assert [Limits(n, 1).queue_of(n, 0.0) for n in (1, 15, 16, 100)] == [0, 0, 1, 3]
    assert [Limits(n, 1).queue_of(n, 10.0) for n in (15, 100)] == [0, 18]
    assert Limits(100, 1, queued=7).queue_of(100, 10.0) == 7


def test_threads_run_functions_and_their_failures_have_kinds(run: SearchRun) -> None:
    def evaluate(configuration: dict[str, object], budget: int | None) -> dict[str, object]:
        x = float(str(configuration["x"]))
        if x > 8:
            time.sleep(30)
        if x < 2:
            raise DivergedError("loss is NaN")
        return {"scores": {"vi": x}}

    runner = ThreadRunner("s", evaluate, 4)
    begin = time.monotonic()
    ledger = searched(run, simulated_search(time_limit_s=0.3), runner, workers=4, trials=24)
    assert time.monotonic() - begin < 20
    for trial in ledger.trials:
        x = trial.configuration["x"]
        assert trial.failure is (FailureKind.HUNG if x > 8 else FailureKind.DIVERGED if x < 2 else None)
    assert {trial.failure for trial in ledger.trials} == {FailureKind.HUNG, FailureKind.DIVERGED, None}
    assert campaign_table(run.campaign)["m:wall_seconds"].max() < 1.0


@pytest.mark.parametrize(("workers", "trials", "word"), [(0, 1, "workers"), (1, 0, "trials"), (-2, 3, "workers")])
def test_numbers_that_are_not_positive_are_refused(run: SearchRun, workers: int, trials: int, word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        searched(run, simulated_search(), SimulatedRunner(), workers, trials)
    assert not run.folder.exists()


def test_campaign_without_data_is_refused(tmp_path: Path) -> None:
    campaign = create_campaign(tmp_path, CampaignPlan(name="empty"))
    with pytest.raises(StateError, match="not prepared"):
        searched(SearchRun(campaign, "s"), simulated_search(), SimulatedRunner(), 1, 1)


def with_result(**values: object) -> Callable[[Assignment], Outcome]:
    def run(assignment: Assignment) -> Outcome:
        record = record_of(1.0)
        return Outcome("k", 1, {**record, "result": {**record["result"], **values}})

    return run


def test_result_that_is_no_json_is_written_down_as_json(run: SearchRun) -> None:
    runner = SimulatedRunner(with_result(loss=float("nan"), volume=np.float32(2.0), place=Path("a")))
    ledger = searched(run, simulated_search(), runner, workers=2, trials=3)
    assert [trial.state for trial in ledger.trials] == [TrialState.DONE] * 3
    outcome = Ledger(run.journal).trials[0].outcome
    assert outcome is not None
    assert outcome.record is not None
    result = outcome.record["result"]
    assert (result["loss"], result["volume"], result["place"]) == (None, 2.0, "a")


def test_result_with_an_objective_that_is_nan_ends_its_trial_alone(run: SearchRun) -> None:
    runner = SimulatedRunner(with_result(scores={"vi": float("nan")}))
    ledger = searched(run, simulated_search(), runner, workers=2, trials=3)
    assert [trial.failure for trial in ledger.trials] == [FailureKind.BUG] * 3
    assert "not finite" in str(Ledger(run.journal).trials[0].outcome)


def broken_size(configuration: Configuration) -> JobSize:
    return JobSize({"a": 0, "b": 1}[configuration["kind"]])


def size_of_no_kind(configuration: Configuration) -> JobSize:
    return 2 if configuration["kind"] == "a" else JobSize()  # type: ignore[return-value]


@pytest.mark.parametrize("size", [broken_size, size_of_no_kind])
def test_trial_without_a_size_fails_alone(run: SearchRun, size: Callable[[Configuration], JobSize]) -> None:
    runner = SimulatedRunner()
    ledger = searched(run, simulated_search(size=size), runner, workers=3, trials=12)
    found = {(trial.configuration["kind"], trial.failure) for trial in ledger.trials}
    assert found == {("a", FailureKind.BAD_CONFIGURATION), ("b", None)}
    assert {assignment.configuration["kind"] for assignment in runner.submitted} == {"b"}


def test_table_that_cannot_be_written_ends_no_search(run: SearchRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(campaign: object) -> None:
        raise DataError("results.parquet: no space left")

    monkeypatch.setattr("ensemble.search.run.write_table", full)
    with pytest.raises(DataError, match="no space"):
        searched(run, simulated_search(), SimulatedRunner(), workers=2, trials=5)
    assert [trial.state for trial in Ledger(run.journal).trials] == [TrialState.DONE] * 5


def test_table_has_choices_that_are_a_truth_value_or_something_else() -> None:
    table = pd.DataFrame({"p:scaling": [True, "auto", None], "p:rate": [False, 0.5, 2], "p:plain": [True, False, None]})
    found = pd.read_parquet(io.BytesIO(table_bytes(table)))
    assert list(found["p:scaling"])[:2] == ["True", "auto"]
    assert list(found["p:rate"]) == ["False", "0.5", "2"]
    assert list(found["p:plain"])[:2] == [True, False]


def test_promotion_rule_that_takes_long_is_asked_less_often(run: SearchRun) -> None:
    class Slow(AsynchronousHalving):
        asked = 0

        def decide(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
            type(self).asked += 1
            time.sleep(0.02)
            return super().decide(trials, rungs)

    search = simulated_search(rungs=(10, 30, 90), promotion=Slow(factor=3))
    ledger = searched(run, search, SimulatedRunner(), workers=3, trials=27)
    assert Slow.asked < ledger.reports
    assert {trial.state for trial in ledger.trials} == {TrialState.DONE, TrialState.STOPPED}
    assert sum(trial.rung > 0 for trial in ledger.trials) >= 9


def test_search_that_is_given_more_trials_goes_on_with_those_that_its_end_stopped(run: SearchRun) -> None:
    def earlier_is_better(assignment: Assignment) -> Outcome:
        return Outcome("k", 1, record_of(float(assignment.trial)))

    first = searched(run, halving_search(), SimulatedRunner(earlier_is_better), workers=1, trials=3)
    assert [trial.state.value for trial in first.trials] == ["DONE", "STOPPED", "STOPPED"]
    runner = SimulatedRunner(earlier_is_better)
    ledger = searched(run, halving_search(), runner, workers=2, trials=12)
    assert {(a.trial, a.rung) for a in runner.submitted if a.trial < 3} == {(1, 1), (2, 1)}, "of the best third"
    assert all(trial.state.final for trial in ledger.trials)
    assert ledger.trials == Ledger(run.journal).trials
    again = SimulatedRunner(earlier_is_better)
    assert searched(run, halving_search(), again, workers=2, trials=12).trials == ledger.trials
    assert again.submitted == []
