"""Axis-aligned boxes of voxels.  Axis order is zyx everywhere; a box is half open: offset <= voxel < end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Self

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters

Triple = tuple[int, int, int]


class Box(Parameters, frozen=True, kw_only=True):
    """A box of voxels: `offset` zyx of its first voxel and `shape` zyx."""

    offset: Annotated[Triple, Meta(description="first voxel, zyx")]
    shape: Annotated[Triple, Meta(description="extent in voxels, zyx")]

    def check(self) -> None:
        if min(self.shape) < 0:
            raise ParameterError(f"box of shape {self.shape}: expected no negative extent")

    @classmethod
    def of(cls, offset: Triple, shape: Triple) -> Self:
        """`Box.of(offset, shape)` with numpy integers allowed."""
        oz, oy, ox = (int(v) for v in offset)
        sz, sy, sx = (int(v) for v in shape)
        return cls(offset=(oz, oy, ox), shape=(sz, sy, sx))

    @classmethod
    def between(cls, start: Triple, end: Triple) -> Self:
        """The box from `start` (in) to `end` (out), zyx."""
        return cls.of(start, (end[0] - start[0], end[1] - start[1], end[2] - start[2]))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `z0:z1,y0:y1,x0:x1`, as the command line takes it."""
        try:
            (z0, z1), (y0, y1), (x0, x1) = (map(int, part.split(":")) for part in text.split(","))
        except ValueError:
            raise ParameterError(f"box {text!r}: expected z0:z1,y0:y1,x0:x1, for example 0:64,0:128,0:128") from None
        return cls.between((z0, y0, x0), (z1, y1, x1))

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.offset, self.end, strict=True))

    @property
    def end(self) -> Triple:
        """First voxel past the box, zyx."""
        (oz, oy, ox), (sz, sy, sx) = self.offset, self.shape
        return oz + sz, oy + sy, ox + sx

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def empty(self) -> bool:
        return self.size == 0

    def slices(self, origin: Triple = (0, 0, 0)) -> tuple[slice, slice, slice]:
        """Slices that cut this box out of an array whose first voxel is `origin`."""
        z, y, x = (slice(a - o, b - o) for a, b, o in zip(self.offset, self.end, origin, strict=True))
        return z, y, x

    def contains(self, other: Box) -> bool:
        """True where every voxel of `other` is in this box."""
        inside = zip(self.offset, other.offset, other.end, self.end, strict=True)
        return all(a <= b and c <= d for a, b, c, d in inside)

    def intersection(self, other: Box) -> Box:
        """The common box; an empty one (shape with a zero) where there is none."""
        start = [max(a, b) for a, b in zip(self.offset, other.offset, strict=True)]
        end = [max(s, min(a, b)) for s, a, b in zip(start, self.end, other.end, strict=True)]
        return Box.between((start[0], start[1], start[2]), (end[0], end[1], end[2]))

    def grow(self, margin: Triple) -> Box:
        """The box with `margin` zyx more voxels on either side (fewer where negative)."""
        (oz, oy, ox), (ez, ey, ex), (mz, my, mx) = self.offset, self.end, margin
        return Box.between((oz - mz, oy - my, ox - mx), (ez + mz, ey + my, ex + mx))

    def translate(self, by: Triple) -> Box:
        (oz, oy, ox), (tz, ty, tx) = self.offset, by
        return Box.of((oz + tz, oy + ty, ox + tx), self.shape)


def tiles(box: Box, shape: Triple) -> Iterator[Box]:
    """Cut `box` into boxes of `shape` from its first corner on, in zyx order; the last ones may be smaller."""
    if min(shape) < 1:
        raise ParameterError(f"tile shape {shape}: expected positive extents")
    ranges = (range(a, b, s) for a, b, s in zip(box.offset, box.end, shape, strict=True))
    for z, y, x in itertools.product(*ranges):
        yield Box.of((z, y, x), shape).intersection(box)
