"""How much of the box around a voxel belongs to the voxel's own object.  All arrays are zyx.

Method: the active fraction of Januszewski et al. 2018 (FFN), by running sums, one object at a time in its bounding box.
"""

from __future__ import annotations

from typing import Any

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
        sums = box_sums(numbers[read.slices()] == number, radius)
        own = centres[extent] == number
        counts[extent][own] = sums[own]
    return counts


def box_sums(values: NDArray[np.bool_] | Counts, radius: Triple) -> Counts:
    """Sum of `values` over the box of `radius` around each voxel that has one; shape `values.shape - 2 * radius`.

    One axis after the other, from the sum of a window to that of the next; in int16 as long as no sum outgrows it.
    """
    sums: NDArray[Any] = values
    most = int(values.max(initial=0))
    for axis, r in enumerate(radius):
        most *= 2 * r + 1
        kind = np.int16 if most <= np.iinfo(np.int16).max else np.int32
        sums = _row_sums(sums, r, kind) if axis == 2 else _plane_sums(sums, axis, r, kind)
    return sums.astype(np.int32, copy=False)


def _plane_sums(values: NDArray[np.integer], axis: int, r: int, kind: type[np.integer]) -> NDArray[np.integer]:
    """Sums over windows of 2 r + 1 along `axis`, which is not the last: whole planes are added at once."""
    width = 2 * r + 1
    shape = list(values.shape)
    shape[axis] -= 2 * r
    sums = np.empty(shape, kind)
    planes, windows = np.moveaxis(values, axis, 0), np.moveaxis(sums, axis, 0)
    np.sum(planes[:width], axis=0, dtype=kind, out=windows[0])
    for n in range(1, len(windows)):
        np.add(windows[n - 1], planes[n + width - 1], out=windows[n])
        np.subtract(windows[n], planes[n - 1], out=windows[n])
    return sums


def _row_sums(values: NDArray[np.integer], r: int, kind: type[np.integer]) -> NDArray[np.integer]:
    """Sums over windows of 2 r + 1 along the last axis, from running sums."""
    width = 2 * r + 1
    # Where a running sum outgrows the type it wraps around, and so does the difference: that is right again.
    running = np.zeros((*values.shape[:2], values.shape[2] + 1), kind)
    np.cumsum(values, axis=2, dtype=kind, out=running[..., 1:])
    return running[..., width:] - running[..., :-width]
