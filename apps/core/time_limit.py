"""The end of a stage that takes longer than it may: `python -m apps.<stage> parameters.json --time-limit SECONDS`.

Two clocks watch, because either can be stopped by what it watches.  A thread ends the process in good order, and says
why in `failure.json`; it gets no turn while native code holds the interpreter.  The back-up is faulthandler's own
thread, which needs no interpreter: it ends the process some seconds later, and all that it leaves is where every thread
was, in the trace file.  So a trace file that is not empty means: ended at the time limit (`was_ended`).

Every rank of a launch watches itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from apps.core.errors import HungError
from apps.core.ranks import ONE_RANK, Launch

# What the thread has for writing the failure, before the back-up ends the process.
BACKUP_S = 5.0
# Beyond this (30 years) a number of seconds is a mistake, and more than a clock of the system takes.
LONGEST_S = 1e9

TRACE_FILES = "hang-rank*.txt"
STANDARD_ERROR = 2


def parse_time_limit(text: str) -> float | None:
    """The limit in seconds that `text` says; None for 0, no limit.  Raises ValueError for what is no such number."""
    seconds = float(text)
    if not (math.isfinite(seconds) and 0 <= seconds <= LONGEST_S):
        raise ValueError(f"{text}: expected seconds from 0 (no limit) to {LONGEST_S:.0e}")
    return seconds or None


def trace_file(folder: Path, rank: int) -> Path:
    """Where a rank that is ended leaves where its threads were."""
    return folder / TRACE_FILES.replace("*", str(rank))


def was_ended(folder: Path) -> Path | None:
    """The trace of a rank that was ended at the time limit; None where none was."""
    return next((path for path in sorted(folder.glob(TRACE_FILES)) if path.stat().st_size > 0), None)


def remove_traces(folder: Path) -> None:
    """Remove what earlier runs left."""
    for path in folder.glob(TRACE_FILES):
        path.unlink(missing_ok=True)


def hung_message(seconds: float | None, trace: Path) -> str:
    """What `failure.json` says of a process that was ended, and whose threads were where `trace` says."""
    limit = "its time limit" if seconds is None else f"its time limit of {seconds:g} s"
    return f"ran longer than {limit} and was ended; {trace} says where it was"


@contextlib.contextmanager
def time_limit(
    seconds: float | None, folder: Path, give_up: Callable[[HungError], NoReturn], launch: Launch = ONE_RANK
) -> Iterator[None]:
    """Let the block take `seconds` (None: as long as it likes); what takes longer ends with the process.

    `give_up` is called in another thread with the error to record, and ends the process.  `BACKUP_S` later the process
    is ended whatever it does.  `folder`: where the trace file is written; one of an earlier run is removed.
    """
    if seconds is None:
        yield
        return
    trace = trace_file(folder, launch.rank)
    over = threading.Event()
    with _opened(trace) as stream:

        def watch() -> None:
            if over.wait(seconds):
                return
            faulthandler.dump_traceback(stream, all_threads=True)
            give_up(HungError(hung_message(seconds, trace)))

        faulthandler.dump_traceback_later(seconds + BACKUP_S, exit=True, file=stream)
        threading.Thread(target=watch, name="time limit", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _opened(trace: Path) -> Iterator[int]:
    """A descriptor of the trace file, which is removed afterwards; standard error's where it cannot be made."""
    try:
        stream = trace.open("wb")
    except OSError:
        yield STANDARD_ERROR  # the limit is kept all the same
        return
    try:
        with stream:
            yield stream.fileno()
    finally:
        with contextlib.suppress(OSError):
            trace.unlink()
