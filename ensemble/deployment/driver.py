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

from apps.core.errors import EnsembleError, FailureKind, StateError
from apps.core.parts import Part, share
from apps.core.progress import read_progress
from apps.reconciliation.settings import IN_THE_MAKING, MANIFEST
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.linking import solved_by
from ensemble.deployment.pieces import Pieces, PiecesOnDisk
from ensemble.deployment.plan import DeploymentPlan
from ensemble.deployment.prediction import merging_seconds, segmenting_seconds
from ensemble.deployment.progress import Progress
from ensemble.deployment.readiness import Readiness
from ensemble.deployment.records import Records
from ensemble.deployment.tasks import AFTER_COMPARING, ALL_ACTIONS, Action, DeploymentTasks, Segmenting
from ensemble.deployment.window import Window
from ensemble.jobs import Outcome, Task
from ensemble.workflow import Jobs, failure_of

# How often a subvolume is begun by itself that the machine ends, or another job, after Balsam's own attempts.
MAX_TRIES = 3
# So many subvolumes that keep failing are no accident: what is wrong is wrong for all.
MAX_FAILED = 64
_WAIT_S = 0.5
SEGMENTING = "deploy"  # title of the first step


class SubvolumesFailedError(EnsembleError):
    """Subvolumes that keep failing; the others are done and stay."""


