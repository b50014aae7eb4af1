"""The DeepHyper Evaluator for users' own scripts, with simulated jobs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import FailureKind, ParameterError
from ensemble.jobs import Outcome, Task
from ensemble.search import events
from ensemble.search.definition import Configuration, JobSize, TrialRequest
from ensemble.search.evaluator import BalsamEvaluator
from ensemble.search.ledger import TrialState
from ensemble.search.run import SearchRun
from ensemble.search.table import campaign_table
from tests.ensemble.search.simulated import (
    Point,
    SimulatedJobs,
    prepared_campaign,
    record_of,
    result_of,
    simulated_search,
)


@pytest.fixture
def run(tmp_path: Path) -> SearchRun:
    return SearchRun(prepared_campaign(tmp_path), "own")


def search_with_deephyper(run: SearchRun, jobs: SimulatedJobs, log: Path, evaluations: int, **changes: Any) -> Any:
    """What a user's script does."""
    from deephyper.hpo import CBO

    search = simulated_search(low=-5.0, **changes)
    evaluator = BalsamEvaluator(run, search, jobs, num_workers=3)
    first = [{"x": -1.0, "kind": "a"}]
    problem = search.problem_for(run.data())
    return CBO(
        problem, evaluator, random_state=1, log_dir=str(log), acq_optimizer="sampling", initial_points=first
    ).search(max_evals=evaluations)


def test_evaluator_serves_a_users_own_deephyper_search(run: SearchRun, tmp_path: Path) -> None:
    jobs = SimulatedJobs()
    results = search_with_deephyper(run, jobs, tmp_path / "log", 10)
    assert len(results) >= 10
    assert "F_diverged" in set(results["objective"].astype(str))
    assert len(jobs.submitted) == len({task.key for task in jobs.submitted})
    assert jobs.submitted[0].tags == {"search": "own", "trial": "0"}
    table = campaign_table(run.campaign)
    assert set(table["m:failure"].dropna()) == {"diverged"}


def test_script_run_again_submits_nothing_that_is_known(run: SearchRun, tmp_path: Path) -> None:
    search_with_deephyper(run, SimulatedJobs(), tmp_path / "a", 6)
    known = {str(trial.configuration) for trial in run.ledger().trials}
    jobs = SimulatedJobs()
    search_with_deephyper(run, jobs, tmp_path / "b", 6)  # the same seed: DeepHyper proposes the same points again
    assert not known & {str({k: t.parameters[k] for k in ("x", "kind")}) for t in jobs.submitted}
    assert len({task.key for task in jobs.submitted}) == len(jobs.submitted)


def test_trials_have_the_budget_of_the_last_rung(run: SearchRun, tmp_path: Path) -> None:
    jobs = SimulatedJobs()
    search_with_deephyper(run, jobs, tmp_path / "log", 4, rungs=(10, 30))
    assert {task.parameters["budget"] for task in jobs.submitted} == {30}
    assert {trial.state for trial in run.ledger().trials} <= {TrialState.DONE, TrialState.FAILED}


def test_configuration_that_its_stage_refuses_costs_no_job(run: SearchRun, tmp_path: Path) -> None:
    def refuse(trial: TrialRequest) -> Point:
        raise ParameterError("depth 0: expected at least 1")

    jobs = SimulatedJobs()
    results = search_with_deephyper(run, jobs, tmp_path / "log", 3, parameters=refuse)
    assert jobs.submitted == []
    assert set(results["objective"]) == {"F_bad_configuration"}
    assert {trial.failure for trial in run.ledger().trials} == {FailureKind.BAD_CONFIGURATION}


def test_configuration_that_is_asked_for_twice_is_evaluated_once(run: SearchRun) -> None:
    def slow(task: Task) -> Outcome:
        time.sleep(0.1)
        return result_of(task)

    jobs = SimulatedJobs(slow)
    evaluator = BalsamEvaluator(run, simulated_search(), jobs, num_workers=2)
    evaluator.submit([{"x": 1.0, "kind": "a"}, {"x": 1.0, "kind": "a"}])
    assert len(evaluator.gather("ALL")) == 2
    assert len(jobs.submitted) == 1
    assert [(trial.state, trial.objective) for trial in run.ledger().trials] == [(TrialState.DONE, -5.0)]


def test_evaluator_goes_on_with_a_trial_that_waits_at_a_rung(run: SearchRun) -> None:
    search = simulated_search(rungs=(10, 30))
    BalsamEvaluator(run, search, SimulatedJobs())
    configuration = {"x": 1.0, "kind": "a"}
    ledger = run.ledger()
    ledger.suggest([configuration])
    ledger.append([events.submitted(0), events.reported(0, 0, (-9.0,), Outcome("k", 1, record_of(9.0)))])
    evaluator = BalsamEvaluator(run, search, SimulatedJobs(), num_workers=1)
    evaluator.submit([configuration])
    evaluator.gather("ALL")
    assert [(trial.state, trial.objective) for trial in run.ledger().trials] == [(TrialState.DONE, -5.0)]


def test_error_in_the_size_of_a_trial_is_its_own(run: SearchRun) -> None:
    def size(configuration: Configuration) -> JobSize:
        raise KeyError("nodes")

    evaluator = BalsamEvaluator(run, simulated_search(size=size), SimulatedJobs(), num_workers=1)
    evaluator.submit([{"x": 1.0, "kind": "a"}])
    evaluator.gather("ALL")
    assert [trial.failure for trial in run.ledger().trials] == [FailureKind.BUG]
