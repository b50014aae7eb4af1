"""Plan: the levels of a pyramid, and the towers in which it is built; pure functions.

Levels are grouped into storeys of a few levels each.  A storey is cut into towers: a tower stands on a box of the level
below the storey and holds, of every level of the storey, the chunks above that box.  So towers of one storey depend on
nothing but the storey below, no two of them share a chunk, and a tower reads each voxel of its ground once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple, tiles
from apps.core.parameters import Result
from apps.core.volumes import VoxelSize
from apps.multiscale.downsampling import reduced_shape

# A tower stands on no more than so many chunks (unless a single level asks for more): what is done again after a kill,
# and the least that a job can have as its share.
_GROUND_CHUNKS = 64

# An axis is halved while its voxels are no longer than this times the shortest: that keeps them as near to cubes as
# halving can.
_HALVED_UP_TO = math.sqrt(2.0)


class Level(Result, frozen=True, kw_only=True):
    """One level of the pyramid; level 0 is the volume itself."""

    path: Annotated[str, Meta(description="name of its array in the volume's folder")]
    factor: Annotated[Triple, Meta(description="its voxels are so many of the level below, zyx")]
    total_factor: Annotated[Triple, Meta(description="its voxels are so many of level 0, zyx")]
    shape: Annotated[Triple, Meta(description="zyx")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="zyx")]


class Pyramid(Result, frozen=True, kw_only=True):
    """All levels, from 0 on, and the chunks of those above 0."""

    levels: tuple[Level, ...]
    chunks: Triple


def plan_pyramid(
    path: str,
    shape: Triple,
    voxel_size_nm: VoxelSize,
    chunks: Triple,
    factors: Sequence[Triple] | None = None,
    most: int | None = None,
) -> Pyramid:
    """The pyramid over a level 0 of that path, shape and voxel size (nm, zyx).

    Without `factors` (each relative to the level below) axes are halved, those with long voxels only when the others
    have caught up, until a level fits into one chunk, or there are `most` levels above 0.
    """
    levels = [_base(path, shape, voxel_size_nm)]
    if factors is not None:
        for factor in factors:
            levels.append(_above(levels[0], levels[-1], factor))
    else:
        while len(levels) - 1 != most and any(n > c for n, c in zip(levels[-1].shape, chunks, strict=True)):
            levels.append(_above(levels[0], levels[-1], halving(levels[-1].shape, levels[-1].voxel_size_nm)))
    return Pyramid(levels=tuple(levels), chunks=chunks)


def halving(shape: Triple, voxel_size_nm: VoxelSize) -> Triple:
    """Which axes to halve next (2, otherwise 1), of a level of more than one voxel; zyx."""
    shortest = min(size for size, extent in zip(voxel_size_nm, shape, strict=True) if extent > 1)
    z, y, x = (
        2 if extent > 1 and size <= _HALVED_UP_TO * shortest else 1
        for size, extent in zip(voxel_size_nm, shape, strict=True)
    )
    return z, y, x


def storeys(pyramid: Pyramid) -> list[range]:
    """The levels above 0, grouped: each range is one storey, which stands on the level before its first."""
    groups: list[range] = []
    first = 1
    while first < len(pyramid.levels):
        end = first + 1
        while end < len(pyramid.levels) and ground_factor(pyramid, range(first, end + 1)) <= _GROUND_CHUNKS:
            end += 1
        groups.append(range(first, end))
        first = end
    return groups


def ground_factor(pyramid: Pyramid, storey: range) -> int:
    """Chunks of the level below that one chunk of the storey's last level stands on."""
    return math.prod(math.prod(pyramid.levels[level].factor) for level in storey)


def tower_count(pyramid: Pyramid, storey: range) -> int:
    """How many towers a storey has: one for every chunk of its last level."""
    return math.prod(_grid(pyramid, storey[-1]))


def tower(pyramid: Pyramid, storey: range, number: int) -> Box:
    """The storey's tower of that number (in zyx order), as its chunk of the storey's last level."""
    _, ny, nx = _grid(pyramid, storey[-1])
    place = number // (ny * nx), number // nx % ny, number % nx
    whole = Box.of((0, 0, 0), pyramid.levels[storey[-1]].shape)
    return Box.of(_scaled(place, pyramid.chunks), pyramid.chunks).intersection(whole)


def below(pyramid: Pyramid, level: int, box: Box) -> Box:
    """What a box of `level` is made of, in voxels of the level below."""
    factor, under = pyramid.levels[level].factor, pyramid.levels[level - 1].shape
    start, end = _scaled(box.offset, factor), _scaled(box.end, factor)
    return Box.between(start, end).intersection(Box.of((0, 0, 0), under))


def chunks_of(pyramid: Pyramid, box: Box) -> Iterator[Box]:
    """The chunks of a level in a box of it that begins at a chunk."""
    return tiles(box, pyramid.chunks)


def _grid(pyramid: Pyramid, level: int) -> Triple:
    """Chunks of a level along z, y and x."""
    return reduced_shape(pyramid.levels[level].shape, pyramid.chunks)


def _scaled(place: Triple, factor: Triple) -> Triple:
    z, y, x = (a * f for a, f in zip(place, factor, strict=True))
    return z, y, x


def _base(path: str, shape: Triple, voxel_size_nm: VoxelSize) -> Level:
    one = (1, 1, 1)
    return Level(path=path, factor=one, total_factor=one, shape=shape, voxel_size_nm=voxel_size_nm)


def _above(base: Level, level: Level, factor: Triple) -> Level:
    total = _scaled(level.total_factor, factor)
    z, y, x = (size * f for size, f in zip(base.voxel_size_nm, total, strict=True))
    return Level(
        path=_name(base.path, level.path),
        factor=factor,
        total_factor=total,
        shape=reduced_shape(level.shape, factor),
        voxel_size_nm=(z, y, x),
    )


def _name(base: str, previous: str) -> str:
    """The next level's number; that of level 0 itself, whatever it is called, is passed over."""
    number = 1 if previous == base else int(previous) + 1
    return str(number + 1 if str(number) == base else number)
