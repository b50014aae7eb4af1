"""A campaign's tasks on this machine, without Balsam: one after the other, each in a process of its own.

For what a search needs before it can run inside one allocation (`--evaluator`): the preparation of its data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from apps.core.errors import FailureKind
from apps.core.stage import FAILURE_FILE
from ensemble.jobs import Outcome, Task
from ensemble.search.runners.stage_run import Ending, StageRun, read_ending, run_stage


class LocalJobs:
    """Does tasks below `folder`, in the order in which they are submitted; the same interface as CampaignJobs.

    A task whose folder holds its result, for the same parameters, is not done again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stop_file = folder / ".stop"
        self._ended: dict[str, Outcome] = {}
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stop_file.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_file.touch()  # ends what runs
        self._pool.shutdown(cancel_futures=True)
        self._stop_file.unlink(missing_ok=True)

    def submit(self, task: Task) -> Future[Outcome]:
        """Have the task done; the future holds its Outcome (it never raises for a task that failed)."""
        return self._pool.submit(self._do, task)

    def outcome(self, key: str) -> Outcome | None:
        """How the task ended, in an earlier process too; None where it has not."""
        if key not in self._ended and (ending := read_ending(self.workdir(key))):
            return _outcome(key, ending)
        return self._ended.get(key)

    def workdir(self, key: str) -> Path:
        return self._folder / key

    def forget(self, keys: Iterable[str]) -> None:
        """Drop what is known of these tasks, so that they are done again."""
        for key in keys:
            self._ended.pop(key, None)
            shutil.rmtree(self.workdir(key), ignore_errors=True)

    def _do(self, task: Task) -> Outcome:
        folder = self.workdir(task.key)
        (folder / FAILURE_FILE).unlink(missing_ok=True)  # it may succeed now
        run = StageRun(task.stage, task.parameters, str(folder), task.time_limit_s, str(self._stop_file))
        self._ended[task.key] = _outcome(task.key, run_stage(run))
        return self._ended[task.key]


def _outcome(key: str, ending: Ending) -> Outcome:
    failure = FailureKind(ending["failure"]) if ending["failure"] else None
    return Outcome(key, 0, ending["record"], failure, ending["message"])
