"""Tasks as processes of this machine: their order, their ends, and what is not run again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import FailureKind
from ensemble.jobs import Task
from ensemble.local_jobs import LocalJobs
from ensemble.workflow import TaskFailedError, TaskRejectedError, run_tasks
from tests.ensemble.search.runners.simulated_trials import stages_below


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    with LocalJobs(tmp_path / "jobs") as jobs:
        yield jobs


def task(key: str, after: tuple[str, ...] = (), **parameters: Any) -> Task:
    return Task(key, "simulation", {"seconds": 0.0, "objectives": [1.0], **parameters}, after=after)


def test_tasks_run_after_those_that_they_wait_for(jobs: LocalJobs) -> None:
    seen: list[tuple[int, int]] = []
    records = run_tasks(
        jobs, [task("a/b", seconds=0.2), task("c", after=("a/b",))], lambda done, total: seen.append((done, total))
    )
    ended = (jobs.workdir("a/b") / "result.json").stat().st_mtime
    assert (jobs.workdir("c") / "parameters.json").stat().st_mtime >= ended
    assert records["c"]["result"]["objectives"] == [1.0]
    assert seen[-1] == (2, 2)
    assert (jobs.workdir("a/b") / "result.json").is_file()


def test_what_has_a_result_is_not_run_again_and_what_failed_is(tmp_path: Path) -> None:
    output = str(tmp_path / "output")
    tasks = [task("a"), task("b", fate="killed", output=output)]
    with LocalJobs(tmp_path / "jobs") as jobs, pytest.raises(TaskFailedError, match=r"b.*SIGKILL"):
        run_tasks(jobs, tasks)
    with LocalJobs(tmp_path / "jobs") as jobs:
        again = run_tasks(jobs, tasks)
    with LocalJobs(tmp_path / "jobs") as jobs:
        assert run_tasks(jobs, tasks) == again


def test_what_lost_its_output_is_run_again_with_what_waits_for_it(tmp_path: Path) -> None:
    output = tmp_path / "made"
    output.touch()
    tasks = [replace(task("a"), outputs=(str(output),)), task("b", after=("a",)), task("c")]
    made = []
    for _ in range(3):
        with LocalJobs(tmp_path / "jobs") as jobs:
            run_tasks(jobs, tasks)
            made.append([(jobs.workdir(t.key) / "result.json").stat().st_mtime_ns for t in tasks])
        if len(made) == 2:
            output.unlink()
    assert made[1] == made[0]
    assert [now > before for before, now in zip(made[1], made[2], strict=True)] == [True, True, False]


def test_a_failure_is_told_and_what_waits_for_it_is_not_run(jobs: LocalJobs) -> None:
    tasks = [task("a", seconds=-1.0), task("b", after=("a",))]
    with pytest.raises(TaskRejectedError, match="seconds"):
        run_tasks(jobs, tasks)
    assert not jobs.workdir("b").exists()


def test_leaving_ends_what_runs(tmp_path: Path) -> None:
    with LocalJobs(tmp_path / "jobs") as jobs:
        running, waiting = jobs.submit(task("a", fate="hang")), jobs.submit(task("b"))
        last = time.monotonic() + 20
        while not stages_below() and time.monotonic() < last:
            time.sleep(0.02)
        assert jobs.outcome("a") is None
    assert running.result().failure == FailureKind.KILLED
    assert waiting.cancelled()
    assert stages_below() == []
    assert list((tmp_path / "jobs").glob(".stop*")) == []
