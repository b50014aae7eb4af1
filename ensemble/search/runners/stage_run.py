"""One run of a stage in a process of its own, watched by the worker of a pool that it was given to.

The worker starts the stage as Balsam's launcher does, in a folder of its own with `parameters.json`, and reads what it
left there: `result.json`, or `failure.json` with the failure's kind, or neither where the machine ended it.  So a stage
that takes its process down takes no worker with it, and one that hangs can be ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from apps.core.errors import DataError, FailureKind, NoRoomError, kind_of
from apps.core.exits import exit_words
from apps.core.parameters import json_hash, write_json
from apps.core.ranks import LAUNCHERS, PMI_SOCKET, STEP
from apps.core.stage import FAILURE_FILE, RESULT_FILE
from apps.core.time_limit import BACKUP_S, hung_message, remove_traces, trace_file, was_ended

PARAMETERS_FILE = "parameters.json"
OUTPUT_FILE = "job.out"

# What tells a process that it is one of several ranks: the worker may be one, the stage that it starts is not.
RANK_VARIABLES = frozenset({name for names in LAUNCHERS.values() for name in names} | {STEP, PMI_SOCKET})

# Seconds between two looks at the process: a fiftieth of its age, within these bounds.
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.01, 0.5
# Seconds between two looks for the file that says that the search ends.
STOP_LOOK_S = 1.0
# A stage ends itself at its time limit; one that cannot even do that (it was stopped) is ended so much later.
PATIENCE_S = BACKUP_S + 10.0


class Ending(TypedDict):
    """How a run ended, in plain types that every pool can carry: a record, or a failure's kind with a message."""

    record: dict[str, Any] | None
    failure: str | None
    message: str


@dataclass(frozen=True)
class StageRun:
    """What a worker is to do.

    Attributes:
        stage, parameters: what to run.
        folder: of this run alone; made where it is missing.
        time_limit_s: after so many seconds it is ended, as hung.
        stop_file: when this file appears, the run is ended.
    """

    stage: str
    parameters: dict[str, Any]
    folder: str
    time_limit_s: float | None
    stop_file: str


def run_stage(run: StageRun) -> Ending:
    """Have it run; never raises for what the stage does."""
    with closing(_watch(run)) as steps:
        while True:
            try:
                time.sleep(next(steps))
            except StopIteration as end:
                return _ending(end)


async def run_stage_async(run: StageRun) -> Ending:
    """The same, for a worker that has one thread for all its runs."""
    with closing(_watch(run)) as steps:
        while True:
            try:
                pause = next(steps)
            except StopIteration as end:
                return _ending(end)
            await asyncio.sleep(pause)


def _ending(end: StopIteration) -> Ending:
    ending: Ending = end.value
    return ending


def _watch(run: StageRun) -> Generator[float, None, Ending]:
    """Start the stage and see to its end; yields how long to pause before the next look.

    A run whose folder holds its end already, for these parameters, is not run again: a driver that was killed before
    it heard of that end asks for the same run.
    """
    folder = Path(run.folder)
    try:
        before = _read(folder / PARAMETERS_FILE)
        if before is not None and json_hash(before) == json_hash(run.parameters) and (ending := read_ending(folder)):
            return ending
        process = _start(run, folder)
    except (OSError, DataError) as error:
        kind = kind_of(error) if kind_of(error) is FailureKind.NO_ROOM else FailureKind.LOST_NODE
        return _failed(kind, f"{run.stage} could not be started: {error}")
    began = looked = time.monotonic()
    try:
        while process.poll() is None:
            now = time.monotonic()
            if run.time_limit_s is not None and now - began > run.time_limit_s + PATIENCE_S:
                return _failed(FailureKind.HUNG, hung_message(run.time_limit_s, trace_file(folder, 0)))
            if now - looked > STOP_LOOK_S:
                looked = now
                if Path(run.stop_file).exists():
                    return _failed(FailureKind.KILLED, "was told to end")
            yield min(max(SHORTEST_PAUSE_S, (now - began) / 50), LONGEST_PAUSE_S)
    finally:
        _end(process)
    return read_ending(folder) or _without_a_word(run, folder, process.returncode)


def _start(run: StageRun, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULT_FILE, FAILURE_FILE):
        (folder / name).unlink(missing_ok=True)
    remove_traces(folder)
    write_json(folder / PARAMETERS_FILE, run.parameters)
    # -P: what lies in the folder is never imported.
    command = [sys.executable, "-P", "-m", "ensemble.stage_process", str(os.getpid()), run.stage, PARAMETERS_FILE]
    if run.time_limit_s is not None:
        command += ["--time-limit", repr(run.time_limit_s)]
    with (folder / OUTPUT_FILE).open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that an interrupt from the keyboard is the driver's alone
        )


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in RANK_VARIABLES}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the stage: itself where it runs, and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_ending(folder: Path) -> Ending | None:
    """What the stage left in its folder; None where it left neither file."""
    record, failure = _read(folder / RESULT_FILE), _read(folder / FAILURE_FILE)
    if record is not None:
        return Ending(record=record, failure=None, message="")
    if failure is not None:
        return _failed(FailureKind(failure["kind"]), failure["message"])
    return None


def _without_a_word(run: StageRun, folder: Path, code: int) -> Ending:
    trace = was_ended(folder)
    if trace is not None:
        return _failed(FailureKind.HUNG, hung_message(run.time_limit_s, trace))
    if code == 0:
        return _failed(FailureKind.BUG, f"{run.stage} ended with exit code 0 but wrote no {RESULT_FILE}")
    if code == NoRoomError.exit_code:
        return _failed(FailureKind.NO_ROOM, f"a disk is full, and has no room for {FAILURE_FILE} in {folder}")
    how = exit_words(code)
    message = f"the process ended with {how}, without a result and without naming a failure; see {folder / OUTPUT_FILE}"
    return _failed(FailureKind.KILLED, message)


def _failed(kind: FailureKind, message: str) -> Ending:
    return Ending(record=None, failure=kind.value, message=message)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return content
