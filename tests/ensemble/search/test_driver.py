"""The driver and the evaluator, with simulated jobs (tests/ensemble/test_end_to_end.py runs them on a real Balsam)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from apps.core.errors import FailureKind, ParameterError, StateError
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.jobs import Outcome, Task
from ensemble.search.definition import Search
from ensemble.search.driver import SearchRun, best_trial, run_search
from ensemble.search.evaluator import BalsamEvaluator
from ensemble.search.ledger import Ledger, TrialState
from ensemble.search.table import campaign_table
from tests.ensemble.search.simulated import (
    Point,
    SimulatedJobs,
    parameters,
    prepared_campaign,
    result_of,
    simulated_search,
)


def test_search_runs_every_trial_once_and_finds_a_good_one(tmp_path: Path) -> None:
    campaign, jobs = prepared_campaign(tmp_path), SimulatedJobs()
    ledger = run_search(SearchRun(campaign, "s"), simulated_search(), jobs, workers=4, trials=30)
    assert [trial.state for trial in ledger.trials] == [TrialState.DONE] * 30
    assert len(jobs.submitted) == 30
    assert len({str(trial.configuration) for trial in ledger.trials}) == 30
    best = best_trial(ledger)
    assert best is not None
    assert isinstance(best.objective, float)
    assert best.objective > -1.0
    assert jobs.submitted[0].tags == {"search": "s", "trial": "0"}


def test_failures_are_typed_observations_and_the_search_goes_on(tmp_path: Path) -> None:
    campaign, jobs = prepared_campaign(tmp_path), SimulatedJobs()
    ledger = run_search(SearchRun(campaign, "s"), simulated_search(low=-10.0), jobs, workers=3, trials=16)
    assert len(ledger.final_trials()) == 16
    table = campaign_table(campaign)
    diverged = table["p:x"] < 0
    assert 0 < diverged.sum() < 16
    assert (table.loc[diverged, "m:failure"] == "diverged").all()
    assert table.loc[diverged, "objective"].isna().all()
    assert table.loc[~diverged, "objective"].notna().all()


def test_interrupted_search_repeats_nothing(tmp_path: Path) -> None:
    campaign, run = prepared_campaign(tmp_path), SearchRun(prepared_campaign(tmp_path), "s")
    first = SimulatedJobs()
    seen = []

    def stop_after_five(ledger: Ledger) -> None:
        seen.append(len(ledger.final_trials()))
        if seen[-1] >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(run, simulated_search(), first, workers=2, trials=12, on_change=stop_after_five)
    before = Ledger(run.journal)
    finished = {trial.number for trial in before.final_trials()}
    open_keys = {f"search/s/trial-{trial.number:04d}" for trial in before.open_trials()}
    second = SimulatedJobs()
    ledger = run_search(run, simulated_search(), second, workers=2, trials=12)
    assert len(ledger.final_trials()) == 12
    again = {task.key for task in second.submitted}
    # Open trials are asked for again under the same key (Balsam then finds their jobs); finished ones are not.
    assert open_keys <= again
    assert not again & {f"search/s/trial-{number:04d}" for number in finished}
    assert ledger.trials[: len(before.trials)] != []
    assert [t.configuration for t in ledger.trials[: len(before.trials)]] == [t.configuration for t in before.trials]
    assert len({str(trial.configuration) for trial in ledger.trials}) == 12
    assert campaign.table.is_file()


def test_finished_search_asked_for_again_submits_nothing(tmp_path: Path) -> None:
    run = SearchRun(prepared_campaign(tmp_path), "s")
    run_search(run, simulated_search(), SimulatedJobs(), workers=2, trials=6)
    jobs = SimulatedJobs()
    assert len(run_search(run, simulated_search(), jobs, workers=2, trials=6).final_trials()) == 6
    assert jobs.submitted == []


def broken_objective(result: dict[str, object]) -> float:
    raise KeyError("no such score")


@pytest.mark.parametrize("objective", [broken_objective, lambda result: float("nan")])
def test_broken_objective_is_recorded_as_a_bug(tmp_path: Path, objective: Callable[..., float]) -> None:
    base = simulated_search()
    search = Search(base.problem, base.parameters, objective)
    ledger = run_search(SearchRun(prepared_campaign(tmp_path), "s"), search, SimulatedJobs(), workers=1, trials=2)
    assert [t.outcome.failure for t in ledger.trials if t.outcome] == [FailureKind.BUG, FailureKind.BUG]


def test_configuration_that_its_stage_refuses_costs_no_job(tmp_path: Path) -> None:
    def refuse(configuration: dict[str, object], data: object, output: str, seed: int) -> Point:
        raise ParameterError("depth 0: expected at least 1")

    base = simulated_search()
    jobs = SimulatedJobs()
    search = Search(base.problem, refuse, base.objective)
    ledger = run_search(SearchRun(prepared_campaign(tmp_path), "s"), search, jobs, workers=2, trials=3)
    assert jobs.submitted == []
    assert [t.outcome.failure for t in ledger.trials if t.outcome] == [FailureKind.BAD_CONFIGURATION] * 3


def test_small_space_ends_the_search_early(tmp_path: Path) -> None:
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter([1.0, 2.0, 3.0], "x")
    problem.add_hyperparameter("b", "kind")
    base = simulated_search()
    search = Search(problem, parameters, base.objective, initial_points=2)
    ledger = run_search(SearchRun(prepared_campaign(tmp_path), "s"), search, SimulatedJobs(), workers=2, trials=9)
    assert sorted(trial.configuration["x"] for trial in ledger.trials) == [1.0, 2.0, 3.0]


def test_evaluator_serves_a_users_own_deephyper_search(tmp_path: Path) -> None:
    from deephyper.hpo import CBO

    campaign, jobs, search = prepared_campaign(tmp_path), SimulatedJobs(), simulated_search(low=-5.0)
    run = SearchRun(campaign, "own")
    run.folder.mkdir(parents=True)
    data = campaign.data
    assert data is not None
    evaluator = BalsamEvaluator("own", search, data, run.ledger(), jobs, run.folder, num_workers=3)
    problem = search.problem_for(data)
    results = CBO(
        problem,
        evaluator,
        random_state=1,
        log_dir=str(tmp_path / "log"),
        acq_optimizer="sampling",
        initial_points=[{"x": -1.0, "kind": "a"}],
    ).search(max_evals=10)
    assert len(results) >= 10
    assert "F_diverged" in set(results["objective"].astype(str))
    assert len(jobs.submitted) == len({task.key for task in jobs.submitted})


def test_killed_job_that_ran_out_of_attempts_is_recorded_as_killed(tmp_path: Path) -> None:
    def killed(task: Task) -> Outcome:
        return (
            Outcome(task.key, 1, None, FailureKind.KILLED, "tried 3 times", 3)
            if task.parameters["x"] > 5
            else result_of(task)
        )

    campaign = prepared_campaign(tmp_path)
    run_search(SearchRun(campaign, "s"), simulated_search(), SimulatedJobs(killed), workers=2, trials=10)
    table = campaign_table(campaign)
    lost = table["p:x"] > 5
    assert lost.any()
    assert (table.loc[lost, ["m:failure", "attempt"]] == ["killed", 3]).all().all()


@pytest.mark.parametrize(("workers", "trials", "word"), [(0, 1, "workers"), (1, 0, "trials"), (-2, 3, "workers")])
def test_numbers_that_are_not_positive_are_refused(tmp_path: Path, workers: int, trials: int, word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        run_search(SearchRun(prepared_campaign(tmp_path), "s"), simulated_search(), SimulatedJobs(), workers, trials)


def test_campaign_without_data_is_refused(tmp_path: Path) -> None:
    campaign = create_campaign(tmp_path, CampaignPlan(name="empty"))
    with pytest.raises(StateError, match="not prepared"):
        run_search(SearchRun(campaign, "s"), simulated_search(), SimulatedJobs(), 1, 1)
