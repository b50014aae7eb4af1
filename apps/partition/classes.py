"""Bodies and classes of a label volume, block by block so that memory does not grow with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple, tiles
from apps.core.volumes import Volume
from apps.partition.fractions import own_counts

BLOCK: Triple = (128, 128, 128)

Told = Callable[[Box], None]
Ids = NDArray[np.integer]


def large_bodies(labels: Volume, box: Box, min_size: int, told: Told) -> tuple[Ids, int]:
    """Ids over 0 that have at least `min_size` voxels in `box`, ascending, and the size of the largest body.

    `told` is called with every block that is done.
    """
    ids, sizes = np.zeros(0, labels.dtype), np.zeros(0, np.int64)
    for block in tiles(box, BLOCK):
        found, voxels = fastremap.unique(labels.read(block), return_counts=True)
        ids, position = np.unique(np.concatenate([ids, found]), return_inverse=True)
        # Exact while a body has fewer than 2^53 voxels.
        sizes = np.bincount(position, np.concatenate([sizes, voxels])).astype(np.int64)
        told(block)
    bodies = ids > 0
    ids, sizes = ids[bodies], sizes[bodies]
    return ids[sizes >= min_size], int(sizes.max(initial=0))


def class_blocks(
    labels: Volume, centres: Box, bodies: Ids, radius: Triple, thresholds: Sequence[float]
) -> Iterator[tuple[Box, NDArray[np.uint8]]]:
    """The classes of the voxels in `centres`, as (block, uint8 array of the block's shape).

    Class i (from 1) holds fractions under thresholds[i - 1] and not under the one before; the last class the rest.
    0 is background: voxels that belong to none of `bodies`.  No label outside of `centres` grown by `radius` is read.
    """
    of_count = class_of_count(radius, thresholds)
    for block in tiles(centres, BLOCK):
        numbers, ids = fastremap.renumber(labels.read(block.grow(radius)), preserve_zero=True)
        kept = np.zeros(len(ids) + 1, bool)
        kept[[ids[body] for body in np.intersect1d(bodies, np.fromiter(ids, bodies.dtype, len(ids)))]] = True
        numbers[~kept[numbers]] = 0
        yield block, of_count[own_counts(numbers, radius)]


def class_of_count(radius: Triple, thresholds: Sequence[float]) -> NDArray[np.uint8]:
    """Table from the number of own voxels in the box of `radius` to the class; no own voxel is class 0."""
    voxels = int(np.prod([2 * r + 1 for r in radius]))
    table = np.searchsorted(np.asarray(thresholds), np.arange(voxels + 1) / voxels, side="right") + 1
    table[0] = 0
    return table.astype(np.uint8)
