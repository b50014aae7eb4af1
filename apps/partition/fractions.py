"""How much of the box around a voxel belongs to the voxel's own object.  All arrays are zyx.

Method: the active fraction of Januszewski et al. 2018 (FFN), by running sums, one object at a time in its bounding box.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box, Triple

Counts = NDArray[np.int32]


def own_counts(numbers: NDArray[np.integer], radius: Triple) -> Counts:
    """Number of voxels of the centre's own object in the box of `radius` around it.

    Args:
        numbers: objects, numbered from 1 without large gaps; 0 for none.  The grid of centres with `radius` voxels
            more on either side.
        radius: of the box, zyx.

    Returns:
        int32 of shape `numbers.shape - 2 * radius`; 0 at centres without an object.
    """
    whole = Box.of((0, 0, 0), (numbers.shape[0], numbers.shape[1], numbers.shape[2]))
    inner = whole.grow((-radius[0], -radius[1], -radius[2]))
    centres = numbers[inner.slices()]
    counts = np.zeros(inner.shape, np.int32)
    for number, extent in enumerate(ndimage.find_objects(centres), start=1):
        if extent is None:
            continue
        wanted = Box.between(
            (extent[0].start, extent[1].start, extent[2].start), (extent[0].stop, extent[1].stop, extent[2].stop)
        )
        read = wanted.translate(radius).grow(radius)
        sums = box_sums((numbers[read.slices()] == number).astype(np.int32), radius)
        own = centres[extent] == number
        counts[extent][own] = sums[own]
    return counts


def box_sums(values: Counts, radius: Triple) -> Counts:
    """Sum of `values` over the box of `radius` around each voxel that has one; shape `values.shape - 2 * radius`."""
    for axis, r in enumerate(radius):
        shape = list(values.shape)
        shape[axis] += 1
        running = np.zeros(shape, np.int32)
        after_first = [slice(None)] * 3
        after_first[axis] = slice(1, None)
        np.cumsum(values, axis=axis, out=running[tuple(after_first)])
        high, low = [slice(None)] * 3, [slice(None)] * 3
        high[axis], low[axis] = slice(2 * r + 1, None), slice(None, -(2 * r + 1))
        values = running[tuple(high)] - running[tuple(low)]
    return values
