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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from apps.core.errors import FailureKind, ParameterError, TransientError
from ensemble.campaigns import Campaign
from ensemble.job_requests import Row, delete_jobs, failure_message, fetch_jobs, stop_jobs
from ensemble.polling import ENDED, FINISHED, NOT_STARTED, EndedJobs

log = logging.getLogger(__name__)

# A submission that took so long may have been sent twice: the server was lost after it had done it, and came back.
SLOW_SUBMISSION_S = 1.0
CLOCKS_DIFFER = timedelta(seconds=10)
# Polls that fail one after the other, each waiting longer than the last (30 s at most), before waiting is given up.
MAX_POLL_FAILURES = 10


@dataclass(frozen=True)
class Task:
    """One stage run to be done as a Balsam job.

    Attributes:
        key: unique within the campaign.
        stage: name of the stage (apps.core.stage.STAGES).
        parameters: the stage's parameters as plain JSON.
        tags: further tags (`search`, `trial`, `model`).
        after: keys of tasks that must finish first; they are earlier in the same submission, or known already.
        outputs: files and folders that the stage makes; the task is done again where one is gone.
        claims: names for the parts of the output that the task writes, and no other at the same time.
        num_nodes, ranks_per_node: size of the job.
        jobs_per_node: how many such jobs may share a node.
        wall_time_min: estimate in minutes, 0 for none; a launcher with less time left does not start the job.
        time_limit_s: a process that takes longer is ended, and the task has failed as `hung`; None for no limit.
        max_attempts: how often the job is started whose process the machine ends; None for what apps.definitions says.
        workdir: the job's work directory below the campaign's; the key where it is not given.

    Raises ParameterError where a number is not positive.
    """

    key: str
    stage: str
    parameters: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    num_nodes: int = 1
    ranks_per_node: int = 1
    jobs_per_node: int = 1
    wall_time_min: int = 0
    time_limit_s: float | None = None
    max_attempts: int | None = None
    workdir: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_nodes", "ranks_per_node", "jobs_per_node", "time_limit_s", "max_attempts"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ParameterError(f"task {self.key}: {name} = {value}; expected a positive number")

    @property
    def place(self) -> str:
        """The work directory below the campaign's."""
        return self.workdir or self.key

    @property
    def threads_per_rank(self) -> int:
        """By the name that they have in every stage.  Where ranks are pinned to cores, Balsam gives each as many."""
        return int(self.parameters.get("threads", 1))


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
    """All jobs of one campaign; their work directories are `data_path / root / key` where tasks do not say otherwise.

    Thread-safe: `submit` may be called from any thread.  One thread submits (what came within a moment goes in one bulk
    call), one polls (one incremental query for the whole campaign, however many jobs there are).  Use as a context
    manager; leaving it stops the threads and leaves the jobs alone.
    """

    def __init__(self, campaign: Campaign, app_ids: dict[str, int], data_path: Path, poll_s: float = 0.25) -> None:
        self.campaign = campaign.name
        self.data_path = data_path
        self.root = Path(f"{campaign.name}-{campaign.uid}")
        self._filter = [f"campaign:{campaign.name}", f"campaign_uid:{campaign.uid}"]
        self._ended_jobs = EndedJobs(self._filter)
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
        self._places: dict[str, Path] = {}
        self._forgotten: set[int] = set()
        self._cancelled: set[str] = set()

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
            self._places.setdefault(task.key, self.root / task.place)
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

    def find(self, keys: Iterable[str]) -> None:
        """Look for the jobs of these keys that others have submitted since this was opened, so as not to repeat them.

        Raises what the service raises where it does not answer.
        """
        with self._lock:
            unknown = set(keys) - self._ids.keys()
        if not unknown:
            return
        rows = [row for row in fetch_jobs({"tags": self._filter}) if row["tags"].get("task") in unknown]
        with self._lock:
            for row in rows:
                self._know(row)

    def outcome(self, key: str) -> Outcome | None:
        """How the task ended; None where it has not, or is not known."""
        with self._lock:
            return self._ended.get(key)

    def unfinished(self) -> set[str]:
        """Keys of the tasks that have a job, of this driver or of an earlier one, which has not ended."""
        with self._lock:
            return self._ids.keys() - self._ended.keys()

    def workdir(self, key: str) -> Path:
        """Where the job of this task runs (on a machine that sees the site's data folder)."""
        with self._lock:
            return self.data_path / self._places.get(key, self.root / key)

    def forget(self, keys: Iterable[str]) -> None:
        """Delete the jobs of these keys from Balsam, so that the same tasks can be submitted anew."""
        ids = []
        with self._lock:
            for key in keys:
                if key in self._ids:
                    ids.append(self._ids.pop(key))
                self._ended.pop(key, None)
                self._futures.pop(key, None)
                self._places.pop(key, None)
                self._cancelled.discard(key)
            # A poll whose query is under way may still bring them.
            self._forgotten.update(ids)
        delete_jobs(ids)

    def withdraw(self, keys: Iterable[str]) -> set[str]:
        """Take the tasks of these keys back that have not started; returns those that have, and go on.

        The outcome of the others is `killed`, "was cancelled".  Raises what the service raises where it is lost.
        """
        with self._lock:
            wanted = {key for key in keys if key not in self._ended}
            submitted = wanted & self._ids.keys()
        waiting = fetch_jobs({"tags": self._filter, "state": list(NOT_STARTED)}) if submitted else ()
        started = submitted - {row["tags"].get("task", "") for row in waiting}
        self.cancel(wanted - started)
        return started

    def cancel(self, keys: Iterable[str]) -> None:
        """End these tasks; the outcome of those that have not ended yet is `killed`, "was cancelled".

        Balsam has no such thing.  Jobs that have not started are taken out of it; a later driver may submit them anew.
        The processes of jobs that run on this machine are ended, and not started again.  Those on another machine go
        on, to their time limit at most, and this driver does not look at what they do.
        """
        cancelled: list[tuple[Future[Outcome] | None, Outcome]] = []
        with self._lock:
            for key in keys:
                if key not in self._ended:
                    outcome = Outcome(key, self._ids.get(key, 0), None, FailureKind.KILLED, "was cancelled")
                    self._cancelled.add(key)
                    self._ended[key] = outcome
                    cancelled.append((self._futures.get(key), outcome))
        ids = [outcome.job_id for _, outcome in cancelled if outcome.job_id]
        delete_jobs(ids)
        stop_jobs(ids, self.data_path.parent)
        delete_jobs(ids)  # those that the agent held a moment ago
        for future, outcome in cancelled:
            if future is not None and not future.done():
                future.set_result(outcome)

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
                waiting = [task for task in waiting if task.key not in self._cancelled]
                ready = self._ready(waiting)
                parents = {task.key: {self._ids[key] for key in task.after} for task in ready}
            if not waiting:
                return
            if not ready:
                missing = sorted({key for task in waiting for key in task.after})
                raise ValueError(f"tasks wait for tasks that were never submitted: {', '.join(missing)}")
            begin = time.monotonic()
            jobs = Job.objects.bulk_create([self._job(task, parents[task.key]) for task in ready])
            ids = {job.tags["task"]: int(job.id) for job in jobs}
            took_s = time.monotonic() - begin
            if took_s > SLOW_SUBMISSION_S:
                ids = self._without_duplicates(ids, took_s)
            with self._lock:
                self._ids |= ids
                cancelled = [ids[key] for key in ids if key in self._cancelled]
            delete_jobs(cancelled)
            log.info("submitted jobs=%d campaign=%s", len(jobs), self.campaign)
            waiting = [task for task in waiting if task.key not in ids]

    def _ready(self, waiting: Sequence[Task]) -> list[Task]:
        """Tasks that wait for none without a job; Balsam takes no two jobs of one work directory in one call."""
        ready: dict[str, Task] = {}
        for task in waiting:
            if all(key in self._ids for key in task.after):
                ready.setdefault(task.place, task)
        return list(ready.values())

    def _without_duplicates(self, ids: dict[str, int], seconds: float) -> dict[str, int]:
        """Take out of Balsam what a repeated request has made a second time; returns key -> job that stays."""
        stay = dict(ids)
        extra = []
        since = datetime.now(UTC) - timedelta(seconds=seconds) - CLOCKS_DIFFER
        for row in fetch_jobs({"tags": self._filter, "last_update_after": since.isoformat()}):
            key, number = row["tags"].get("task", ""), int(row["id"])
            if key in ids and number != stay[key] and number not in self._forgotten:
                # The older one may be running.
                extra.append(max(number, stay[key]))
                stay[key] = min(number, stay[key])
        if extra:
            log.warning("submitted twice, taken back jobs=%d campaign=%s", len(extra), self.campaign)
        delete_jobs(extra)
        return stay

    def _job(self, task: Task, parent_ids: set[int]) -> Any:
        from balsam.api import Job

        data: dict[str, Any] = {"parameters": task.parameters}
        if task.max_attempts is not None:
            data["max_attempts"] = task.max_attempts
        return Job(
            workdir=self.root / task.place,
            app_id=self._app_ids[task.stage],
            tags={**self._tags, "stage": task.stage, "task": task.key, **task.tags},
            data=data,
            parameters={"time_limit": str(task.time_limit_s)} if task.time_limit_s else {},
            num_nodes=task.num_nodes,
            ranks_per_node=task.ranks_per_node,
            threads_per_rank=task.threads_per_rank,
            node_packing_count=task.jobs_per_node,
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
                # The server may be restarting; the next query asks for the same again, so nothing is missed.
                failures += 1
                log.warning("poll failed times=%d campaign=%s", failures, self.campaign, exc_info=failures == 1)
                if failures >= MAX_POLL_FAILURES:
                    self._fail_all(error)
            self._stop.wait(self._ended_jobs.pause_s(min(30.0, self._poll_s * 2 ** min(failures, 7))))

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
        deliveries: list[tuple[Future[Outcome], Outcome]] = []
        rows = self._ended_jobs.ask()
        ended = []
        with self._lock:
            for row in rows:
                key, number = row["tags"].get("task", ""), int(row["id"])
                if number in self._forgotten:
                    continue
                self._know(row)
                if row["state"] in ENDED and key not in self._ended:
                    ended.append(row)
        outcomes = [_outcome(row) for row in ended]  # may ask for more
        with self._lock:
            for outcome in outcomes:
                if outcome.key in self._ended or outcome.job_id != self._ids.get(outcome.key):
                    continue
                self._ended[outcome.key] = outcome
                if outcome.key in self._futures:
                    deliveries.append((self._futures[outcome.key], outcome))
        self._ended_jobs.taken()
        for future, outcome in deliveries:
            if not future.done():
                future.set_result(outcome)

    def _know(self, row: Row) -> None:
        key, number = row["tags"].get("task", ""), int(row["id"])
        # Of two jobs of one task the newer counts: the older was forgotten by an earlier driver while it ran.
        self._ids[key] = max(number, self._ids.get(key, number))
        self._places.setdefault(key, Path(row["workdir"]))


def _outcome(row: Row) -> Outcome:
    """How a finished or failed job ended; one that others changed by hand, into what we cannot read, is a bug."""
    key, number, data = row["tags"].get("task", ""), int(row["id"]), row["data"] or {}
    attempts = int(data.get("attempts", 1))
    if row["state"] == FINISHED:
        if data.get("record"):
            return Outcome(key, number, data["record"], attempts=attempts)
        message = "the job is finished but holds no record of its stage"
        return Outcome(key, number, None, FailureKind.BUG, message, attempts)
    if data.get("cancelled"):
        return Outcome(key, number, None, FailureKind.KILLED, "was cancelled", attempts)
    failure = data.get("failure") or {}
    kinds = {kind.value for kind in FailureKind}
    kind = FailureKind(failure["kind"]) if failure.get("kind") in kinds else FailureKind.BUG
    return Outcome(key, number, None, kind, str(failure.get("message") or failure_message(number)), attempts)
