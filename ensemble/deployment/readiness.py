"""Which comparisons have all that they wait for: counted down as subvolumes are done, for any number of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.core.parts import Part, share
from ensemble.deployment.lattice import Lattice

_BLOCK = 1 << 16


class Readiness:
    """The comparisons of a grid in `parts` shares (apps.core.parts.share), each waiting for subvolumes.

    A share waits for its own subvolumes and for their neighbours of higher number.  Each subvolume is told once as
    done.  Memory: a few numbers for a share.
    """

    def __init__(self, lattice: Lattice, parts: int) -> None:
        self._lattice = lattice
        self._ends = np.array([share(lattice.count, Part(index=index, of=parts)).stop for index in range(parts)])
        self._missing = np.zeros(parts, np.int64)
        self._newest = np.zeros(parts, np.int64)
        for first in range(0, lattice.count, _BLOCK):
            waiting = self._parts_waiting_for(np.arange(first, min(first + _BLOCK, lattice.count)))
            self._missing += np.bincount(waiting, minlength=parts)

    def done(self, numbers: NDArray[np.int64], job: int) -> list[int]:
        """Take note of subvolumes that the job of that id has done; returns the shares that wait for nothing now."""
        waiting = self._parts_waiting_for(numbers)
        np.subtract.at(self._missing, waiting, 1)
        touched = np.unique(waiting)
        self._newest[touched] = np.maximum(self._newest[touched], job)
        return [int(part) for part in touched if self._missing[part] == 0]

    def newest(self, part: int) -> int:
        """The greatest id of the jobs that have done the subvolumes which the share waits for, as far as is known."""
        return int(self._newest[part])

    def _parts_waiting_for(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        comparisons = self._lattice.awaited_by(numbers)
        found: NDArray[np.int64] = np.searchsorted(self._ends, comparisons, side="right")
        return found
