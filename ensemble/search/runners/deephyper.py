"""Trials inside one allocation, or on one machine, through DeepHyper's own evaluators.

    with open_evaluator("thread", workers=4) as evaluator:
        if evaluator is not None:            # a rank of MPI that only worked has nothing else to do
            runner = DeepHyperRunner(evaluator, ...)

DeepHyper's search loop is left out: it learns of results only while it waits for them, and one exception in a worker
ends it.  What is used of an evaluator is `execute`, which has one job run by the backend, on an event loop in a thread
of its own: so trials are started and collected while the driver thinks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import secrets
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from concurrent.futures import wait as wait_for_futures
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DataError, FailureKind, ParameterError
from apps.core.ranks import read_launch
from ensemble.jobs import Outcome
from ensemble.search.definition import JobSize
from ensemble.search.keys import trial_key
from ensemble.search.runners.contract import Assignment, Report, Runner, TrialParameters, refused
from ensemble.search.runners.stage_run import Ending, StageRun, run_stage, run_stage_async
from ensemble.stage_process import end_with_parent

if TYPE_CHECKING:
    from deephyper.evaluator import Evaluator

log = logging.getLogger(__name__)

# How long `close` waits for runs to end that were told to.
CLOSE_S = 20.0


class DeepHyperRunner(Runner):
    """Runs each assignment as a stage in a process of its own, watched by a worker of a DeepHyper evaluator.

    What runs ends with the driver.  The same assignment, submitted to the next driver, starts again from the trial's
    checkpoint; one that had ended is not run again.
    """

    def __init__(self, evaluator: Evaluator, parameters: TrialParameters, stage: str, name: str, work: Path) -> None:
        """The runner takes the evaluator over; nobody else may use it, and it is open for longer than the runner.

        parameters, stage: what an assignment means.  name: of the search.  work: folder that every worker can write;
        below it every run has the folder that its key names, with `parameters.json`, `result.json`, `job.out`.
        Raises DataError where that cannot be made.
        """
        self._evaluator, self._parameters = evaluator, parameters
        self._stage, self._name, self._work = stage, name, work
        try:
            work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{work}: cannot be made ({error.strerror}); give a writable place") from error
        self._stop_file = work / f".stop-{secrets.token_hex(4)}"
        self._reports: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._running: set[Future[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="deephyper evaluator", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._take_over(), self._loop).result()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Raises ParameterError for an assignment of more than one process: a worker is one."""
        for assignment in assignments:
            if assignment.size != JobSize():
                raise ParameterError(
                    f"trial {assignment.trial}: {assignment.size}: DeepHyper's evaluators run a trial in one process; "
                    "run the search on Balsam, or give every configuration one node and one rank"
                )
        for assignment in assignments:
            key = trial_key(self._name, assignment.trial, assignment.rung, assignment.attempt)
            try:
                parameters = self._parameters.make(assignment)
            except Exception as error:
                self._reports.put(Report(assignment, refused(key, error)))
                continue
            run = StageRun(
                self._stage, parameters, str(self._work / key), assignment.time_limit_s, str(self._stop_file)
            )
            future = asyncio.run_coroutine_threadsafe(self._run(assignment, key, run), self._loop)
            self._running.add(future)
            future.add_done_callback(self._running.discard)

    def wait(self, timeout_s: float) -> list[Report]:
        reports = []
        with contextlib.suppress(queue.Empty):
            reports.append(self._reports.get(timeout=timeout_s))
            while True:
                reports.append(self._reports.get_nowait())
        return reports

    def nodes(self) -> int:
        """How many trials run at a time: the evaluator's workers, as far as Ray has room for them just now."""
        return living_workers(self._evaluator)

    def close(self) -> None:
        """End what runs (a second time: nothing)."""
        if self._loop.is_closed():
            return
        try:
            self._stop_file.touch()
        except OSError as error:
            log.warning("runs cannot be told to end file=%s error=%s", self._stop_file, error)
        _, left = wait_for_futures(list(self._running), timeout=CLOSE_S)
        if left:
            log.warning("runs did not end in time=%g number=%d", CLOSE_S, len(left))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._evaluator.close()
        self._loop.close()
        self._stop_file.unlink(missing_ok=True)

    async def _take_over(self) -> None:
        self._evaluator.set_event_loop()

    async def _run(self, assignment: Assignment, key: str, run: StageRun) -> None:
        try:
            ending: Ending = (await self._evaluator.execute(_job(self._evaluator, key, run))).output
        except Exception as error:
            log.warning("worker failed key=%s", key, exc_info=True)
            kind = FailureKind.KILLED if lost_worker(error) else FailureKind.BUG
            text = f"the worker that ran it failed: {type(error).__name__}: {error}"
            ending = Ending(record=None, failure=kind.value, message=text)
        failure = FailureKind(ending["failure"]) if ending["failure"] else None
        outcome = Outcome(key, 0, ending["record"], failure, ending["message"])
        self._reports.put(Report(assignment, outcome))


def _job(evaluator: Evaluator, key: str, run: StageRun) -> Any:
    from deephyper.evaluator import Job

    class StageJob(Job):
        """A job whose run function is given the StageRun alone, so that workers need not load DeepHyper (seconds)."""

        def create_running_job(self, stopper: Any) -> StageRun:
            return run

    return StageJob(key, {}, evaluator.run_function, _storage())


