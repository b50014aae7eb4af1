"""Where each subvolume of a grid is and which others it sees, told in microseconds: it is asked of a million of them.

The grid is a product of its axes, so boxes and neighbours follow from one place along each.  What an axis says of a
place is worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from apps.core.boxes import Triple
from apps.core.parameters import json_hash
from apps.core.subvolumes import Interval, Subvolume, SubvolumeGrid


class _Place(NamedTuple):
    """One place along an axis.

    Attributes:
        near: places whose read intervals overlap its own, itself too, ascending.
        reaching: of these, the ones whose read intervals overlap its write interval.
        write: write interval.
        digest: hash of all its intervals, those that it has in common with others too.
    """

    near: tuple[int, ...]
    reaching: tuple[int, ...]
    write: Interval
    digest: str


@dataclass(frozen=True)
class Surroundings:
    """Of the subvolumes of a grid, by their numbers."""

    grid: SubvolumeGrid
    _known: tuple[dict[int, _Place], ...] = field(default_factory=lambda: ({}, {}, {}), compare=False)

    def neighbours(self, number: int) -> list[int]:
        """The numbers that `SubvolumeGrid.neighbours` gives: higher ones whose read boxes overlap, ascending."""
        z, y, x = self._places(number)
        return [other for other in self._numbers(z.near, y.near, x.near) if other > number]

    def reaching(self, number: int) -> list[int]:
        """The numbers of the other subvolumes whose read boxes overlap its write box, ascending."""
        z, y, x = self._places(number)
        return [other for other in self._numbers(z.reaching, y.reaching, x.reaching) if other != number]

    def write_box(self, number: int) -> tuple[Interval, Interval, Interval]:
        """(first voxel, end) of the write box along z, y and x, in the grid's coordinates."""
        z, y, x = self._places(number)
        return z.write, y.write, x.write

    def digest(self, number: int) -> str:
        """Equal digest, equal boxes: the subvolume's own, and what it has in common with each of its neighbours."""
        z, y, x = self._places(number)
        return f"{z.digest}-{y.digest}-{x.digest}"

    @cached_property
    def _counts(self) -> Triple:
        return self.grid.counts

    def _numbers(self, z: tuple[int, ...], y: tuple[int, ...], x: tuple[int, ...]) -> Iterator[int]:
        _, rows, columns = self._counts
        return ((a * rows + b) * columns + c for a in z for b in y for c in x)

    def _places(self, number: int) -> tuple[_Place, _Place, _Place]:
        _, rows, columns = self._counts
        z, y, x = number // (rows * columns), number // columns % rows, number % columns
        return self._place(0, z), self._place(1, y), self._place(2, x)

    def _place(self, axis: int, place: int) -> _Place:
        known = self._known[axis].get(place)
        if known is None:
            known = self._known[axis][place] = self._look(axis, place)
        return known

    def _look(self, axis: int, place: int) -> _Place:
        boxes = self._on_axis(axis, place)
        first, last = boxes.read_box.offset[axis], boxes.read_box.end[axis]
        common = {place: (first, last)}
        for step in (-1, 1):
            other = place + step
            while 0 <= other < self._counts[axis]:
                read = self._on_axis(axis, other).read_box
                begin, end = max(first, read.offset[axis]), min(last, read.end[axis])
                if begin >= end:
                    break
                common[other] = begin, end
                other += step
        write = boxes.write_box.offset[axis], boxes.write_box.end[axis]
        # A neighbour's number follows from its place and from how many there are along each axis.
        said = [self._counts, axis, write, sorted(common.items())]
        reaching = (other for other, (begin, end) in common.items() if begin < write[1] and write[0] < end)
        return _Place(tuple(sorted(common)), tuple(sorted(reaching)), write, json_hash(said))

    def _on_axis(self, axis: int, place: int) -> Subvolume:
        _, rows, columns = self._counts
        return self.grid.subvolume(place * (rows * columns, columns, 1)[axis])
