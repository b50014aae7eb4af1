"""Trials through DeepHyper's evaluators: every evaluator that is installed, with real processes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apps.core.errors import DataError, FailureKind, ParameterError
from apps.simulation.stage import Fate, SimulationParameters
from ensemble.search.definition import JobSize, Retries, Search, TrialRequest
from ensemble.search.driver import Driver, Limits
from ensemble.search.ledger import Ledger
from ensemble.search.optimizers import make_optimizer
from ensemble.search.promotion import AsynchronousHalving
from ensemble.search.runners.contract import Assignment, TrialParameters
from ensemble.search.runners.deephyper import EVALUATORS, DeepHyperRunner, open_evaluator
from ensemble.search.seats import Seat
from ensemble.search.suggestions import InlineSuggestions
from tests.ensemble.samples import campaign_data
from tests.ensemble.search.runners.simulated_trials import (
    ENDS,
    all_reports,
    assignment,
    run_every_fate,
    runner_in,
    stages_below,
)

ROOT = Path(__file__).resolve().parents[4]
MPIEXEC = Path(sys.executable).with_name("mpiexec")

ray_is_installed = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
mpi_is_installed = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not MPIEXEC.exists(), reason="mpi4py is not installed"
)


@pytest.mark.parametrize("name", ["serial", "thread", "process", pytest.param("ray", marks=ray_is_installed)])
def test_every_fate_is_reported_by_its_name(name: str, tmp_path: Path) -> None:
    with open_evaluator(name, workers=2) as evaluator:
        runner = runner_in(tmp_path, evaluator)
        try:
            assert runner.nodes() == 2
            assert run_every_fate(runner) == ENDS
            assert runner.wait(0.0) == []
            runner.submit([assignment(8, "hang")])
            assert runner.wait(0.3) == []
        finally:
            runner.close()
        runner.close()
    assert stages_below() == []


@mpi_is_installed
def test_ranks_of_mpi_run_every_fate(tmp_path: Path) -> None:
    """Rank 0 drives two workers; when it is through, all ranks end, with its exit code."""
    command = [str(MPIEXEC), "-n", "3", sys.executable, "-m", "tests.ensemble.search.runners.simulated_trials"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == {"nodes": 2, "kinds": ENDS}


def test_the_test_knows_every_evaluator() -> None:
    assert list(EVALUATORS) == ["serial", "thread", "process", "ray", "mpicomm"]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeepHyperRunner]:
    with open_evaluator("thread", workers=2) as evaluator:
        runner = runner_in(tmp_path_factory.mktemp("runner"), evaluator)
        yield runner
        runner.close()


def test_a_report_holds_what_the_stage_gave(runner: DeepHyperRunner) -> None:
    given = assignment(3, budget=40)
    runner.submit([given])
    report = all_reports(runner, 1)[3]
    assert report.assignment == given
    record = report.outcome.record
    assert record is not None
    assert record["result"] == {"objectives": [3 / 8, 40.0], "seconds": 0.1}
    assert record["cost"]["end"] - record["cost"]["start"] >= 0.1
    assert report.outcome.attempts == 1


def test_more_than_there_are_workers_wait_for_one(runner: DeepHyperRunner) -> None:
    runner.submit([assignment(10 + n, seconds=0.0) for n in range(5)])
    assert set(all_reports(runner, 5)) == {10, 11, 12, 13, 14}


def test_an_error_in_the_search_file_is_a_bug_of_that_trial(runner: DeepHyperRunner) -> None:
    runner.submit([Assignment(4, 0, 1, {"fate": "ok"}), assignment(5, seconds=0.0)])
    reports = all_reports(runner, 2)
    assert reports[4].outcome.failure == FailureKind.BUG
    assert "seconds" in reports[4].outcome.message
    assert reports[5].outcome.failure is None


def test_a_trial_of_several_nodes_is_refused_before_any_is_started(runner: DeepHyperRunner) -> None:
    with pytest.raises(ParameterError, match=r"trial 7.*num_nodes=2.*Balsam"):
        runner.submit([assignment(6), assignment(7, size=JobSize(num_nodes=2))])
    assert runner.wait(0.3) == []


def test_a_worker_that_dies_takes_its_trial_and_no_later_one(tmp_path: Path) -> None:
    with open_evaluator("process", workers=1) as evaluator:
        runner = runner_in(tmp_path, evaluator)
        try:
            runner.submit([assignment(0, "hang")])
            last = time.monotonic() + 30
            while not (stages := stages_below()) and time.monotonic() < last:
                time.sleep(0.02)
            worker = stages[0].parent()
            assert worker is not None
            worker.kill()
            lost = all_reports(runner, 1)[0].outcome
            assert lost.failure == FailureKind.KILLED
            assert "worker" in lost.message
            runner.submit([assignment(1, seconds=0.0)])
            assert all_reports(runner, 1)[1].outcome.failure is None
            psutil.wait_procs(stages, timeout=10)
            assert not stages[0].is_running()
        finally:
            runner.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("in the way")
    with open_evaluator("serial", workers=1) as evaluator, pytest.raises(DataError, match="work: cannot be made"):
        runner_in(tmp_path, evaluator)


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("slurm", 1, "'slurm': expected one of serial, thread, process, ray, mpicomm"),
        ("thread", 0, "workers = 0"),
        ("mpicomm", 2, "the only rank.*mpiexec -n N"),
    ],
)
def test_what_cannot_work_is_refused(name: str, workers: int, message: str) -> None:
    with pytest.raises(ParameterError, match=message), open_evaluator(name, workers):
        pass


def test_a_driver_brings_a_search_through(tmp_path: Path) -> None:
    """Two rungs, a trial that diverges, and one whose first process the machine ends."""
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter([0, 1, 2, 3], "x")
    fates: dict[int, Fate] = {0: "killed", 1: "diverged"}

    def parameters(request: TrialRequest) -> SimulationParameters:
        x, budget = request.configuration["x"], float(request.budget or 0)
        return SimulationParameters(
            seconds=0.0,
            fate=fates.get(x, "ok"),
            objectives=(x * budget,),
            output=request.output,
        )

    search = Search(
        problem=problem,
        parameters=parameters,
        objective=lambda result: float(result["objectives"][0]),
        stage="simulation",
        rungs=(1, 3),
        promotion=AsynchronousHalving(factor=3),
        retries=Retries(attempts=2, backoff_s=0.0),
    )
    ledger = Ledger(tmp_path / "journal.jsonl")
    with open_evaluator("thread", workers=2) as evaluator:
        assert evaluator is not None
        trials = TrialParameters(search, campaign_data(), tmp_path / "trials", seed=0)
        runner = DeepHyperRunner(evaluator, trials, search.stage, "quick", tmp_path / "work")
        suggestions = InlineSuggestions(make_optimizer("grid", problem))
        try:
            Driver(search, ledger, suggestions, runner, lambda: Limits(workers=2, trials=9), Seat(0, tmp_path)).run()
        finally:
            runner.close()
    ends = {trial.configuration["x"]: trial for trial in ledger.trials}
    assert ends.keys() == {0, 1, 2, 3}
    assert ends[1].failure == FailureKind.DIVERGED
    assert ends[0].reports[0].objectives == (0.0,)
    assert ends[0].starts > len(ends[0].reports)
    assert ends[3].objectives == (9.0,)
    assert (tmp_path / "work" / "search" / "quick" / f"trial-{ends[3].number:04d}" / "rung-1" / "attempt-1").is_dir()
