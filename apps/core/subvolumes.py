"""Cutting a box into overlapping subvolumes: the plan that inference works off and reconciliation puts together.

A subvolume's write box is what it owns; its read box is what it sees, with an overlap into its neighbours' that lets
their objects be recognised as the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters

Interval = tuple[int, int]


class Subvolume(Parameters, frozen=True, kw_only=True):
    """The unit of inference."""

    read_box: Annotated[Box, Meta(description="what is segmented, with the overlap")]
    write_box: Annotated[Box, Meta(description="what of it goes into the merged segmentation")]

    def check(self) -> None:
        if self.write_box.empty:
            raise ParameterError(f"write_box {self.write_box}: is empty; expected a box with voxels")
        if not self.read_box.contains(self.write_box):
            raise ParameterError(f"write_box {self.write_box}: leaves its read_box {self.read_box}")


class SubvolumeGrid(Parameters, frozen=True, kw_only=True):
    """A box cut into subvolumes, numbered in zyx order; a few numbers say all of it, whatever their count."""

    box: Annotated[Box, Meta(description="what is cut; the write boxes tile it exactly, from its first corner on")]
    shape: Annotated[
        Triple,
        Meta(
            description="extent of a write box, zyx; the last of an axis may be shorter. They cover whole chunks of a "
            "volume that begins at the box's corner where the shape is a multiple of its chunks"
        ),
    ]
    overlap: Annotated[
        Triple,
        Meta(
            description="voxels that the read boxes of two neighbours share at least, zyx: a read box is the write box "
            "with half of that on either side, and at least of extent `shape`, as far as `bounds` goes"
        ),
    ] = (0, 0, 0)
    bounds: Annotated[
        Box | None,
        Meta(
            description="what may be read; the box itself by default. All of the volume gives objects at the faces of "
            "the box the context that those inside have"
        ),
    ] = None

    def check(self) -> None:
        if self.box.empty:
            raise ParameterError(f"box {self.box}: is empty; expected a box with voxels")
        if min(self.shape) < 1:
            raise ParameterError(f"subvolume shape {self.shape}: expected positive extents")
        if any(not 0 <= o <= n for o, n in zip(self.overlap, self.shape, strict=True)):
            raise ParameterError(
                f"overlap {self.overlap}: expected 0 to the subvolume's shape {self.shape} along each axis"
            )
        if self.bounds is not None and not self.bounds.contains(self.box):
            raise ParameterError(f"box {self.box}: leaves what may be read, {self.bounds}")

    @property
    def counts(self) -> Triple:
        """Subvolumes along z, y and x."""
        z, y, x = (-(-n // s) for n, s in zip(self.box.shape, self.shape, strict=True))
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def position(self, number: int) -> Triple:
        """Where a subvolume is in the grid, zyx; raises ParameterError where there is none of that number."""
        if not 0 <= number < len(self):
            raise ParameterError(f"subvolume {number}: expected a number from 0 to {len(self) - 1}")
        _, rows, columns = self.counts
        return number // (rows * columns), number // columns % rows, number % columns

    def subvolume(self, number: int) -> Subvolume:
        """Read box and write box of a subvolume; raises ParameterError where there is none of that number."""
        return self._at(self.position(number))

    def __iter__(self) -> Iterator[Subvolume]:
        """All subvolumes, in the order of their numbers."""
        for z, y, x in itertools.product(*(range(n) for n in self.counts)):
            yield self._at((z, y, x))

    def neighbours(self, number: int) -> tuple[tuple[int, Box], ...]:
        """The subvolumes of higher number whose read boxes overlap this one's: (number, common box), ascending."""
        common = [self._shared(axis, place) for axis, place in enumerate(self.position(number))]
        _, rows, columns = self.counts
        found = []
        for (z, (z0, z1)), (y, (y0, y1)), (x, (x0, x1)) in itertools.product(*common):
            other = (z * rows + y) * columns + x
            if other > number:
                found.append((other, Box.between((z0, y0, x0), (z1, y1, x1))))
        return tuple(found)

    def _shared(self, axis: int, place: int) -> list[tuple[int, Interval]]:
        """Places along an axis whose read intervals overlap that of `place`, each with what is common, ascending."""
        first, last = self._axis(axis, place)[0]
        found = [(place, (first, last))]
        for step in (-1, 1):
            other = place + step
            while 0 <= other < self.counts[axis]:
                begin, end = self._axis(axis, other)[0]
                if begin >= last or end <= first:
                    break
                found.append((other, (max(begin, first), min(end, last))))
                other += step
        return sorted(found)

    def _at(self, place: Triple) -> Subvolume:
        (rz, wz), (ry, wy), (rx, wx) = (self._axis(axis, place[axis]) for axis in range(3))
        read = Box.between((rz[0], ry[0], rx[0]), (rz[1], ry[1], rx[1]))
        return Subvolume(read_box=read, write_box=Box.between((wz[0], wy[0], wx[0]), (wz[1], wy[1], wx[1])))

    def _axis(self, axis: int, place: int) -> tuple[Interval, Interval]:
        """(read, write) interval of a place along one axis."""
        bounds = self.bounds or self.box
        begin, end = self.box.offset[axis], self.box.end[axis]
        lower, upper = bounds.offset[axis], bounds.end[axis]
        extent, overlap = self.shape[axis], self.overlap[axis]
        first = begin + place * extent
        last = min(first + extent, end)
        read_first, read_last = max(lower, first - overlap // 2), min(upper, last + overlap - overlap // 2)
        # A short rest at the end gets context: a flood-filling network cannot work in a sliver.
        read_first = max(lower, min(read_first, read_last - extent))
        return (read_first, read_last), (first, last)


def piece_path(folder: str | Path, number: int) -> Path:
    """Where the segmentation of a subvolume is, in the folder of them all; no folder holds more than a thousand."""
    return Path(folder) / f"{number // 1_000_000:03d}" / f"{number // 1000 % 1000:03d}" / f"{number:09d}.zarr"
