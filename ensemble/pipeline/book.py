"""What became of a pipeline's tasks in this run and before it: which have to be done, done again, or taken back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from apps.core.errors import FailureKind
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.ledger import Ledger
from ensemble.workflow import Jobs

# A pipeline that is followed tries a task whose process the machine ended again after so long.
RETRY_S = 60.0
# A task that ends well without its output is started so often in one run before that is a failure.
MOST_STARTS = 2


class PipelineJobs(Jobs, Protocol):
    """Who does a pipeline's tasks."""

    def unfinished(self) -> set[str]:
        """Keys of tasks of the campaign that were submitted, by whomever, and have not ended."""

    def withdraw(self, keys: Iterable[str]) -> set[str]:
        """Take back those of these tasks that have not started; returns those that have, and go on."""


def step_of(key: str) -> str:
    """The step that a task's key belongs to."""
    return key.partition("/")[0]


class TaskBook:
    """Submits tasks, and knows how they ended.

    `steps`: names of the pipeline's steps; other tasks of the campaign are none of ours.  `retry`: whether tasks that
    the machine ended are tried again within this run.
    """

    def __init__(self, jobs: PipelineJobs, folder: Path, steps: Iterable[str], retry: bool) -> None:
        self._jobs, self._steps, self._retry = jobs, frozenset(steps), retry
        self._ledger = Ledger(folder)
        self._futures: dict[str, Future[Outcome]] = {}
        self._starts: dict[str, int] = {}
        self._failed: dict[str, float] = {}  # tasks that failed in this run, and when that was seen
        self._spoilt: set[str] = set()

    def outcome(self, task: Task) -> Outcome | None:
        """How this very task ended; None where it has not, or has to be done again.

        That is where it failed in an earlier run, or where what it made is damaged or not all there, has gone, or was
        replaced since.
        """
        outcome, future = self._jobs.outcome(task.key), self._futures.get(task.key)
        if outcome is None or (future is not None and not future.done()):
            return None
        if outcome.failure is not None:
            return outcome if self._counts(task.key, outcome.failure) else None
        missing = [output for output in task.outputs if not Path(output).exists()]
        if not missing and task.key not in self._spoilt:
            return outcome if self._ledger.is_latest(task) else None
        if self._starts.get(task.key, 0) < MOST_STARTS:
            return None
        what = f"{missing[0]} is not there" if missing else "what it made is damaged, or not all there"
        message = f"the job ended well, but {what}; look at its job.out in {self._jobs.workdir(task.key)}"
        return Outcome(task.key, outcome.job_id, None, FailureKind.BUG, message)

    def _counts(self, key: str, failure: FailureKind) -> bool:
        """Whether a failure stands: it is of this run, and not to be tried again yet."""
        if key not in self._failed:
            return False
        again = self._retry and failure.transient and time.monotonic() - self._failed[key] > RETRY_S
        return not again

    def spoil(self, key: str) -> None:
        """What this task made is damaged: it has to be done again."""
        self._spoilt.add(key)

    @property
    def spoilt(self) -> frozenset[str]:
        return frozenset(self._spoilt)

    def running(self) -> set[str]:
        """Keys of tasks that are submitted and have not ended, those of an earlier driver among them.

        To be asked before outcomes are: what has ended since is taken note of here.
        """
        for key in self._jobs.unfinished() - self._futures.keys():
            if step_of(key) in self._steps:
                self._futures[key] = self._jobs.submit(Task(key, "", {}))  # it has a job: its future follows that
        running = set()
        for key, future in list(self._futures.items()):
            if not future.done():
                running.add(key)
            elif future.exception() is None and future.result().failure is not None:
                self._failed.setdefault(key, time.monotonic())
        return running

    def futures(self, keys: Iterable[str]) -> list[Future[Outcome]]:
        return [self._futures[key] for key in keys]

    def take_back(self, keys: Iterable[str]) -> set[str]:
        """Take back tasks that are not wanted any more; returns those that run already, and have to be waited for."""
        started = self._jobs.withdraw(keys)
        for key in set(keys) - started:
            self._futures.pop(key, None)
            self._failed.pop(key, None)
        return started

    def submit(self, tasks: Iterable[Task]) -> None:
        """Have tasks done, in their order."""
        new = list(tasks)
        coming = {task.key for task in new}
        # Whatever ended before, badly or with a result that has gone, is done anew.
        self._jobs.forget([task.key for task in new if self._jobs.outcome(task.key) is not None])
        self._ledger.begin(new)
        for task in new:
            self._starts[task.key] = self._starts.get(task.key, 0) + 1
            self._failed.pop(task.key, None)
            self._spoilt.discard(task.key)
            # Balsam never starts the child of a job that failed.
            parents = tuple(key for key in task.after if key in coming or self._ended_well(key))
            self._futures[task.key] = self._jobs.submit(replace(task, after=parents))

    def _ended_well(self, key: str) -> bool:
        outcome = self._jobs.outcome(key)
        return outcome is not None and outcome.failure is None
