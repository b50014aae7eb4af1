"""How far a deployment is, in voxels, and when it will end."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime


class VoxelProgress:
    """Counts voxels of write boxes.  What was there when it began does not count for the pace.

    `clock` gives UTC epoch seconds.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.time) -> None:
        self.total, self._clock = total, clock
        self.done = 0
        self._made = 0
        self._begun = clock()

    def add(self, voxels: int, made_now: bool) -> None:
        """More is done: by this run, or found from an earlier one."""
        self.done += voxels
        if made_now:
            self._made += voxels
        elif not self._made:
            self._begun = self._clock()  # looking at what is there takes time, and tells nothing of the pace

    @property
    def seconds_left(self) -> float | None:
        """None before there is a pace."""
        passed = self._clock() - self._begun
        if not self._made or passed <= 0:
            return None
        return (self.total - self.done) * passed / self._made

    def __str__(self) -> str:
        text = f"{voxels(self.done)} of {voxels(self.total)} voxels"
        left = self.seconds_left
        if left is None or self.done >= self.total:
            return text
        end = datetime.fromtimestamp(self._clock() + left)
        return f"{text}, ends about {end:%H:%M}" + (f" on {end:%d %b}" if left > 12 * 3600 else "")


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
