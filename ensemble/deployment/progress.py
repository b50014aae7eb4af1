"""How far a step of a deployment is, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime


class Progress:
    """Counts what is done of a step.  What was there when it began does not count for the pace.

    Attributes:
        title: of the step.
        total: what there is to do, in `unit`: "voxels" or "jobs", or "%" of a single job.
        done: of it.

    `expected_s`: seconds that all of it is predicted to take, which tell the end until there is a pace.
    `clock` gives UTC epoch seconds.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "voxels",
        expected_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.title, self.total, self._unit, self._expected_s, self._clock = title, total, unit, expected_s, clock
        self.done = 0
        self._found = self._made = 0
        self._what = ""
        self._begun = clock()

    def add(self, amount: int, made_now: bool) -> None:
        """More is done: by this run, or found from an earlier one."""
        self.done += amount
        if made_now:
            self._made += amount
        else:
            self._found += amount
            if not self._made:
                self._begun = self._clock()  # looking at what is there takes time, and tells nothing of the pace

    def reach(self, share: float, what: str) -> None:
        """A single job has come so far, with something that has another pace than what it does next."""
        self.done, self._what = 10 * int(10 * share), what

    @property
    def seconds_left(self) -> float | None:
        """By the pace; before there is one by what was predicted, or None."""
        passed = self._clock() - self._begun
        if self._made and passed > 0:
            return (self.total - self.done) * passed / self._made
        if self._expected_s is None:
            return None
        left = self._expected_s * (1 - self._found / max(self.total, 1)) - passed
        return left if left > 0 else None

    def __str__(self) -> str:
        if self._unit == "voxels":
            text = f"{voxels(self.done)} of {voxels(self.total)} voxels"
        elif self._unit == "%":
            text = f"{self._what}, {self.done} %" if self._what else f"{self.done} %"
        else:
            text = f"{self.done} of {self.total} {self._unit}"
        left = self.seconds_left
        if left is None or self.done >= self.total:
            return text
        end = datetime.fromtimestamp(self._clock() + left)
        by = "ends about" if self._made else "predicted to end about"
        return f"{text}, {by} {end:%H:%M}" + (f" on {end:%d %b}" if left > 12 * 3600 else "")


def voxels(count: float) -> str:
    """A number of voxels as text: 950, 12.5 k, 3.00 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Seconds as text: 42 s, 3 min 10 s, 5 h 20 min."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
