"""What the workers of a search did, by their own clocks, and how a system is watched while it searches."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.objectives import Task

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.2


@dataclass(frozen=True)
class Evaluation:
    """One evaluation; `end` is None while it runs, `value` while it runs and where it failed.  Seconds of one clock."""

    start: float
    end: float | None
    value: float | None
    hangs: bool
    x: tuple[float, ...]


@dataclass(frozen=True)
class Trace:
    """All evaluations that began, in order, and the window [opened, opened + seconds] that is looked at.

    `cpu_s`: processor seconds of the system's processes, from their start to the end of the window.
    """

    evaluations: tuple[Evaluation, ...]
    opened: float
    seconds: float
    cpu_s: float = 0.0

    def utilisation(self, workers: int, limit_s: float = float("inf")) -> float:
        """Busy worker-seconds / (workers x window).

        An evaluation that hangs holds its worker until the search's time limit `limit_s`, and no longer.
        """
        return sum(self._held(one, limit_s) for one in self.evaluations) / (workers * self.seconds)

    def hung_share(self, workers: int, limit_s: float) -> float:
        """The part of it that was spent on evaluations that hang."""
        return sum(self._held(one, limit_s) for one in self.evaluations if one.hangs) / (workers * self.seconds)

    def _held(self, one: Evaluation, limit_s: float) -> float:
        end = one.start + limit_s if one.hangs or one.end is None else one.end
        return max(0.0, min(end, self.opened + self.seconds) - max(one.start, self.opened))

    def best_after(self, seconds: float) -> float:
        """The best value known so many seconds after the window was opened; -inf before there is one."""
        known = [one.value for one in self.ended() if one.end is not None and one.end <= self.opened + seconds]
        return max((value for value in known if value is not None), default=float("-inf"))

    def ended(self) -> list[Evaluation]:
        """What ended within the window, in order of its end."""
        close = self.opened + self.seconds
        return sorted(
            (one for one in self.evaluations if one.end is not None and one.end <= close),
            key=lambda one: one.end or 0.0,
        )

    def repeated(self) -> int:
        """How many evaluations were of a point that had been evaluated, or was being."""
        return len(self.evaluations) - len({one.x for one in self.evaluations})


def read_stamps(path: Path) -> list[Evaluation]:
    """The evaluations of `stamps.jsonl`, in order of their start; a last line that is torn is left out."""
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole]
    ends = {line["name"]: line for line in lines if "end" in line}
    never = {"end": None, "value": None}
    found = []
    for begun in [line for line in lines if "start" in line]:
        end = ends.get(begun["name"], never)
        found.append(Evaluation(begun["start"], end["end"], end["value"], begun["hangs"], tuple(begun["x"])))
    return sorted(found, key=lambda one: one.start)


def watch(
    command: Sequence[str], task: Task, seconds: float, ready: int, patience_s: float = 120.0, python_path: Path = ROOT
) -> Trace:
    """Run a system (`command` and the task's file) in a process group of its own, and kill it after the window.

    The window is opened when `ready` evaluations have begun: as many as there are workers for the utilisation, one for
    the best objective at equal time.  Raises RuntimeError, with what the system printed, where it ends by itself or
    does not get so far within `patience_s` seconds.
    """
    folder = Path(task.folder)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(python_path), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = folder / "log.txt"
    begun = time.monotonic()
    with log.open("w") as stream:
        system = subprocess.Popen(
            [*command, str(task.save())],
            cwd=folder,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        opened: float | None = None
        while opened is None or time.monotonic() < opened + seconds:
            time.sleep(POLL_S)
            if system.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended by itself ({system.returncode}): {_tail(log)}")
            if opened is None:
                evaluations = read_stamps(task.stamps)
                if len(evaluations) >= ready:
                    opened = evaluations[ready - 1].start
                elif time.monotonic() > begun + patience_s:
                    begins = f"{len(evaluations)} of {ready} evaluations began within {patience_s:.0f} s"
                    raise RuntimeError(f"{' '.join(command)}: {begins}: {_tail(log)}")
        cpu_s = group_cpu_seconds(system.pid)
    finally:
        kill_group(system)
    return Trace(tuple(read_stamps(task.stamps)), opened, seconds, cpu_s)


def group_cpu_seconds(group: int) -> float:
    """Processor seconds that the living processes of a process group have used."""
    used = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                times = process.cpu_times()
                used += times.user + times.system
    return used


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 a process that leads a group, and all of the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
