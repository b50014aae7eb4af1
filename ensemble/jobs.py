"""Balsam jobs of one campaign: submit many at once, and learn of their ends through one poller.

A task is named by its key within the campaign (`stage/...`).  The key is a tag of the job, so that after a crash of the
driver the same task finds its job again instead of making a second one.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from apps.core.errors import FailureKind, TransientError
from ensemble.campaigns import Campaign

log = logging.getLogger(__name__)

# A result can reach the database a little after the time stamp it carries: look back this far on every poll.
OVERLAP = timedelta(seconds=20)
FINISHED, FAILED = "JOB_FINISHED", "FAILED"
# Polls that fail one after the other, each waiting longer than the last (30 s at most), before waiting is given up.
MAX_POLL_FAILURES = 10


@dataclass(frozen=True)
class Task:
    """One stage run to be done as a Balsam job.

    Attributes:
        key: unique within the campaign, also the job's work directory below the campaign's.
        stage: name of the stage (apps.core.stage.STAGES).
        parameters: the stage's parameters as plain JSON.
        tags: further tags (`search`, `trial`, `model`).
        after: keys of tasks that must finish first; they are earlier in the same submission, or known already.
        outputs: files and folders that the stage makes; the task is done again where one is gone.
        num_nodes, ranks_per_node: size of the job.
        wall_time_min: estimate in minutes, 0 for none.
    """

    key: str
    stage: str
    parameters: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    num_nodes: int = 1
    ranks_per_node: int = 1
    wall_time_min: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        key, job_id: which one.
        record: what the stage wrote to result.json; None on failure.
        failure: None on success, else the kind.
        message: what the failure said.
        attempts: how often the job was started after being killed, plus one.
    """

    key: str
    job_id: int
    record: dict[str, Any] | None
    failure: FailureKind | None = None
    message: str = ""
    attempts: int = 1


