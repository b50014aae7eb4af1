"""What a local site's settings.yml names to run Balsam's agent and launcher on one machine, and promptly.

Balsam imports the classes that settings.yml names when an agent or a launcher starts.  This module holds such classes
for one machine: virtual nodes, a runner for their jobs, and a scheduler of local processes.  Being imported there, it
also shortens the waits with which Balsam spares a distant server (a no-op job takes 6 s with them and less than half a
second without), keeps a launcher of thousands of nodes quick, and sends updates so that the server loses none.
"""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import balsam._api.app as app
import balsam.site.job_source as job_source
import balsam.site.launcher._mpi_mode as mpi_mode
import balsam.site.status_updater as status_updater
import jinja2
import jinja2.meta
import psutil
from balsam._api.models import Session
from balsam.platform.app_run.app_run import FailedStartProcess, SubprocessAppRun
from balsam.platform.compute_node import DefaultNode
from balsam.platform.scheduler import LocalProcessScheduler, SchedulerSubmitError
from balsam.schemas import MAX_ITEMS_PER_BULK_OP, SchedulerJobStatus
from balsam.util import SigHandler

from ensemble.gpus import VARIABLE as CUDA_VISIBLE
from ensemble.gpus import machine_gpus, share_of_node
from ensemble.node_manager import QuickNodeManager
from ensemble.settings import LAUNCHER_VARIABLE, batch_job_nodes, current_site, inherited_environment

JOB_SOURCE_POLL_S = 0.1  # Balsam: 1 s
LAUNCHER_POLL_S = 0.05  # Balsam: 1 s, or no pause at all (a busy loop of requests) with delay_sec 0
UPDATE_WINDOW_S = 0.03  # Balsam: until nothing has come for 1 s
# Asking that often costs a third of a core.  So when no job has come for some time, both ask less often.
QUIET_POLL_S = 0.5
BUSY_S = 5.0


class VirtualNode(DefaultNode):
    """One of as many nodes as the batch job asked for; all of them are this machine.

    A node has no CPUs of its own: jobs share the machine's, and its operating system schedules them.  It has its share
    of the machine's GPUs, which a job sees that asks for no number of them.
    """

    cpu_ids: list[int] = []  # noqa: RUF012 (Balsam's class attribute)

    @classmethod
    def get_job_nodelist(cls) -> list[VirtualNode]:
        host, nodes, gpus = socket.gethostname(), batch_job_nodes(), machine_gpus()
        return [cls(f"{host}-{i}", host, share_of_node(gpus, i, nodes)) for i in range(nodes)]

    def check_fit(self, num_cpus: int, num_gpus: int, occupancy: float) -> bool:
        return bool(super().check_fit(0, num_gpus, occupancy))

    def assign(self, job_id: int, num_cpus: int = 0, num_gpus: int = 0, occupancy: float = 1.0) -> dict[str, Any]:
        given: dict[str, Any] = super().assign(job_id, num_cpus, num_gpus, occupancy)
        return given if num_gpus else {**given, "gpu_ids": list(self.idle_gpus)}


class LocalRun(SubprocessAppRun):
    """Runs a job of one rank as it is, and one of more ranks under the environment's `mpiexec`; pins no CPUs.

    A job is a process group of its own, which ends with the job's command, on request, or with its launcher.
    """

    def _set_envs(self) -> None:
        super()._set_envs()
        gpus = [gpu for of_node in self._node_spec.gpu_ids for gpu in of_node]  # Balsam takes those of the first node
        if gpus:
            self._envs[CUDA_VISIBLE] = ",".join(dict.fromkeys(gpus))

    def _build_cmdline(self) -> str:
        ranks = self.get_num_ranks()
        if ranks == 1:
            return str(self._cmdline)
        return f"{Path(sys.executable).parent}/mpiexec -launcher fork -n {ranks} {self._cmdline}"

    def start(self) -> None:
        self._set_envs()
        command = self._build_preamble() + self._build_cmdline()
        self._outfile = self._open_outfile()
        try:
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=self._outfile,
                stderr=subprocess.STDOUT,
                env=self._envs,
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            self._outfile.write(f"the job could not be started: {error}\n".encode())
            self._process = cast(Any, FailedStartProcess())

    def terminate(self) -> None:
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        self._outfile.close()
        self._process.poll()

    def _signal_group(self, number: signal.Signals) -> None:
        if isinstance(self._process, subprocess.Popen):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return


