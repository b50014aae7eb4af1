"""Exact mean and standard deviation of 8-bit images, gathered piece by piece."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class Histogram:
    """Counts of the 256 grey levels; mean and spread follow in exact integers, whatever the order of the pieces."""

    def __init__(self) -> None:
        self._counts = np.zeros(256, np.int64)

    def add(self, image: NDArray[np.uint8]) -> None:
        self._counts += np.bincount(image.ravel(), minlength=256)

    @property
    def mean(self) -> float:
        n, total, _ = self._moments()
        return total / n

    @property
    def std(self) -> float:
        """Standard deviation over all voxels (divided by n, as numpy's `std`)."""
        n, total, squares = self._moments()
        return math.sqrt(n * squares - total * total) / n

    def _moments(self) -> tuple[int, int, int]:
        # Python's integers do not overflow; numpy's would in n * squares.
        counts = [int(count) for count in self._counts]
        return (
            sum(counts),
            sum(level * count for level, count in enumerate(counts)),
            sum(level * level * count for level, count in enumerate(counts)),
        )
