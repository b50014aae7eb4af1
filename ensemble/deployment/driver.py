"""Doing the jobs of a deployment: segment, compare as soon as neighbours are there, solve, relabel, finish.

The driver submits a bounded number of jobs at a time and learns of their ends through one poller.  What needs other
jobs is submitted when those have ended well, and not left waiting in Balsam: one that fails there would strand it.
A job that fails with several subvolumes is taken apart: those that are done stay, each of the others gets a job of its
own.  What a killed driver had submitted goes on without it, and the next one finds it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import EnsembleError, StateError
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.pieces import Pieces, PiecesOnDisk
from ensemble.deployment.plan import DeploymentPlan
from ensemble.deployment.progress import VoxelProgress
from ensemble.deployment.readiness import Readiness
from ensemble.deployment.records import Records
from ensemble.deployment.tasks import Action, DeploymentTasks, Segmenting
from ensemble.deployment.window import Window
from ensemble.jobs import Outcome, Task
from ensemble.workflow import Jobs, failure_of

# How often a subvolume is begun by itself that the machine ends, or another job, after Balsam's own attempts.
MAX_TRIES = 3
# So many subvolumes that keep failing are no accident: what is wrong is wrong for all.
MAX_FAILED = 64
_WAIT_S = 0.5


class SubvolumesFailedError(EnsembleError):
    """Subvolumes that keep failing; the others are done and stay."""


class Driver:
    """Does the jobs of one plan; for one thread.

    `tell` is called as the work goes on.  `pieces`: those on disk, where nothing else is given.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        tasks: DeploymentTasks,
        jobs: Jobs,
        window: int,
        tell: Callable[[VoxelProgress], None] = lambda progress: None,
        pieces: Pieces | None = None,
    ) -> None:
        self.plan, self.tasks, self.jobs = plan, tasks, jobs
        self.records = Records()
        self.window = Window(jobs, window)
        self.progress: VoxelProgress
        self._tell = tell
        self._pieces = pieces or PiecesOnDisk(plan.pieces)
        self._lattice = Lattice(plan.grid)
        self._tries: Counter[str] = Counter()
        self._segmenting: dict[str, Segmenting] = {}
        self._alone: deque[int] = deque()
        self._failed: dict[int, str] = {}
        self._ready: deque[int] = deque()
        self._shares = plan.reconciliation_jobs
        self._readiness: Readiness | None = None
        masked = np.ones(len(plan.grid), bool)
        masked[plan.to_segment()] = False
        self._masked = masked
        # Whatever began before that has worked on something older than what is there now, and is done again.
        self._changed = self._lost = time.time() if self._is_lost() else 0.0

    def run(self, evaluate: bool) -> Records:
        """Do all that is not done.

        Raises SubvolumesFailedError that names the subvolumes which keep failing, when everything else is done;
        TaskRejectedError or TaskFailedError where another job fails.
        """
        self.progress = VoxelProgress(int(self._lattice.write_voxels(self.plan.to_segment()).sum()))
        self._readiness = Readiness(self._lattice, self._shares) if self._shares > 1 else None
        self._segment()
        if self._failed:
            raise SubvolumesFailedError(self._failed_text())
        self._reconcile()
        if evaluate:
            self._one("evaluation", self.tasks.evaluate())
        return self.records

    def _is_lost(self) -> bool:
        """Whether the work of reconciliation, or what it ended with, was taken away."""
        if not self.plan.work.is_dir():
            return True
        last = self.jobs.outcome(self.tasks.reconcile("all" if self._shares == 1 else "finish").key)
        return last is not None and last.failure is None and not Path(self.plan.output).exists()

    def _segment(self) -> None:
        source = self.tasks.segmenting()
        while self._fill(source):
            for task, outcome in self.window.ended(_WAIT_S):
                segmenting = self._segmenting.pop(task.key, None)
                if segmenting is None:
                    self._after("compare", task, outcome)
                elif outcome.failure is None:
                    self._segmented(segmenting.numbers, outcome.record or {}, made_now=True)
                else:
                    self._take_apart(segmenting, outcome)
            self._tell(self.progress)

    def _fill(self, source: Iterator[Segmenting]) -> bool:
        """Submit what there is room for, comparisons first; False where there is nothing left to do."""
        while not self.window.full:
            if self._ready:
                self._compare(self._ready.popleft())
                continue
            alone = bool(self._alone)
            segmenting = self.tasks.segment_alone(self._alone.popleft()) if alone else next(source, None)
            if segmenting is None:
                break
            known = self.jobs.outcome(segmenting.task.key)
            if known is not None:
                if all(map(self._pieces.there, segmenting.numbers)):
                    # One that failed has its pieces from jobs of their own.
                    record = known.record or self._pieces.record(segmenting.numbers)
                    self._segmented(segmenting.numbers, record, made_now=False)
                    continue
                self.jobs.forget([segmenting.task.key])
            self._segmenting[segmenting.task.key] = segmenting
            self.window.submit(segmenting.task)
        return len(self.window) > 0

    def _segmented(self, numbers: Sequence[int], record: dict[str, Any], made_now: bool) -> None:
        """Take note of subvolumes that are done."""
        self.records.add("inference", record)
        done, when = np.array(numbers, np.int64), float(record["cost"]["end"])
        self.progress.add(int(self._lattice.write_voxels(done[~self._masked[done]]).sum()), made_now)
        self._changed = max(self._changed, when)
        if self._readiness is not None:
            self._ready.extend(self._readiness.done(done, when))

    def _take_apart(self, segmenting: Segmenting, outcome: Outcome) -> None:
        """Keep what a failed job has done, and have each of the others done by itself, a bounded number of times."""
        there = [number for number in segmenting.numbers if self._pieces.there(number)]
        left = [number for number in segmenting.numbers if number not in there]
        if there:
            self._segmented(there, self._pieces.record(there), made_now=True)
        if len(segmenting.numbers) > 1:
            self._alone.extend(left)
            return
        for number in left:
            self._tries[segmenting.task.key] += 1
            transient = outcome.failure is not None and outcome.failure.transient
            if transient and self._tries[segmenting.task.key] < MAX_TRIES:
                self._alone.append(number)
            else:
                self._failed[number] = f"{outcome.message} [{outcome.failure}]"
        if len(self._failed) > MAX_FAILED:
            self.window.withdraw()
            raise SubvolumesFailedError(self._failed_text())

    def _failed_text(self) -> str:
        some = sorted(self._failed)[:5]
        lines = [
            f"subvolume {number} ({self.plan.grid.subvolume(number).read_box}): {self._failed[number]}"
            for number in some
        ]
        more = f"; and {len(self._failed) - len(some)} more" if len(self._failed) > len(some) else ""
        return (
            f"{len(self._failed)} of {len(self.plan.grid)} subvolumes keep failing: {'; '.join(lines)}{more}.  "
            "The others stay as they are; when the cause is gone, run the same command again"
        )

    def _reconcile(self) -> None:
        if self._shares == 1:
            self._one("reconciliation", self.tasks.reconcile("all"))
        else:
            self._one("solve", self.tasks.reconcile("solve"))
            self._shared("relabel")
            self._one("reconciliation", self.tasks.reconcile("finish"))
        result = self.records.by_step["reconciliation"]["result"]
        if not result["complete"]:
            raise StateError(f"{self.plan.output}: reconciliation ended, but does not say that it is complete")

    def _shared(self, action: Action) -> None:
        """All shares of a phase."""
        tasks = (self.tasks.reconcile(action, index) for index in range(self._shares))
        changed = self._changed
        more = True
        while more or len(self.window):
            while more and not self.window.full:
                task = next(tasks, None)
                more = task is not None
                if task is not None:
                    self._submit(action, task, changed)
            for task, outcome in self.window.ended(_WAIT_S):
                self._after(action, task, outcome)

    def _one(self, step: str, task: Task) -> None:
        """A step that is one job."""
        self._submit(step, task, self._changed)
        while len(self.window):
            for ended, outcome in self.window.ended(_WAIT_S):
                self._after(step, ended, outcome)

    def _compare(self, index: int) -> None:
        """A share of the comparisons, whose pieces are all there."""
        assert self._readiness is not None
        changed = max(self._lost, self._readiness.newest(index))
        self._submit("compare", self.tasks.reconcile("compare", index), changed)

    def _submit(self, step: str, task: Task, changed: float) -> None:
        """Have a task done, unless it was begun after what it works on has changed."""
        known = self.jobs.outcome(task.key)
        if known is not None and known.failure is None:
            if known.record and known.record["cost"]["start"] >= changed:
                self._keep(step, task, known.record)
                return
            self.jobs.forget([task.key])
        self.window.submit(task)

    def _after(self, step: str, task: Task, outcome: Outcome) -> None:
        if outcome.failure is None:
            self._keep(step, task, outcome.record or {})
            return
        self._tries[task.key] += 1
        if outcome.failure.transient and self._tries[task.key] < MAX_TRIES:
            self.window.submit(task)
            return
        self.window.withdraw()
        raise failure_of(task.stage, outcome)

    def _keep(self, step: str, task: Task, record: dict[str, Any]) -> None:
        if task.parameters.get("part") is None:
            self.records.put(step, record)
        else:
            self.records.add(step, record)
        self._changed = max(self._changed, float(record["cost"]["end"]))