def _parent_death_signal() -> Callable[[], None]:
    """A function for a new child: the kernel kills it when the process that started it dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return lambda: None
    prctl, set_parent_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


_end_with_parent = _parent_death_signal()


class LocalScheduler(LocalProcessScheduler):
    """Batch jobs as local processes: each script is a session of its own, marked so that all it started can be found.

    Balsam's own local scheduler takes every process of the user for a batch job.
    """

    @classmethod
    def submit(cls, script_path: str | Path, *args: Any, **kwargs: Any) -> int:
        script = Path(script_path)
        try:
            with script.with_suffix(".output").open("wb") as output:
                process = subprocess.Popen(
                    ["/bin/bash", str(script)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=script.parent,
                    env={**inherited_environment(), LAUNCHER_VARIABLE: str(script)},
                    start_new_session=True,
                )
        except OSError as error:
            raise SchedulerSubmitError(f"{script} cannot be started: {error}") from error
        cls._subprocesses.append(process)
        return process.pid

    @classmethod
    def get_statuses(cls, *args: Any, **kwargs: Any) -> dict[int, SchedulerJobStatus]:
        """The batch scripts of this site that run, by pid."""
        cls._subprocesses = [process for process in cls._subprocesses if process.poll() is None]
        folder = current_site() / "qsubmit"
        found = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            if len(words) == 2 and Path(words[1]).parent == folder and process.info["status"] != psutil.STATUS_ZOMBIE:
                found[process.pid] = SchedulerJobStatus(
                    scheduler_id=process.pid,
                    state="running",
                    queue="local",
                    num_nodes=1,
                    wall_time_min=0,
                    project="local",
                    time_remaining_min=0,
                    queued_time_min=0,
                )
        return found


class _Pace:
    """How long this process pauses between two requests for jobs: shortly while jobs come."""

    def __init__(self) -> None:
        self._last_jobs = time.monotonic()

    def jobs_came(self) -> None:
        self._last_jobs = time.monotonic()

    def pause_s(self, busy_pause_s: float) -> float:
        return busy_pause_s if time.monotonic() - self._last_jobs < BUSY_S else QUIET_POLL_S


_pace = _Pace()


class _PromptSigHandler(SigHandler):
    """Balsam's signal handler for the agent's loop that waits a second between two requests: it waits less here."""

    @staticmethod
    def wait_until_exit(timeout: float = 1.0) -> bool:
        return bool(SigHandler.wait_until_exit(min(timeout, _pace.pause_s(JOB_SOURCE_POLL_S))))


def _countdown(time_limit_min: float, delay_sec: int) -> Iterator[float]:
    """The minutes that a launcher has left, at the pace of its loop; ends with its time.

    Where a turn of the loop takes long (thousands of jobs), so do the pauses: it works half of the time at most.
    """
    now = time.monotonic()
    end = now + 60 * time_limit_min
    while now < end:
        worked = time.monotonic() - now
        time.sleep(min(max(_pace.pause_s(LAUNCHER_POLL_S), worked), QUIET_POLL_S))
        now = time.monotonic()
        yield max(0.0, end - now) / 60


class PromptLauncher(mpi_mode.Launcher):
    """Balsam's launcher; it looks for jobs that have ended right before it asks for others, and not right after.

    When it ends it says of the jobs that it runs that their time is over, and only then gives the lease on them back.
    Balsam's own gives it back first, and the server then takes the jobs for those of a launcher that was lost.
    """

    def launch_runs(self) -> None:
        self.update_states()
        super().launch_runs()

    def check_exit(self) -> None:
        super().check_exit()
        if self.sig_handler.is_set():
            self.update_states(timeout=True)
            self.status_updater.terminate()  # it sends what it has
            self.status_updater.join()


def _acquire_jobs(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Balsam's request for jobs, which sets the pace."""
    jobs: list[Any] = _balsam_acquire_jobs(self, *args, **kwargs)
    if jobs:
        _pace.jobs_came()
    return jobs


_balsam_acquire_jobs = Session.acquire_jobs


def _send_updates_promptly(self: Any) -> None:
    """Loop of a status updater: what comes within `UPDATE_WINDOW_S` of the first update goes out in one request."""
    self.client.close_session()
    stop = SigHandler()
    while not stop.is_set():
        try:
            updates = [self.queue.get(block=True, timeout=1)]
        except queue.Empty:
            continue
        stop.wait_until_exit(UPDATE_WINDOW_S)
        while True:
            try:
                updates.append(self.queue.get_nowait())
            except queue.Empty:
                break
        self._perform_updates(updates)
    self._drain_queue()


def _perform_updates(self: Any, updates: list[dict[str, Any]]) -> None:
    """Send updates of jobs: those of one job one after the other, and in one request only such of the same fields.

    The server takes the fields of a request from its first update: it forgets a field that only a later one has, and
    fails where a later one lacks a field.
    """
    waiting: dict[int, list[dict[str, Any]]] = {}
    for update in sorted(updates, key=lambda update: update["state_timestamp"]):
        waiting.setdefault(update["id"], []).append(update)
    while waiting:
        alike: dict[frozenset[str], list[dict[str, Any]]] = {}
        for of_one_job in waiting.values():
            update = of_one_job.pop(0)
            alike.setdefault(frozenset(update), []).append(update)
        for bulk in alike.values():
            for start in range(0, len(bulk), MAX_ITEMS_PER_BULK_OP):
                self.client.bulk_patch("jobs/", bulk[start : start + MAX_ITEMS_PER_BULK_OP])
        waiting = {number: of_one_job for number, of_one_job in waiting.items() if of_one_job}


def _tune() -> None:
    """Put the prompt loops into the modules of this process; agents and launchers fork their helpers from it."""
    job_source.SigHandler = _PromptSigHandler
    status_updater.StatusUpdater._run = _send_updates_promptly
    status_updater.BulkStatusUpdater._perform_updates = _perform_updates
    mpi_mode.countdown_timer_min = _countdown
    mpi_mode.Launcher = PromptLauncher
    mpi_mode.NodeManager = QuickNodeManager
    # A command is parsed for every job otherwise, which takes longer than all else that is done to start it.
    app.jinja2 = SimpleNamespace(
        Template=functools.cache(jinja2.Template), Environment=jinja2.Environment, meta=jinja2.meta
    )
    Session.acquire_jobs = _acquire_jobs


_tune()
