"""One voxel for each window of voxels: the mean of an image, the mode of labels.  Axis order is zyx.

A window at the end of the array, where the factor does not divide its extent, is of the voxels that are there.  Both
rules are exact and symmetric: neither depends on the order of the voxels in a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.volumes import Array

Rule = Callable[[Array, Triple], Array]

# As many voxels of windows that hold several labels are compared at a time, which bounds the memory that it takes.
_BATCH = 1 << 20


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


def _voxels(data: Array, factor: Triple) -> list[Array]:
    """The first voxel of every window, the second, ...: views of `data`, in zyx order."""
    fz, fy, fx = factor
    return [data[z::fz, y::fy, x::fx] for z, y, x in itertools.product(range(fz), range(fy), range(fx))]


def _mean_of_windows(data: Array, factor: Triple) -> Array:
    voxels = _voxels(data, factor)
    if len(voxels) == 1:
        return data
    kind, count = data.dtype.kind, len(voxels)
    total = voxels[0].astype(np.float64 if kind == "f" else _wide_enough(data.dtype, count))
    for voxel in voxels[1:]:
        total += voxel
    if kind == "f":
        return (total / count).astype(data.dtype)
    # In whole numbers: of the quotient's two neighbours the nearer one, and of equally near ones the even one.
    low, rest = np.divmod(total, total.dtype.type(count))
    low += rest * 2 > count
    low += (rest * 2 == count) & (low % 2 == 1)
    return low.astype(data.dtype)


def _wide_enough(dtype: np.dtype[Any], count: int) -> np.dtype[Any]:
    """A dtype that holds twice the sum of `count` voxels."""
    if dtype == np.uint8 and 2 * count * 255 < 1 << 16:
        return np.dtype(np.uint16)
    return np.dtype(np.int64)


def _mode_of_windows(data: Array, factor: Triple) -> Array:
    voxels = _voxels(data, factor)
    result = voxels[0].copy()
    if len(voxels) == 1:
        return result
    mixed = np.zeros(result.shape, bool)
    for voxel in voxels[1:]:
        mixed |= voxel != result
    place = np.flatnonzero(mixed)
    flat = result.reshape(-1)
    step = max(1, _BATCH // len(voxels))
    windows = [voxel[mixed] for voxel in voxels]
    for first in range(0, len(place), step):
        some = slice(first, first + step)
        flat[place[some]] = _most_frequent(np.stack([window[some] for window in windows]))
    return result


def _most_frequent(windows: Array) -> Array:
    """Of every column of [voxels, windows] the most frequent label, of equally frequent ones the smallest but 0."""
    count = np.ones(windows.shape, np.uint16)
    for a, b in itertools.combinations(range(len(windows)), 2):
        same = windows[a] == windows[b]
        count[a] += same
        count[b] += same
    # One less than the label, as an unsigned number: 0 becomes the largest there is, behind all other labels.
    unsigned = np.dtype(f"u{windows.dtype.itemsize}")
    rank: NDArray[Any] = windows.astype(unsigned) - unsigned.type(1)
    rank[count < count.max(axis=0)] = np.iinfo(unsigned).max
    return (rank.min(axis=0) + unsigned.type(1)).astype(windows.dtype)
