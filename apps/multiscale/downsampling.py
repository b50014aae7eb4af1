"""One voxel for each window of voxels: the mean of an image, the mode of labels.  Axis order is zyx.

A window at the end of the array, where the factor does not divide its extent, is of the voxels that are there.  Both
rules are exact and symmetric: neither depends on the order of the voxels in a window.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.volumes import Array

Rule = Callable[[Array, Triple], Array]

# Labels are worked on in slabs of about so many voxels: all that is made of a slab stays in the processor's cache.
_SLAB = 1 << 19


def reduced_shape(shape: Triple, factor: Triple) -> Triple:
    """Number of windows along z, y and x."""
    z, y, x = (-(-n // f) for n, f in zip(shape, factor, strict=True))
    return z, y, x


def mean(image: Array, factor: Triple) -> Array:
    """The mean of every window of `factor` voxels, as an array of the image's dtype and of `reduced_shape`.

    Of integers (of up to 32 bits) it is the exact mean, rounded to the nearest, halves to the even one: an image gets
    neither darker nor brighter from level to level.  Floats are averaged in double precision.
    """
    return _by_windows(image, factor, _mean_of_windows)


def mode(labels: Array, factor: Triple) -> Array:
    """The most frequent label of every window of `factor` voxels, as an array of the labels' dtype and `reduced_shape`.

    0, no object, counts as any label; of equally frequent labels the smallest other than 0 is taken, so that thin
    objects between background last longer.  Labels are integers from 0 on.
    """
    return _by_windows(labels, factor, _mode_of_windows)


def _by_windows(data: Array, factor: Triple, rule: Rule) -> Array:
    """Apply `rule`, which takes arrays of whole windows, to the inside and to what is left at the ends."""
    result = np.empty(reduced_shape(_shape(data), factor), data.dtype)
    for parts in itertools.product(*(_runs(n, f) for n, f in zip(data.shape, factor, strict=True))):
        source = tuple(part[0] for part in parts)
        target = tuple(part[1] for part in parts)
        z, y, x = (part[2] for part in parts)
        result[target] = rule(data[source], (z, y, x))
    return result


def _shape(data: Array) -> Triple:
    z, y, x = data.shape
    return z, y, x


def _runs(extent: int, factor: int) -> Iterator[tuple[slice, slice, int]]:
    """Along one axis: where the windows of one size lie, where their voxels go, and their size."""
    whole = extent // factor
    if whole:
        yield slice(0, whole * factor), slice(0, whole), factor
    if extent % factor:
        yield slice(whole * factor, extent), slice(whole, whole + 1), extent % factor


def _along(data: Array, axis: int, factor: int) -> list[Array]:
    """The first voxel of every window along an axis, the second, ...: views of `data`."""
    return [data[(slice(None),) * axis + (slice(place, None, factor),)] for place in range(factor)]


def _mean_of_windows(data: Array, factor: Triple) -> Array:
    count = math.prod(factor)
    if count == 1:
        return data
    kind = data.dtype.kind
    # Axis by axis: what is added first lies in memory as it is read.
    total = data
    for axis, size in enumerate(factor):
        first, *others = _along(total, axis, size)
        total = first.astype(np.float64 if kind == "f" else _wide_enough(data.dtype, count))
        for voxels in others:
            total += voxels
    if kind == "f":
        return (total / count).astype(data.dtype)
    return _rounded(total, count).astype(data.dtype)


def _rounded(total: Array, count: int) -> Array:
    """`total / count` in whole numbers: the nearer of the quotient's neighbours, of equally near ones the even one."""
    one = total.dtype.type(1)
    shift = count.bit_length() - 1
    if count == 1 << shift:  # much faster than a division
        low = total >> total.dtype.type(shift)
        low &= one
        low += total
        low += total.dtype.type(count // 2 - 1)
        low >>= total.dtype.type(shift)
        return low
    low, rest = np.divmod(total, total.dtype.type(count))
    low += rest * 2 > count
    low += (rest * 2 == count) & (low % 2 == 1)
    return low


def _wide_enough(dtype: np.dtype[Any], count: int) -> np.dtype[Any]:
    """A dtype that holds twice the sum of `count` voxels."""
    if dtype == np.uint8 and 2 * count * 255 < 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.int64)


def _mode_of_windows(data: Array, factor: Triple) -> Array:
    if math.prod(factor) == 1:
        return data
    fz, fy, fx = factor
    result = data[::fz, ::fy, ::fx].copy()
    height = max(1, _SLAB // math.prod((fz, *data.shape[1:])))
    for z in range(0, len(result), height):
        _settle_mixed(np.ascontiguousarray(data[z * fz : (z + height) * fz]), factor, result[z : z + height])
    return result


def _settle_mixed(data: Array, factor: Triple, result: Array) -> None:
    """Put the most frequent label of every window that holds several into `result`; contiguous arrays."""
    (fz, fy, fx), (_, rows, columns) = factor, data.shape
    z, y, x = (np.arange(n) * f for n, f in zip(result.shape, factor, strict=True))
    corners = ((z[:, np.newaxis, np.newaxis] * rows + y[:, np.newaxis]) * columns + x).reshape(-1)
    place = np.flatnonzero(_mixed(data, factor))
    first, flat = corners[place], data.reshape(-1)
    offsets = [(z * rows + y) * columns + x for z, y, x in itertools.product(range(fz), range(fy), range(fx))]
    windows = np.empty((len(offsets), len(place)), data.dtype)
    for offset, voxels in zip(offsets, windows, strict=True):
        # No index is out of range; where that is not to be an error, numpy writes to the row without a copy between.
        np.take(flat[offset:], first, out=voxels, mode="clip")
    result.reshape(-1)[place] = _most_frequent(windows)


def _mixed(data: Array, factor: Triple) -> NDArray[np.bool_]:
    """Which windows hold several labels."""
    mixed: NDArray[np.bool_] | None = None
    for axis, size in enumerate(factor):
        if size == 1:
            continue
        data, *others = _along(data, axis, size)
        differ = data != others[0]
        for other in others[1:]:
            differ |= data != other
        for inside in [] if mixed is None else _along(mixed, axis, size):
            differ |= inside
        mixed = differ
    assert mixed is not None, "windows of one voxel are no windows"
    return mixed


def _most_frequent(windows: Array) -> Array:
    """Of every column of [voxels, windows] the most frequent label, of equally frequent ones the smallest but 0."""
    count = np.ones(windows.shape, np.min_scalar_type(len(windows)))
    same = np.empty(windows.shape[1], np.bool_)
    one = same.view(np.uint8)  # to add truth values without a conversion
    for a, b in itertools.combinations(range(len(windows)), 2):
        np.equal(windows[a], windows[b], out=same)
        count[a] += one
        count[b] += one
    most = count.max(axis=0)
    # One less than the label, as an unsigned number: 0 becomes the largest there is, behind all other labels.
    unsigned = np.dtype(f"u{windows.dtype.itemsize}")
    best = np.full(windows.shape[1], np.iinfo(unsigned).max, unsigned)
    for label, frequency in zip(windows.view(unsigned), count, strict=True):
        # Those that are less frequent become the largest number too, by arithmetic: faster than a choice.
        rank: NDArray[Any] = np.not_equal(frequency, most).astype(unsigned)
        np.negative(rank, out=rank)
        rank |= label - unsigned.type(1)
        np.minimum(best, rank, out=best)
    return (best + unsigned.type(1)).view(windows.dtype)
