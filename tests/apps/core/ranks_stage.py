"""A stage of several ranks for test_ranks.py and test_time_limit.py: `python ranks_stage.py parameters.json`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Annotated

from msgspec import Meta

from apps.core import time_limit
from apps.core.errors import DataError, DivergedError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.ranks import read_launch
from apps.core.stage import Stage, stage_main


class RanksParameters(Parameters, frozen=True, kw_only=True):
    error: Annotated[str, Meta(description="what the failing rank does: data, diverged, bug, killed, hang, stuck")] = ""
    failing: Annotated[int, Meta(description="rank that fails")] = 0
    sleep: Annotated[float, Meta(description="seconds for which the others sleep")] = 0
    mpi: Annotated[bool, Meta(description="whether the others start MPI and wait in it for the failing one")] = False
    after_mpi: Annotated[bool, Meta(description="whether the failing one starts MPI too before it fails")] = False


class RanksResult(Result, frozen=True, kw_only=True):
    rank: Annotated[int, Meta(description="the rank that says so")]


def run(parameters: RanksParameters, report: Reporter) -> RanksResult:
    rank = read_launch().rank
    report(1, 1, f"rank {rank}")
    fails = bool(parameters.error) and rank == parameters.failing
    if parameters.mpi and (parameters.after_mpi or not fails):
        from mpi4py import MPI

        if not fails:
            MPI.COMM_WORLD.barrier()
    if fails:
        time.sleep(0.3)  # the others are in what they do
        fail(parameters.error, f"said rank {rank}")
    time.sleep(parameters.sleep)
    return RanksResult(rank=rank)


def fail(error: str, message: str) -> None:
    if error == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if error == "hang":
        time.sleep(60)
    if error == "stuck":
        ctypes.PyDLL(None).sleep(60)  # in native code, and holding the interpreter's lock
    raise {"data": DataError, "diverged": DivergedError, "bug": RuntimeError}[error](message)


STAGE = Stage("ranks", "Stand in for a training.", RanksParameters, RanksResult, run, example={}, several_ranks=True)

if __name__ == "__main__":
    time_limit.BACKUP_S = 1.0
    sys.exit(stage_main(STAGE))
