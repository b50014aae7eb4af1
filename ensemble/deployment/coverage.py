"""How much of each subvolume the masks leave: counted once from the mask volumes, tile by tile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple, tiles
from apps.core.volumes import DEFAULT_CHUNKS
from apps.ffn.masks import MaskParameters, read_masks
from ensemble.deployment.lattice import Lattice

# Tiles that are read at once, along each axis.
_BLOCK = 4


@dataclass(frozen=True)
class Coverage:
    """What masks exclude of the subvolumes of a grid.

    Attributes:
        share: float [subvolumes], of the read box; where a tile is excluded in part, as if evenly.
        wholly: bool [subvolumes], true where every tile that the read box touches is excluded: certain.
    """

    share: NDArray[np.float64]
    wholly: NDArray[np.bool_]


def measure_coverage(lattice: Lattice, masks: Sequence[MaskParameters]) -> Coverage:
    """Count the masks over all that the grid reads; without masks nothing is read.

    Memory: one number for every tile of 64 x 64 x 64 voxels.  Raises DataError where a mask cannot be read.
    """
    if not masks:
        return Coverage(np.zeros(lattice.count), np.zeros(lattice.count, bool))
    bounds = lattice.grid.bounds or lattice.grid.box
    free = np.ones(tile_counts(bounds), np.float64)
    for block in tiles(bounds, _times(DEFAULT_CHUNKS, _BLOCK)):
        excluded = read_masks(masks, block)
        assert excluded is not None
        first = [(a - o) // c for a, o, c in zip(block.offset, bounds.offset, DEFAULT_CHUNKS, strict=True)]
        shares = 1.0 - tile_means(excluded)
        free[tuple(slice(f, f + n) for f, n in zip(first, shares.shape, strict=True))] = shares
    spans = [overlaps(lattice, axis, bounds) for axis in range(3)]
    voxels = _project(free, spans)
    volume = _project(np.ones_like(free), spans)
    touched = _project((free > 0).astype(np.float64), [(span > 0).astype(np.float64) for span in spans])
    return Coverage((1.0 - voxels / volume).ravel(), touched.ravel() == 0)


def tile_counts(bounds: Box) -> Triple:
    """Tiles along z, y and x; they begin at the first corner."""
    z, y, x = (-(-n // c) for n, c in zip(bounds.shape, DEFAULT_CHUNKS, strict=True))
    return z, y, x


def tile_means(excluded: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the voxels of every tile that are true; the last tiles may be smaller."""
    means = np.empty(tile_counts(Box.of((0, 0, 0), excluded.shape)))
    for place in np.ndindex(means.shape):
        z, y, x = (slice(p * c, (p + 1) * c) for p, c in zip(place, DEFAULT_CHUNKS, strict=True))
        tile = excluded[z, y, x]
        means[place] = np.count_nonzero(tile) / tile.size
    return means


def overlaps(lattice: Lattice, axis: int, bounds: Box) -> NDArray[np.float64]:
    """[places, tiles]: voxels along an axis that the read box at a place shares with a tile."""
    begin, end = lattice.read_intervals(axis)
    chunk, last = DEFAULT_CHUNKS[axis], bounds.end[axis]
    first = np.arange(bounds.offset[axis], last, chunk)
    after = np.minimum(first + chunk, last)
    shared = np.minimum(end[:, None], after[None]) - np.maximum(begin[:, None], first[None])
    found: NDArray[np.float64] = np.maximum(shared, 0).astype(np.float64)
    return found


def _project(values: NDArray[np.float64], spans: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Sum of tile values over the read box of every subvolume, each tile by the voxels that they share."""
    for span in spans:
        values = np.tensordot(values, span, axes=(0, 1))  # takes the first axis off and puts the places last
    return values


def _times(shape: Triple, factor: int) -> Triple:
    return shape[0] * factor, shape[1] * factor, shape[2] * factor


def ranges_of(numbers: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as half open ranges."""
    if not len(numbers):
        return ()
    cuts = np.flatnonzero(np.diff(numbers) > 1) + 1
    starts, ends = numbers[[0, *cuts]], numbers[[*(cuts - 1), len(numbers) - 1]]
    return tuple((int(a), int(b) + 1) for a, b in zip(starts, ends, strict=True))


def numbers_in(ranges: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """The numbers of half open ranges."""
    return np.fromiter(itertools.chain.from_iterable(range(a, b) for a, b in ranges), np.int64)
