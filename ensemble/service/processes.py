"""Processes that are remembered across runs: their identity, whether they live, and how they are ended."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import psutil

from apps.core.parameters import Parameters


class ProcessId(Parameters, frozen=True, kw_only=True):
    """A process for good: its pid, and when it was started, since the kernel gives a pid again when it is free."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Self:
        """Identity of the living process `pid`.  Raises psutil.NoSuchProcess where there is none."""
        return cls(pid=pid, started=_start_mark(pid))

    def find(self) -> psutil.Process | None:
        """The process, or None where it has ended (a zombie has) or its pid belongs to another one by now."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                # Our own child that nobody has waited for yet; wait() takes its leave at once.
                with contextlib.suppress(psutil.Error):
                    process.wait(0)
                return None
            return process if _start_mark(self.pid) == self.started else None
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        return self.find() is not None


def _start_mark(pid: int) -> str:
    """Text that differs for two processes that had the same pid.

    On Linux it is the start time in clock ticks since boot together with the boot's id: unlike an absolute time it does
    not move when the clock is set.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[19]}"
    except FileNotFoundError:
        return f"{psutil.Process(pid).create_time():.2f}"
    except ProcessLookupError:
        raise psutil.NoSuchProcess(pid) from None


def wait_until(condition: Callable[[], bool], patience_s: float, interval_s: float = 0.02) -> bool:
    """Ask `condition` until it is true (True) or `patience_s` is over (False)."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True


def end(processes: Iterable[psutil.Process], steps: Iterable[tuple[signal.Signals, float]]) -> list[psutil.Process]:
    """Send each step's signal to those that still live and wait its seconds; returns those that live after the last."""
    alive = list(processes)
    for number, patience_s in steps:
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=patience_s)
        if not alive:
            break
    return alive


def with_variable(name: str) -> Iterator[tuple[psutil.Process, str]]:
    """Every process whose environment (as it was started) has the variable `name`, with the variable's value.

    Processes of other users cannot be asked and are passed over.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(name)
            if value is not None and process.status() != psutil.STATUS_ZOMBIE:
                yield process, value


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and all its living descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
