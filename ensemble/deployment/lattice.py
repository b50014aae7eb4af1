"""A grid of subvolumes in arrays: what is asked of a million of them at once."""

from __future__ import annotations

import itertools
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.subvolumes import SubvolumeGrid

Ints = NDArray[np.int64]


class Lattice:
    """The subvolumes of a grid by their numbers (0 to `count` - 1, in zyx order)."""

    def __init__(self, grid: SubvolumeGrid) -> None:
        self.grid = grid
        self.counts = grid.counts
        self.count = len(grid)

    def positions(self, numbers: Ints) -> tuple[Ints, Ints, Ints]:
        """Places in the grid along z, y and x."""
        z, y, x = np.unravel_index(numbers, self.counts)
        return z.astype(np.int64), y.astype(np.int64), x.astype(np.int64)

    def write_voxels(self, numbers: Ints) -> Ints:
        """Voxels of the write boxes."""
        return self._voxels(numbers, self._write)

    def read_voxels(self, numbers: Ints) -> Ints:
        """Voxels of the read boxes."""
        return self._voxels(numbers, self._read)

    def all_read_voxels(self) -> int:
        """Voxels of all read boxes together; what two of them share counts twice."""
        z, y, x = (int((end - begin).sum()) for begin, end in self._read)
        return z * y * x

    @property
    def largest_read(self) -> Triple:
        """Extent zyx that no read box exceeds."""
        z, y, x = (int((end - begin).max()) for begin, end in self._read)
        return z, y, x

    @property
    def smallest_read(self) -> Triple:
        """Extent zyx that every read box has at least."""
        z, y, x = (int((end - begin).min()) for begin, end in self._read)
        return z, y, x

    def read_intervals(self, axis: int) -> tuple[Ints, Ints]:
        """First voxel and end of the read boxes at every place along an axis."""
        return self._read[axis]

    def awaited_by(self, numbers: Ints) -> Ints:
        """The subvolumes whose comparison waits for one of these, each as often as it does.

        Subvolume i is compared with its neighbours of higher number (SubvolumeGrid.neighbours): so the comparison of i
        waits for i itself and for each of those.
        """
        places = self.positions(numbers)
        waiting = [numbers]
        for dz, dy, dx in itertools.product(*(range(-reach, reach + 1) for reach in self._reach)):
            if (dz, dy, dx) >= (0, 0, 0):  # the neighbours of lower number, in zyx order
                continue
            near = np.ones(len(numbers), bool)
            other = np.zeros(len(numbers), np.int64)
            for axis, step in enumerate((dz, dy, dx)):
                there = places[axis] + step
                near &= (there >= 0) & (there < self.counts[axis])
                there = np.clip(there, 0, self.counts[axis] - 1)
                begin, end = self._read[axis]
                near &= (begin[places[axis]] < end[there]) & (begin[there] < end[places[axis]])
                other = other * self.counts[axis] + there
            waiting.append(other[near])
        return np.concatenate(waiting)

    def _voxels(self, numbers: Ints, intervals: list[tuple[Ints, Ints]]) -> Ints:
        voxels = np.ones(len(numbers), np.int64)
        for (begin, end), place in zip(intervals, self.positions(numbers), strict=True):
            voxels *= (end - begin)[place]
        return voxels

    @cached_property
    def _read(self) -> list[tuple[Ints, Ints]]:
        return self._intervals()[0]

    @cached_property
    def _write(self) -> list[tuple[Ints, Ints]]:
        return self._intervals()[1]

    @cached_property
    def _reach(self) -> Triple:
        """How many places further a read box overlaps another at most: 1, or 2 where a short rest reaches back."""
        reach = []
        for begin, end in self._read:
            far = 0
            while far + 1 < len(begin) and bool((end[: -far - 1] > begin[far + 1 :]).any()):
                far += 1
            reach.append(far)
        return reach[0], reach[1], reach[2]

    def _intervals(self) -> tuple[list[tuple[Ints, Ints]], list[tuple[Ints, Ints]]]:
        """(read, write) intervals at the places along each axis: those of the subvolumes on the axis."""
        read, write = [], []
        strides = (self.counts[1] * self.counts[2], self.counts[2], 1)
        for axis, stride in enumerate(strides):
            boxes = [self.grid.subvolume(place * stride) for place in range(self.counts[axis])]
            read.append(_ends([box.read_box for box in boxes], axis))
            write.append(_ends([box.write_box for box in boxes], axis))
        return read, write


def _ends(boxes: list[Box], axis: int) -> tuple[Ints, Ints]:
    return (
        np.array([box.offset[axis] for box in boxes], np.int64),
        np.array([box.end[axis] for box in boxes], np.int64),
    )
