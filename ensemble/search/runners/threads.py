"""A runner of Python functions in threads of the driver's process, for objectives that only wait or are cheap."""

from __future__ import annotations

import contextlib
import math
import platform
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from apps.core.errors import FailureKind, kind_of
from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration
from ensemble.search.keys import trial_key
from ensemble.search.runners.contract import Assignment, Report, Runner

Function = Callable[[Configuration, int | None], dict[str, Any]]
"""(configuration, budget) -> a stage's result as plain JSON, of which `Search.objective` makes objectives."""


_Key = tuple[int, int, int]


class ThreadRunner(Runner):
    """Evaluates `function` in `workers` threads.

    An error that is raised becomes the failure of that assignment, of the kind that an EnsembleError says.  A thread
    cannot be ended: one that takes longer than its time limit is reported as hung and replaced by another, and its
    result, should there ever be one, is dropped.
    """

    def __init__(self, name: str, function: Function, workers: int) -> None:
        self._name, self._function, self._workers = name, function, workers
        self._work: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._running: dict[_Key, tuple[Assignment, float]] = {}  # with when its time is over
        for _ in range(workers):
            self._start_thread()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            self._work.put(assignment)

    def wait(self, timeout_s: float) -> list[Report]:
        deadline = time.monotonic() + timeout_s
        reports: list[Report] = []
        while not reports:
            self._end_hung()
            left = max(0.0, min(deadline - time.monotonic(), self._next_limit_s()))
            try:
                reports.append(self._reports.get(timeout=left) if left else self._reports.get_nowait())
            except queue.Empty:
                if time.monotonic() >= deadline:
                    break
        while not self._reports.empty():
            reports.append(self._reports.get())
        return reports

    def nodes(self) -> int:
        return self._workers

    def close(self) -> None:
        with self._lock:
            self._running.clear()  # what they give is dropped
        with contextlib.suppress(queue.Empty):
            while True:  # a thread may take the last one at the same moment
                self._work.get_nowait()
        for _ in range(self._workers):
            self._work.put(None)

    def _start_thread(self) -> None:
        # Daemons: the process does not wait for one that hangs.
        threading.Thread(target=self._run_forever, name="trial", daemon=True).start()

    def _run_forever(self) -> None:
        while (assignment := self._work.get()) is not None:
            if not self._run(assignment):
                return  # it was replaced

    def _run(self, assignment: Assignment) -> bool:
        """Evaluate it; returns whether anyone still waited for that."""
        start = time.time()
        limit = math.inf if assignment.time_limit_s is None else time.monotonic() + assignment.time_limit_s
        with self._lock:
            self._running[_key(assignment)] = assignment, limit
        try:
            result = self._function(assignment.configuration, assignment.budget)
            record = {"result": result, "cost": {"start": start, "end": time.time(), "host": platform.node()}}
            outcome = Outcome(self._task(assignment), 0, record)
        except Exception as error:
            outcome = Outcome(self._task(assignment), 0, None, kind_of(error), f"{type(error).__name__}: {error}")
        return self._report(assignment, outcome)

    def _report(self, assignment: Assignment, outcome: Outcome) -> bool:
        """Report it, where it was not given up before."""
        with self._lock:
            wanted = self._running.pop(_key(assignment), None) is not None
        if wanted:
            self._reports.put(Report(assignment, outcome))
        return wanted

    def _next_limit_s(self) -> float:
        with self._lock:
            next_limit = min((limit for _, limit in self._running.values()), default=math.inf)
        return max(0.001, min(1.0, next_limit - time.monotonic()))

    def _end_hung(self) -> None:
        now = time.monotonic()
        with self._lock:
            hung = [assignment for assignment, limit in self._running.values() if limit <= now]
        for assignment in hung:
            message = f"it took longer than its time limit of {assignment.time_limit_s:g} s"
            if self._report(assignment, Outcome(self._task(assignment), 0, None, FailureKind.HUNG, message)):
                self._start_thread()

    def _task(self, assignment: Assignment) -> str:
        return trial_key(self._name, assignment.trial, assignment.rung, assignment.attempt)


def _key(assignment: Assignment) -> _Key:
    return assignment.trial, assignment.rung, assignment.attempt
