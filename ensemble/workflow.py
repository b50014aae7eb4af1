"""Run a list of tasks as Balsam jobs and wait for all: the form of every step but the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any, Protocol

from apps.core.errors import EnsembleError, FailureKind, NoRoomError, UserError
from ensemble.jobs import Outcome, Task


class Jobs(Protocol):
    """Who does tasks: CampaignJobs on Balsam, LocalJobs on this machine.  What the methods do is said there.

    Of two tasks the one that is submitted later has an outcome with the greater job id: by that a driver tells whether
    what a task has made was there when another one began.
    """

    def submit(self, task: Task) -> Future[Outcome]: ...

    def outcome(self, key: str) -> Outcome | None: ...

    def forget(self, keys: Iterable[str]) -> None: ...

    def workdir(self, key: str) -> Path: ...


class TaskFailedError(EnsembleError):
    """A task of a workflow ended without a result, for no fault of its parameters or data."""


class TaskRejectedError(UserError):
    """A task's parameters or data cannot work; the stage's own message says why."""


def run_tasks(
    jobs: Jobs, tasks: Sequence[Task], on_progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Do every task, and return key -> record (what the stage wrote to result.json).

    In `tasks` what a task waits for comes before it.
    Tasks that finished in an earlier run of the same campaign are not run again; those that failed then are.
    Raises TaskRejectedError or TaskFailedError at the first failure, with the stage's message; jobs that wait for the
    failed one are taken out of Balsam, jobs that run go on and are found again by the next call.
    """
    jobs.forget(to_do_again(jobs, tasks))
    futures = {jobs.submit(task): task for task in tasks}
    pending: set[Future[Outcome]] = set(futures)
    while pending:
        done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in done:
            outcome = future.result()
            if outcome.failure is not None:
                again = to_do_again(jobs, tasks)
                jobs.forget(key for key in again if key != outcome.key)
                raise failure_of(futures[future].stage, outcome)
        if on_progress is not None:
            on_progress(len(tasks) - len(pending), len(tasks))
    return {task.key: _record(future) for future, task in futures.items()}


def to_do_again(jobs: Jobs, tasks: Sequence[Task]) -> list[str]:
    """Keys of the tasks that failed or whose output is gone, and of all that wait for them directly or not.

    In `tasks` what a task waits for comes before it.
    """
    again: list[str] = []
    for task in tasks:
        outcome = jobs.outcome(task.key)
        gone = outcome is not None and not all(Path(output).exists() for output in task.outputs)
        failed = outcome is not None and outcome.failure is not None
        if failed or gone or set(again) & set(task.after):
            again.append(task.key)
    return again


def failure_of(stage: str, outcome: Outcome) -> EnsembleError:
    """The error that tells a user how a task failed."""
    text = f"{stage} (job {outcome.job_id}, {outcome.key}): {outcome.message}"
    if outcome.failure is FailureKind.NO_ROOM:
        return NoRoomError(f"{text}; what is finished stays: make room, and run the same command again")
    if outcome.failure is FailureKind.BAD_CONFIGURATION:
        return TaskRejectedError(text)
    return TaskFailedError(f"{text} [{outcome.failure}]")


def _record(future: Future[Outcome]) -> dict[str, Any]:
    record = future.result().record
    assert record is not None  # failures were raised above
    return record
