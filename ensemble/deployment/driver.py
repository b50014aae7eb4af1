"""Doing the jobs of a deployment: segment, compare as soon as neighbours are there, solve, relabel, finish.

The driver submits a bounded number of jobs at a time and learns of their ends through one poller.  What needs other
jobs is submitted when those have ended well, and not left waiting in Balsam: one that fails there would strand it.
A job that fails with several subvolumes is taken apart: those that are done stay, each of the others gets a job of its
own.  What a killed driver had submitted goes on without it, and the next one finds it.

Whether what an earlier job has done still stands is told by the jobs' ids, which one database gives in the order of
submission, and not by times, as the clocks of nodes differ: a job is submitted when all that it builds on has ended, so
it stands where its id is the greatest of theirs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import EnsembleError, StateError
from apps.reconciliation.settings import IN_THE_MAKING
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

    `tell` is called as the work goes on.  `pieces`: those on disk, where nothing else is given.  `unfinished` gives the
    keys of jobs that earlier drivers have submitted, and which have not ended.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        tasks: DeploymentTasks,
        jobs: Jobs,
        window: int,
        tell: Callable[[VoxelProgress], None] = lambda progress: None,
        pieces: Pieces | None = None,
        unfinished: Callable[[], set[str]] = set,
    ) -> None:
        self.plan, self.tasks, self.jobs = plan, tasks, jobs
        self.records = Records()
        self.window = Window(jobs, window)
        self.progress: VoxelProgress
        self._tell, self._unfinished = tell, unfinished
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
        self._newest = 0  # id of the job that was submitted last, of all whose work is there
        self._builds_on: dict[str, int] = {}  # of the jobs under way: the newest job that it needs the work of

    def run(self, evaluate: bool) -> Records:
        """Do all that is not done.

        Raises SubvolumesFailedError that names the subvolumes which keep failing, when everything else is done;
        TaskRejectedError or TaskFailedError where another job fails.
        """
        self.progress = VoxelProgress(int(self._lattice.write_voxels(self.plan.to_segment()).sum()))
        self._outlast_earlier()
        if self._is_lost():
            self._forget_reconciliation()
        self._readiness = Readiness(self._lattice, self._shares) if self._shares > 1 else None
        self._segment()
        if self._failed:
            raise SubvolumesFailedError(self._failed_text())
        self._reconcile()
        if evaluate:
            self._one("evaluation", self.tasks.evaluate())
        return self.records

    def _outlast_earlier(self) -> None:
        """Wait for the jobs that a killed driver has left, and which hold what `solve`, or a comparison, needs alone.

        However they end: what they did is looked at when their turn comes, and done again where it does not stand.
        """
        unfinished = self._unfinished()
        left = (task for task in self._reconciling("all", "solve", "relabel", "finish") if task.key in unfinished)
        more = bool(unfinished)
        while more or len(self.window):
            while more and not self.window.full:
                task = next(left, None)
                more = task is not None
                if task is not None:
                    self.window.submit(task)  # it has a job, and is followed
            for _ in self.window.ended(_WAIT_S):
                pass

    def _reconciling(self, *actions: Action) -> Iterator[Task]:
        """All tasks of these phases."""
        for action in actions:
            if action not in ("compare", "relabel"):
                yield self.tasks.reconcile(action)
            elif self._shares > 1:
                yield from (self.tasks.reconcile(action, index) for index in range(self._shares))

    def _is_lost(self) -> bool:
        """Whether the work of reconciliation, what it was making, or what it ended with, was taken away."""
        if not self.plan.work.is_dir():
            return True
        last = self._done(self.tasks.reconcile("all" if self._shares == 1 else "finish"))
        solved = 0 if self._shares == 1 else self._done(self.tasks.reconcile("solve"))
        if last > solved:
            return not Path(self.plan.output).exists()
        return solved > 0 and not (self.plan.work / IN_THE_MAKING).is_dir()

    def _done(self, task: Task) -> int:
        """Id of the job that has done a task; 0 where none has."""
        known = self.jobs.outcome(task.key)
        return 0 if known is None or known.failure is not None else known.job_id

    def _forget_reconciliation(self) -> None:
        """Have all of its jobs done again: they find what is there, and make what is not."""
        tasks = self._reconciling("all", "compare", "solve", "relabel", "finish")
        self.jobs.forget([task.key for task in tasks if self.jobs.outcome(task.key) is not None])

    def _segment(self) -> None:
        source = self.tasks.segmenting()
        while self._fill(source):
            for task, outcome in self.window.ended(_WAIT_S):
                segmenting = self._segmenting.pop(task.key, None)
                if segmenting is None:
                    self._after("compare", task, outcome)
                elif outcome.failure is None:
                    self._segmented(segmenting.numbers, outcome.record or {}, outcome.job_id, made_now=True)
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
                    others = () if known.record else map(self.tasks.segment_alone, segmenting.numbers)
                    newest = max(known.job_id, *(self._done(other.task) for other in others), 0)
                    self._segmented(segmenting.numbers, record, newest, made_now=False)
                    continue
                self.jobs.forget([segmenting.task.key])
            self._segmenting[segmenting.task.key] = segmenting
            self.window.submit(segmenting.task)
        return len(self.window) > 0

    def _segmented(self, numbers: Sequence[int], record: dict[str, Any], job: int, made_now: bool) -> None:
        """Take note of subvolumes that are done; none by a job newer than `job`."""
        self.records.add("inference", record)
        done = np.array(numbers, np.int64)
        self.progress.add(int(self._lattice.write_voxels(done[~self._masked[done]]).sum()), made_now)
        self._newest = max(self._newest, job)
        if self._readiness is not None:
            self._ready.extend(self._readiness.done(done, job))

    def _take_apart(self, segmenting: Segmenting, outcome: Outcome) -> None:
        """Keep what a failed job has done, and have each of the others done by itself, a bounded number of times."""
        there = [number for number in segmenting.numbers if self._pieces.there(number)]
        left = [number for number in segmenting.numbers if number not in there]
        if there:
            self._segmented(there, self._pieces.record(there), outcome.job_id, made_now=True)
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
        needed = self._newest
        more = True
        while more or len(self.window):
            while more and not self.window.full:
                task = next(tasks, None)
                more = task is not None
                if task is not None:
                    self._submit(action, task, needed)
            for task, outcome in self.window.ended(_WAIT_S):
                self._after(action, task, outcome)

    def _one(self, step: str, task: Task) -> None:
        """A step that is one job."""
        self._submit(step, task, self._newest)
        while len(self.window):
            for ended, outcome in self.window.ended(_WAIT_S):
                self._after(step, ended, outcome)

    def _compare(self, index: int) -> None:
        """A share of the comparisons, whose pieces are all there."""
        assert self._readiness is not None
        self._submit("compare", self.tasks.reconcile("compare", index), self._readiness.newest(index))

    def _submit(self, step: str, task: Task, needed: int) -> None:
        """Have a task done, unless a job has done it that is newer than the newest of those that it builds on."""
        known = self.jobs.outcome(task.key)
        if known is not None and known.failure is None:
            if known.record and known.job_id > needed:
                self._keep(step, task, known)
                return
            self.jobs.forget([task.key])
        self._builds_on[task.key] = needed
        self.window.submit(task)

    def _after(self, step: str, task: Task, outcome: Outcome) -> None:
        if outcome.failure is None:
            if outcome.job_id < self._builds_on[task.key]:  # an earlier driver's, still on its way when this one came
                self.jobs.forget([task.key])
                self.window.submit(task)
                return
            self._keep(step, task, outcome)
            return
        self._tries[task.key] += 1
        if outcome.failure.transient and self._tries[task.key] < MAX_TRIES:
            self.window.submit(task)
            return
        failure = failure_of(task.stage, outcome)
        try:
            self.window.withdraw()
            if task.stage == "reconciliation" and not outcome.failure.transient:
                # Where files were taken away by hand, jobs that are done say so no more; the next run looks at it all.
                self._forget_reconciliation()
        except Exception as lost:  # the service's: the job's own message is what the user has to see
            raise failure from lost
        raise failure

    def _keep(self, step: str, task: Task, outcome: Outcome) -> None:
        record = outcome.record or {}
        if task.parameters.get("part") is None:
            self.records.put(step, record)
        else:
            self.records.add(step, record)
        self._newest = max(self._newest, outcome.job_id)
