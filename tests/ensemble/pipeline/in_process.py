"""Jobs that run the real stages in this process, one after the other, when they are submitted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path

from apps.core.errors import EnsembleError
from apps.core.progress import silent
from apps.core.stage import load_stage
from ensemble.jobs import Outcome, Task


class StageJobs:
    """What a campaign's jobs are to the engine.

    `submitted`: keys in order.  `ended` outlives an engine, as Balsam does.
    `before`: called with every task before it runs; what it raises is the task's failure.
    """

    def __init__(self, before: Callable[[Task], None] = lambda task: None) -> None:
        self.submitted: list[str] = []
        self.tasks: dict[str, Task] = {}
        self.ended: dict[str, Outcome] = {}
        self._before = before

    def submit(self, task: Task) -> Future[Outcome]:
        for key in task.after:
            assert self.ended[key].failure is None, (
                f"{task.key} has a parent that failed, {key}: Balsam never starts it"
            )
        self.submitted.append(task.key)
        self.tasks[task.key] = task
        future: Future[Outcome] = Future()
        self.ended[task.key] = self._do(task)
        future.set_result(self.ended[task.key])
        return future

    def _do(self, task: Task) -> Outcome:
        stage, start = load_stage(task.stage), time.time()
        try:
            self._before(task)
            result = stage.run(stage.parameters.from_json(task.parameters), silent)
        except EnsembleError as error:
            return Outcome(task.key, 1, None, error.kind, str(error))
        return Outcome(task.key, 1, {"result": result.to_dict(), "cost": {"start": start, "end": time.time()}})

    def outcome(self, key: str) -> Outcome | None:
        return self.ended.get(key)

    def unfinished(self) -> set[str]:
        return set()

    def withdraw(self, keys: Iterable[str]) -> set[str]:
        return set(keys)  # they have ended

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.ended.pop(key, None)

    def workdir(self, key: str) -> Path:
        return Path(key)

    def take(self) -> list[str]:
        """`step/unit` of what was submitted since the last time."""
        units = [key.rpartition("-")[0] for key in self.submitted]
        self.submitted.clear()
        return units


class QueueJobs(StageJobs):
    """Jobs wait in a queue until they are started, and go on until they are finished; both outlive an engine."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: list[str] = []
        self.started: list[str] = []
        self.withdrawn: set[str] = set()
        self._futures: dict[str, Future[Outcome]] = {}

    def submit(self, task: Task) -> Future[Outcome]:
        if task.key not in self._futures:
            self.submitted.append(task.key)
            self.tasks[task.key] = task
            self._futures[task.key] = Future()
            self.queue.append(task.key)
        return self._futures[task.key]

    def start(self, count: int) -> None:
        self.started += self.queue[:count]
        del self.queue[:count]

    def finish(self) -> None:
        for key in self.started:
            self.ended[key] = self._do(self.tasks[key])
            self._futures[key].set_result(self.ended[key])
        self.started.clear()

    def unfinished(self) -> set[str]:
        return {*self.queue, *self.started}

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.ended.pop(key, None)
            self._futures.pop(key, None)

    def withdraw(self, keys: Iterable[str]) -> set[str]:
        waiting = set(keys) & set(self.queue)
        self.withdrawn |= waiting
        self.queue = [key for key in self.queue if key not in waiting]
        for key in waiting:
            del self._futures[key]
        return set(keys) & set(self.started)