class Driver:
    """Does the jobs of one plan; for one thread.

    `tell` is called as the work goes on, with another progress for each step.  `processes`: jobs at a time, for the
    expected end before there is a pace; None: it is not known.  `pieces`: those on disk, where nothing else is
    given.  `unfinished` gives the keys of jobs that earlier drivers have submitted, and which have not ended.
    """

    def __init__(
        self,
        plan: DeploymentPlan,
        tasks: DeploymentTasks,
        jobs: Jobs,
        window: int,
        tell: Callable[[Progress], None] = lambda progress: None,
        processes: int | None = None,
        pieces: Pieces | None = None,
        unfinished: Callable[[], set[str]] = set,
    ) -> None:
        self.plan, self.tasks, self.jobs = plan, tasks, jobs
        self.records = Records()
        self.window = Window(jobs, window)
        self.progress: Progress
        self._tell, self._processes, self._unfinished = tell, processes, unfinished
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
        self._outlast_earlier()
        if self._is_lost():
            self._forget(*ALL_ACTIONS)
        elif self._is_by_other_rules():
            # Those of now may be the rules of before the last ones, whose jobs are known: what they made is replaced.
            self._forget(*AFTER_COMPARING)
        self._readiness = Readiness(self._lattice, self._shares) if self._shares > 1 else None
        self._segment()
        if self._failed:
            raise SubvolumesFailedError(self._failed_text())
        self._reconcile()
        if evaluate:
            self._one("evaluation", self.tasks.evaluate(), "evaluating")
        return self.records

    def _outlast_earlier(self) -> None:
        """Wait for the jobs that a killed driver has left, and which hold what `solve`, or a comparison, needs alone.

        However they end: what they did is looked at when their turn comes, and done again where it does not stand.
        Those by other rules for links are waited for likewise.
        """
        unfinished = self._unfinished()
        if not unfinished:
            return
        left = deque(task for task in self._reconciling(*AFTER_COMPARING) if task.key in unfinished)
        others = [key for key in unfinished if self.tasks.is_of_other_rules(key)]
        self.progress = Progress("jobs of an earlier run", len(left) + len(others), "jobs")
        while left or len(self.window):
            while left and not self.window.full:
                self.window.submit(left.popleft())  # it has a job, and is followed
            self._tell(self.progress)
            for _ in self.window.ended(_WAIT_S):
                self.progress.add(1, made_now=False)
        for key in others:
            self._tell(self.progress)
            # It has its job, so that nothing is submitted.
            self.jobs.submit(Task(key=key, stage="reconciliation", parameters={})).result()
            self.progress.add(1, made_now=False)

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

    def _is_by_other_rules(self) -> bool:
        """Whether what is there was solved by other rules for links, or nothing says by which."""
        rules = solved_by(self.plan.work)
        return (self.plan.work / MANIFEST).is_file() if rules is None else rules != self.plan.links.identity

    def _done(self, task: Task) -> int:
        """Id of the job that has done a task; 0 where none has."""
        known = self.jobs.outcome(task.key)
        return 0 if known is None or known.failure is not None else known.job_id

    def _forget(self, *actions: Action) -> None:
        """Have all jobs of these phases done again: they find what is there, and make what is not."""
        tasks = self._reconciling(*actions)
        self.jobs.forget([task.key for task in tasks if self.jobs.outcome(task.key) is not None])

    def _segment(self) -> None:
        """Segment, and compare what has all of its neighbours."""
        total = int(self._lattice.write_voxels(self.plan.to_segment()).sum())
        self.progress = segmented = Progress(SEGMENTING, total, expected_s=self._expected_s())
        source = self.tasks.segmenting()
        while self._fill(source):
            if self.progress is segmented and segmented.done >= total and not self._segmenting:
                self._tell(segmented)  # what is left are comparisons
                self.progress = Progress("reconciling: comparing", self._shares, "jobs")
                self.progress.add(len(self.records.by_step.get("compare", ())), made_now=False)
            for task, outcome in self.window.ended(_WAIT_S):
                segmenting = self._segmenting.pop(task.key, None)
                if segmenting is None:
                    if self._after("compare", task, outcome) and self.progress is not segmented:
                        self.progress.add(1, made_now=True)
                elif outcome.failure is None:
                    self._segmented(segmenting.numbers, outcome.record or {}, outcome.job_id, made_now=True)
                else:
                    self._take_apart(segmenting, outcome)
            self._tell(self.progress)
        if self.progress is segmented:
            self._tell(segmented)

    def _expected_s(self) -> float | None:
        """Seconds that all of the segmentation is predicted to take."""
        prediction = self.plan.prediction
        if prediction is None or self._processes is None:
            return None
        return segmenting_seconds(prediction, self._lattice, self._processes, self.plan.segmentation_jobs)

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
        """Keep what a failed job has done, and have each of the others done by itself, a bounded number of times.

        Raises NoRoomError where a disk was full: the others would find it so.
        """
        there = [number for number in segmenting.numbers if self._pieces.there(number)]
        left = [number for number in segmenting.numbers if number not in there]
        if there:
            self._segmented(there, self._pieces.record(there), outcome.job_id, made_now=True)
        if left and outcome.failure is FailureKind.NO_ROOM:
            failure = failure_of(segmenting.task.stage, outcome)
            try:
                self.window.withdraw()
            except Exception as lost:  # as in _after
                raise failure from lost
            raise failure
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
            expected_s = merging_seconds(self._lattice)
            self._one("reconciliation", self.tasks.reconcile("all"), "reconciling", expected_s)
        else:
            self._one("solve", self.tasks.reconcile("solve"), "reconciling: solving")
            self._relabel()
            self._one("reconciliation", self.tasks.reconcile("finish"), "reconciling: finishing")
        result = self.records.by_step["reconciliation"]["result"]
        if not result["complete"]:
            raise StateError(f"{self.plan.output}: reconciliation ended, but does not say that it is complete")

    def _relabel(self) -> None:
        """All shares of it."""
        left, needed = deque(range(self._shares)), self._newest
        self.progress = Progress("reconciling: relabelling", self.plan.grid.box.size)

        def count(task: Task, made_now: bool) -> None:
            numbers = share(self._lattice.count, Part.from_json(task.parameters["part"]))
            self.progress.add(int(self._lattice.write_voxels(np.array(numbers)).sum()), made_now)

        while left or len(self.window):
            while left and not self.window.full:
                task = self.tasks.reconcile("relabel", left.popleft())
                if not self._submit("relabel", task, needed):
                    count(task, made_now=False)
            if len(self.window):
                self._tell(self.progress)
            for task, outcome in self.window.ended(_WAIT_S):
                if self._after("relabel", task, outcome):
                    count(task, made_now=True)
                    self._tell(self.progress)

    def _one(self, step: str, task: Task, title: str, expected_s: float | None = None) -> None:
        """A step that is one job, which says itself how far it is, where its folder can be seen from here."""
        self._submit(step, task, self._newest)
        self.progress = Progress(title, 100, "%", expected_s)
        while len(self.window):
            self.progress.reach(*read_progress(self.jobs.workdir(task.key)))
            self._tell(self.progress)
            for ended, outcome in self.window.ended(_WAIT_S):
                if self._after(step, ended, outcome):
                    self.progress.reach(1.0, "done")
                    self._tell(self.progress)

    def _compare(self, index: int) -> None:
        """A share of the comparisons, whose pieces are all there."""
        assert self._readiness is not None
        self._submit("compare", self.tasks.reconcile("compare", index), self._readiness.newest(index))

    def _submit(self, step: str, task: Task, needed: int) -> bool:
        """Have a task done; False where a job has done it that is newer than the newest of those that it builds on."""
        known = self.jobs.outcome(task.key)
        if known is not None and known.failure is None:
            if known.record and known.job_id > needed:
                self._keep(step, task, known)
                return False
            self.jobs.forget([task.key])
        self._builds_on[task.key] = needed
        self.window.submit(task)
        return True

    def _after(self, step: str, task: Task, outcome: Outcome) -> bool:
        """A job has ended; False where it is submitted again."""
        if outcome.failure is None:
            if outcome.job_id < self._builds_on[task.key]:  # an earlier driver's, still on its way when this one came
                self.jobs.forget([task.key])
                self.window.submit(task)
                return False
            self._keep(step, task, outcome)
            return True
        self._tries[task.key] += 1
        if outcome.failure.transient and self._tries[task.key] < MAX_TRIES:
            self.window.submit(task)
            return False
        failure = failure_of(task.stage, outcome)
        try:
            self.window.withdraw()
            if task.stage == "reconciliation" and not outcome.failure.transient:
                # Where files were taken away by hand, jobs that are done say so no more; the next run looks at it all.
                self._forget(*ALL_ACTIONS)
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