class CampaignJobs:
    """All jobs of one campaign; their work directories are `data_path / root / key`.

    Thread-safe: `submit` may be called from any thread.  One thread submits (what came within a moment goes in one bulk
    call), one polls (one incremental query for the whole campaign, however many jobs there are).  Use as a context
    manager; leaving it stops the threads and leaves the jobs alone.
    """

    def __init__(self, campaign: Campaign, app_ids: dict[str, int], data_path: Path, poll_s: float = 0.25) -> None:
        self.campaign = campaign.name
        self.data_path = data_path
        self.root = Path(f"{campaign.name}-{campaign.uid}")
        self._filter = [f"campaign:{campaign.name}", f"campaign_uid:{campaign.uid}"]
        self._tags = {"campaign": campaign.name, "campaign_uid": campaign.uid}
        self._app_ids = app_ids
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._ids: dict[str, int] = {}
        self._futures: dict[str, Future[Outcome]] = {}
        self._ended: dict[str, Outcome] = {}
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._watermark: datetime | None = None
        self._forgotten: set[int] = set()

    def __enter__(self) -> CampaignJobs:
        self._poll()  # what earlier drivers of this campaign submitted
        for target in (self._submit_forever, self._poll_forever):
            thread = threading.Thread(target=target, name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._queue.put(None)
        for thread in self._threads:
            thread.join(timeout=10)

    def submit(self, task: Task) -> Future[Outcome]:
        """Have the task done; the future holds its Outcome (it never raises for a failed job).

        A task whose key has a job already is not submitted again: its future follows that job.
        """
        with self._lock:
            if task.key in self._futures:
                return self._futures[task.key]
            future: Future[Outcome] = Future()
            self._futures[task.key] = future
            ended = self._ended.get(task.key)
            known = task.key in self._ids
        if ended is not None:
            future.set_result(ended)
        elif not known:
            self._queue.put(task)
        return future

    def knows(self, key: str) -> bool:
        """Whether the task has a job, in whatever state."""
        with self._lock:
            return key in self._ids

    def outcome(self, key: str) -> Outcome | None:
        """How the task ended; None where it has not, or is not known."""
        with self._lock:
            return self._ended.get(key)

    def workdir(self, key: str) -> Path:
        """Where the job of this task runs (on a machine that sees the site's data folder)."""
        return self.data_path / self.root / key

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the jobs of these keys from Balsam, so that the same tasks can be submitted anew."""
        from balsam.api import Job

        ids = []
        with self._lock:
            for key in keys:
                if key in self._ids:
                    ids.append(self._ids.pop(key))
                self._ended.pop(key, None)
                self._futures.pop(key, None)
            # A poll whose query is under way may still bring them.
            self._forgotten.update(ids)
        if ids:
            Job.objects.filter(id=ids).delete()

    def _submit_forever(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            batch = [first]
            time.sleep(0.02)  # let the rest of a burst arrive, so that it goes in one call
            while not self._queue.empty():
                task = self._queue.get()
                if task is None:
                    self._queue.put(None)
                    break
                batch.append(task)
            try:
                self._submit_batch(batch)
            except Exception as error:
                log.exception("submission failed tasks=%d", len(batch))
                for task in batch:
                    self._fail(task.key, error)

    def _submit_batch(self, batch: Sequence[Task]) -> None:
        from balsam.api import Job

        waiting = list(batch)
        while waiting:
            with self._lock:
                ready = [task for task in waiting if all(key in self._ids for key in task.after)]
                parents = {task.key: {self._ids[key] for key in task.after} for task in ready}
            if not ready:
                missing = sorted({key for task in waiting for key in task.after})
                raise ValueError(f"tasks wait for tasks that were never submitted: {', '.join(missing)}")
            jobs = Job.objects.bulk_create([self._job(task, parents[task.key]) for task in ready])
            with self._lock:
                for job in jobs:
                    self._ids[job.tags["task"]] = int(job.id)
            log.info("submitted jobs=%d campaign=%s", len(jobs), self.campaign)
            waiting = [task for task in waiting if task not in ready]

    def _job(self, task: Task, parent_ids: set[int]) -> Any:
        from balsam.api import Job

        return Job(
            workdir=self.root / task.key,
            app_id=self._app_ids[task.stage],
            tags={**self._tags, "stage": task.stage, "task": task.key, **task.tags},
            data={"parameters": task.parameters},
            num_nodes=task.num_nodes,
            ranks_per_node=task.ranks_per_node,
            wall_time_min=task.wall_time_min,
            parent_ids=parent_ids,
        )

    def _poll_forever(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self._poll()
                failures = 0
            except Exception as error:
                # The server may be restarting; the watermark has not moved, so nothing is missed.
                failures += 1
                log.warning("poll failed times=%d campaign=%s", failures, self.campaign, exc_info=failures == 1)
                if failures == MAX_POLL_FAILURES:
                    self._fail_all(error)
            self._stop.wait(min(30.0, self._poll_s * 2 ** min(failures, 7)))

    def _fail_all(self, error: Exception) -> None:
        """Nobody will learn of these jobs here any more: whoever waits is told, and can run the same command again."""
        with self._lock:
            waiting = [key for key, future in self._futures.items() if not future.done()]
        text = f"the Balsam service does not answer ({error}); look at `ensemble service status`, run the command again"
        for key in waiting:
            self._fail(key, TransientError(text))

    def _fail(self, key: str, error: Exception) -> None:
        with self._lock:
            future = self._futures.pop(key, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def _poll(self) -> None:
        """One incremental query; de-duplicated by what has been delivered."""
        from balsam.api import Job

        query: dict[str, Any] = {"tags": self._filter}
        if self._watermark is not None:
            query |= {"last_update_after": self._watermark - OVERLAP, "state": {FINISHED, FAILED}}
        jobs = list(Job.objects.filter(**query))
        deliveries: list[tuple[Future[Outcome], Outcome]] = []
        with self._lock:
            for job in jobs:
                if int(job.id) in self._forgotten:
                    continue
                key = job.tags.get("task", "")
                # The server's clock, not ours: the two may be on different machines.
                self._watermark = max(self._watermark or job.last_update, job.last_update)
                self._ids[key] = int(job.id)
                state = str(job.state.value)
                if key in self._ended or state not in (FINISHED, FAILED):
                    continue
                outcome = _outcome(key, job, state)
                self._ended[key] = outcome
                if key in self._futures:
                    deliveries.append((self._futures[key], outcome))
        for future, outcome in deliveries:
            if not future.done():
                future.set_result(outcome)


def _outcome(key: str, job: Any, state: str) -> Outcome:
    """How a finished or failed job ended; one that others changed by hand, into what we cannot read, is a bug."""
    data = job.data or {}
    attempts = int(data.get("attempts", 1))
    if state == FINISHED and data.get("record"):
        return Outcome(key, int(job.id), data["record"], attempts=attempts)
    failure = data.get("failure") or {}
    state_data = job.state_data or {}
    message = failure.get("message") or state_data.get("error") or state_data.get("message") or "no message was left"
    if state == FINISHED:
        message = "the job is finished but holds no record of its stage"
    kinds = {kind.value for kind in FailureKind}
    kind = FailureKind(failure["kind"]) if failure.get("kind") in kinds else FailureKind.BUG
    return Outcome(key, int(job.id), None, kind, str(message), attempts)
