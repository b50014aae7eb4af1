"""Random fields and painted tubes on voxel grids.  All arrays are zyx, lengths in voxels."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box, Triple

Floats = NDArray[np.float32]

# A smooth field is drawn on a lattice this much coarser than its correlation length, then interpolated.
_LATTICE_PER_LENGTH = 2.0
_LATTICE_CUBE = 16  # lattice points on a side that are drawn together


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> Floats:
    """Gaussian random field of `shape`, of any number of axes (float32, mean 0, standard deviation 1 in expectation).

    `length` is the standard deviation of the Gaussian that smooths it, in voxels.
    """
    step = max(1.0, length / _LATTICE_PER_LENGTH)
    # Three lattice points more on either side: the filter's border never reaches the part that is used.
    lattice = rng.standard_normal([int(np.ceil(n / step)) + 8 for n in shape], dtype=np.float32)
    sigma = length / step
    field = ndimage.gaussian_filter(lattice, sigma, mode="wrap")
    field /= field.std()
    if step == 1.0:
        return field[tuple(slice(4, 4 + n) for n in shape)]
    for axis, extent in enumerate(shape):
        field = _interpolate(field, axis, 4 + np.arange(extent) / step)
    return field


def _interpolate(field: Floats, axis: int, positions: NDArray[np.float64]) -> Floats:
    """Linear interpolation of `field` along `axis` at fractional `positions`."""
    below = np.floor(positions).astype(np.intp)
    along = [1] * field.ndim
    along[axis] = len(positions)
    weight = (positions - below).astype(np.float32).reshape(along)
    low, high = field.take(below, axis), field.take(below + 1, axis)
    high -= low
    high *= weight
    high += low
    return high


class Noise(Protocol):
    """Where a part of the phantom takes its random fields from; each is asked for once, by its name."""

    def smooth(self, name: str, length: float) -> Floats:
        """Gaussian random field over the part, mean 0, standard deviation 1; `length` as in `smooth_noise`."""
        ...

    def white(self, name: str) -> Floats:
        """Independent normal values over the part."""
        ...


@dataclass(frozen=True)
class DrawnNoise:
    """Fields over a block of `shape` in one piece, drawn from one stream in the order in which they are asked for."""

    rng: np.random.Generator
    shape: Triple

    def smooth(self, name: str, length: float) -> Floats:
        return smooth_noise(self.rng, self.shape, length)

    def white(self, name: str) -> Floats:
        return self.rng.standard_normal(self.shape, dtype=np.float32)


@dataclass(frozen=True)
class PlacedNoise:
    """Fields over a `window` of an endless space: what lies where depends on the seed and the name alone.

    So two windows that overlap show the same smooth field there.  (White noise is that of the window: a voxel's is
    taken from one window only.)
    """

    seed: int
    window: Box

    def smooth(self, name: str, length: float) -> Floats:
        step = max(1.0, length / _LATTICE_PER_LENGTH)
        sigma = length / step
        reach = int(4 * sigma + 0.5) + 1  # of the filter, which scipy cuts off at 4 sigma
        first = [int(np.floor(a / step)) - reach for a in self.window.offset]
        last = [int(np.ceil(b / step)) + reach + 1 for b in self.window.end]
        lattice = self._lattice(name, Box.between((first[0], first[1], first[2]), (last[0], last[1], last[2])))
        field = ndimage.gaussian_filter(lattice, sigma, mode="nearest")
        kernel = np.exp(-0.5 * (np.arange(1 - reach, reach) / sigma) ** 2)
        # The standard deviation that is left of white noise after this filter along three axes.
        field /= np.float32(((kernel / kernel.sum()) ** 2).sum() ** 1.5)
        for axis, (a, b, begin) in enumerate(zip(self.window.offset, self.window.end, first, strict=True)):
            field = _interpolate(field, axis, np.arange(a, b) / step - begin)
        return field

    def white(self, name: str) -> Floats:
        return stream(self.seed, name, *self.window.offset).standard_normal(self.window.shape, dtype=np.float32)

    def _lattice(self, name: str, box: Box) -> Floats:
        """Normal values at the lattice points of `box`, which are made in cubes of fixed place."""
        cube = _LATTICE_CUBE
        lattice = np.empty(box.shape, np.float32)
        cubes = [range(a // cube, -(-b // cube)) for a, b in zip(box.offset, box.end, strict=True)]
        for place in itertools.product(*cubes):
            values = stream(self.seed, name, *place).standard_normal((cube, cube, cube), dtype=np.float32)
            low = [max(a, k * cube) for a, k in zip(box.offset, place, strict=True)]
            high = [min(b, (k + 1) * cube) for b, k in zip(box.end, place, strict=True)]
            into = tuple(slice(p - a, q - a) for p, q, a in zip(low, high, box.offset, strict=True))
            out_of = tuple(slice(p - k * cube, q - k * cube) for p, q, k in zip(low, high, place, strict=True))
            lattice[into] = values[out_of]
        return lattice


def stream(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """The random numbers for the purpose `name`, at the place or of the thing that `numbers` (over -2^31) tell."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), *(number + 2**31 for number in numbers)])


def paint_balls(
    shape: Triple, centres: NDArray[np.float64], radii: NDArray[np.float64], owners: NDArray[np.int32]
) -> tuple[Floats, NDArray[np.int32]]:
    """Union of balls, each with an owner.

    Args:
        shape: of the grid, zyx.
        centres: [n, 3] zyx, from the grid's first voxel; may lie outside the grid.
        radii: [n].
        owners: [n] numbers over 0.

    Returns:
        depth: float32, the smallest of distance / radius over the balls that cover a voxel; 1 where none does.
        owner: int32, the owner of that ball; 0 where none covers the voxel.
    """
    depth = np.ones(shape, np.float32)
    owner = np.zeros(shape, np.int32)
    grid = [np.arange(n, dtype=np.float32) for n in shape]
    for centre, radius, number in zip(centres, radii, owners, strict=True):
        low = np.maximum(np.ceil(centre - radius).astype(int), 0)
        high = np.minimum(np.floor(centre + radius).astype(int) + 1, shape)
        if (low >= high).any():
            continue
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        z, y, x = (((axis[part] - c) / radius) ** 2 for axis, part, c in zip(grid, window, centre, strict=True))
        distance = np.sqrt(z[:, None, None] + y[:, None] + x)
        nearer = distance < depth[window]
        depth[window][nearer] = distance[nearer]
        owner[window][nearer] = number
    return depth, owner
