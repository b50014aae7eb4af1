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
        assert all(key in self.ended for key in task.after), f"{task.key} waits for what was never done: {task.after}"
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