def lost_worker(error: BaseException) -> bool:
    """Whether the error says that the process of a worker is gone, which no other run is to blame for."""
    if isinstance(error, BrokenExecutor):
        return True
    if "ray" not in sys.modules:
        return False
    from ray.exceptions import RayError, RayTaskError

    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def living_workers(evaluator: Evaluator) -> int:
    """How many runs at a time there is room for."""
    workers: int = evaluator.num_workers
    if type(evaluator).__name__ != "RayEvaluator":
        return workers
    import ray

    return min(workers, int(ray.cluster_resources().get("CPU", 0) / evaluator.num_cpus_per_task + 1e-6))


@contextlib.contextmanager
def open_evaluator(name: str, workers: int) -> Iterator[Evaluator | None]:
    """DeepHyper's evaluator of that name with so many workers, for a `DeepHyperRunner`; on leaving, it is closed.

    Of a program that MPI started, every rank opens `mpicomm`: rank 0 is given the evaluator, the others run trials for
    it inside, until it is closed, and are given None.  Its workers are the other ranks, however many were asked for.
    Raises ParameterError where the name is unknown, or what the evaluator needs is not there.
    """
    if name not in EVALUATORS:
        raise ParameterError(f"evaluator {name!r}: expected one of {', '.join(EVALUATORS)}")
    if workers < 1:
        raise ParameterError(f"workers = {workers}: expected at least 1")
    with EVALUATORS[name](workers) as evaluator:
        yield evaluator


@contextlib.contextmanager
def _serial(workers: int) -> Iterator[Evaluator]:
    from deephyper.evaluator import SerialEvaluator

    yield SerialEvaluator(run_stage_async, num_workers=workers, storage=_storage())


@contextlib.contextmanager
def _thread(workers: int) -> Iterator[Evaluator]:
    from deephyper.evaluator import ThreadPoolEvaluator

    with ThreadPoolEvaluator(run_stage, num_workers=workers, storage=_storage()) as evaluator:
        yield evaluator


@contextlib.contextmanager
def _process(workers: int) -> Iterator[Evaluator]:
    from deephyper.evaluator import ProcessPoolEvaluator

    # Fresh processes: a fork would copy a driver that has threads, and one from a fork server would outlive the driver.
    context = multiprocessing.get_context("spawn")

    class Evaluator(ProcessPoolEvaluator):
        """The same, with a new pool after one was lost: a worker that dies takes the pool with it."""

        def __init__(self) -> None:
            super().__init__(run_stage, num_workers=workers, storage=_storage())
            self.executor = new_pool()  # the other has started nothing yet

        async def execute(self, job: Any) -> Any:
            try:
                return await super().execute(job)
            except BrokenExecutor:
                try:
                    self.executor.submit(os.getpid)
                except BrokenExecutor:
                    self.executor = new_pool()
                raise

    def new_pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),))

    with Evaluator() as evaluator:
        yield evaluator


@contextlib.contextmanager
def _ray(workers: int) -> Iterator[Evaluator]:
    """On the cluster that RAY_ADDRESS names, its CPUs and GPUs shared out among the workers, or on one of its own."""
    # What is tried again, and how often, is the driver's to say; and nothing is sent out of the machine.
    os.environ.setdefault("RAY_TASK_MAX_RETRIES", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ParameterError(f"evaluator ray: {error}; install the project's extra `ray`") from error
    from deephyper.evaluator import RayEvaluator

    ours = not ray.is_initialized()
    if ours:
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a later Ray will not do any more
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **own)
    try:
        there = ray.cluster_resources()
        yield RayEvaluator(
            run_stage,
            num_workers=workers,
            storage=_storage(),
            num_cpus_per_task=_share(there.get("CPU", 0), workers),
            num_gpus_per_task=_share(there.get("GPU", 0), workers),
        )
    finally:
        if ours:
            ray.shutdown()


def _share(there: float, workers: int) -> float:
    """What one of `workers` gets of a resource; Ray takes whole numbers, and parts of one."""
    share = there / workers
    return int(share) if share >= 1 else int(share * 1e4) / 1e4


@contextlib.contextmanager
def _mpicomm(workers: int) -> Iterator[Evaluator | None]:
    launch = read_launch()
    if launch.size == 1:
        raise ParameterError(
            "evaluator mpicomm: this is the only rank, and it drives; for N workers start it with mpiexec -n N+1"
        )
    try:
        import mpi4py
    except ImportError as error:
        raise ParameterError(f"evaluator mpicomm: {error}; install the project's extra `mpi`") from error
    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # as DeepHyper has it
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if not MPI.Is_initialized():
        MPI.Init_thread()
    world = MPI.COMM_WORLD
    if world.Get_size() == 1:
        raise ParameterError(
            f"evaluator mpicomm: {launch.launcher} started {launch.size} ranks, of which MPI knows one: mpi4py was "
            "built for another MPI than this launcher is of"
        )
    if world.Get_rank() > 0:
        # What the evaluator would do here, without thousands of ranks reading all of DeepHyper from one file system.
        world.Barrier()
        with MPICommExecutor(world, root=0):
            pass
        yield None
        return
    from deephyper.evaluator import MPICommEvaluator

    with MPICommEvaluator(run_stage, storage=_storage()) as evaluator:
        yield evaluator


def _storage() -> Any:
    """What DeepHyper would tell the workers of each other's jobs: nothing."""
    from deephyper.evaluator.storage import NullStorage

    return NullStorage()


# To add one: a function as those above, and a line here; tests/ensemble/search/runners runs over them.
EVALUATORS: dict[str, Callable[[int], AbstractContextManager[Evaluator | None]]] = {
    "serial": _serial,
    "thread": _thread,
    "process": _process,
    "ray": _ray,
    "mpicomm": _mpicomm,
}
