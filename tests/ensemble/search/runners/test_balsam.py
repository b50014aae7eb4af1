"""The runner of Balsam jobs where Balsam is simulated; tests/ensemble/test_jobs_running.py has it on a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from apps.core.errors import FailureKind, ParameterError, TransientError
from apps.simulation.stage import SimulationParameters
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import JobSize, Search, TrialRequest
from ensemble.search.run import SearchRun
from ensemble.search.runners.balsam import BalsamRunner, balsam_runner
from ensemble.search.runners.contract import Assignment
from ensemble.sites import Site
from tests.ensemble.samples import campaign_data
from tests.ensemble.search.simulated import prepared_campaign


class Jobs(CampaignJobs):
    """Keeps tasks and their futures; what happens to them is each test's to say."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}
        self.futures: dict[str, Future[Outcome]] = {}
        self.looked_for: list[str] = []

    def submit(self, task: Task) -> Future[Outcome]:
        self.tasks[task.key] = task
        return self.futures.setdefault(task.key, Future())

    def find(self, keys: Iterable[str]) -> None:
        self.looked_for += keys

    def end(self, key: str) -> None:
        self.futures[key].set_result(Outcome(key, 5, {"result": {}}))


def parameters(request: TrialRequest) -> SimulationParameters:
    seconds = request.configuration["seconds"]
    if seconds > 100:
        raise ZeroDivisionError("of the search file")
    return SimulationParameters(seconds=seconds, output=request.output, objectives=(float(request.budget or 0),))


SEARCH = Search(lambda data: None, parameters, lambda result: result["objectives"][0], stage="simulation")


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def runner_of(jobs: CampaignJobs, nodes: Iterable[int | Exception] = (), most: int | None = None) -> BalsamRunner:
    answers = iter(nodes)

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return BalsamRunner(jobs, SEARCH, campaign_data(), Path("/trials"), 3, "s", ask, most)


def key(trial: int, rung: int = 0, attempt: int = 1) -> str:
    return f"search/s/trial-{trial:04d}/rung-{rung}/attempt-{attempt}"


def test_an_assignment_becomes_a_task(jobs: Jobs) -> None:
    size = JobSize(num_nodes=2, ranks_per_node=4)
    runner_of(jobs).submit([Assignment(7, 1, 2, {"seconds": 1.5}, 40, size, 90.0)])
    assert jobs.tasks[key(7, 1, 2)] == Task(
        key(7, 1, 2),
        "simulation",
        SimulationParameters(seconds=1.5, output="/trials/0007", objectives=(40.0,)).to_dict(),
        tags={"search": "s", "trial": "7"},
        num_nodes=2,
        ranks_per_node=4,
        time_limit_s=90.0,
        max_attempts=1,
    )


def test_trials_of_another_driver_are_looked_for_before_they_are_followed(jobs: Jobs) -> None:
    runner = runner_of(jobs)
    taken = Assignment(3, 1, 2, {"seconds": 1.0})
    runner.take_over([taken])
    assert jobs.looked_for == [key(3, 1, 2)]
    jobs.end(key(3, 1, 2))
    assert [report.assignment for report in runner.wait(1.0)] == [taken]
    runner.submit([Assignment(4, 0, 1, {"seconds": 1.0})])
    assert len(jobs.looked_for) == 1


def test_every_end_is_reported_once_and_waited_for(jobs: Jobs) -> None:
    runner = runner_of(jobs)
    assignments = [Assignment(trial, 0, 1, {"seconds": trial}) for trial in range(3)]
    runner.submit(assignments)
    assert runner.wait(0) == []
    jobs.end(key(2))
    jobs.end(key(0))
    reports = runner.wait(10)
    assert [report.assignment for report in reports] == [assignments[2], assignments[0]]
    assert reports[0].outcome == Outcome(key(2), 5, {"result": {}})
    threading.Timer(0.05, jobs.end, [key(1)]).start()
    begin = time.monotonic()
    assert [report.assignment.trial for report in runner.wait(10)] == [1]
    assert time.monotonic() - begin < 5
    assert runner.wait(0.01) == []
    runner.close()


def test_what_cannot_become_a_job_is_reported_at_once(jobs: Jobs) -> None:
    runner = runner_of(jobs, most=2)
    runner.submit(
        [
            Assignment(0, 0, 1, {"seconds": -1.0}),
            Assignment(1, 0, 1, {"seconds": 101.0}),
            Assignment(2, 0, 1, {"seconds": 1.0}, size=JobSize(num_nodes=3)),
            Assignment(3, 0, 1, {"seconds": 1.0}, time_limit_s=-1.0),
        ]
    )
    outcomes = [report.outcome for report in runner.wait(0)]
    bad, bug = FailureKind.BAD_CONFIGURATION, FailureKind.BUG
    assert [outcome.failure for outcome in outcomes] == [bad, bug, bad, bad]
    assert "there are 2 nodes at most" in outcomes[2].message
    assert [outcome.key for outcome in outcomes] == [key(trial) for trial in range(4)]
    assert jobs.tasks == {}


def test_a_lost_service_is_raised_after_what_had_ended(jobs: Jobs) -> None:
    runner = runner_of(jobs)
    runner.submit([Assignment(trial, 0, 1, {"seconds": 1.0}) for trial in range(3)])
    jobs.futures[key(0)].set_exception(TransientError("lost"))
    jobs.end(key(1))
    jobs.futures[key(2)].set_exception(TransientError("lost too"))
    assert [report.assignment.trial for report in runner.wait(10)] == [1]
    with pytest.raises(TransientError, match=r"^lost$"):
        runner.wait(10)
    assert runner.wait(0) == []


def test_nodes_are_asked_now_and_then_and_known_through_an_outage(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("ensemble.search.runners.balsam.time.monotonic", lambda: now[0])
    runner = runner_of(jobs, [4, TransientError("lost"), 9])
    found = []
    for now[0] in (0.0, 1.0, 3.0, 4.0, 6.0):
        found.append(runner.nodes())
    assert found == [4, 4, 4, 4, 9]


def test_other_errors_of_asking_are_raised(jobs: Jobs) -> None:
    with pytest.raises(ParameterError):
        runner_of(jobs, [ParameterError("no such site")]).nodes()


def test_search_whose_every_trial_is_too_large_is_refused(tmp_path: Path, jobs: Jobs) -> None:
    run, site = SearchRun(prepared_campaign(tmp_path), "s"), cast(Site, SimpleNamespace(nodes=4))
    large = replace(SEARCH, size=JobSize(num_nodes=3))
    with pytest.raises(ParameterError, match=r"num_nodes=3.*2 nodes at most.*--workers"):
        balsam_runner(run, large, jobs, site, most_nodes=2)
    balsam_runner(run, large, jobs, site)
    balsam_runner(run, replace(SEARCH, size=lambda configuration: JobSize(3)), jobs, site, most_nodes=2)
