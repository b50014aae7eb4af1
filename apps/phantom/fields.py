"""Random fields and painted tubes on voxel grids.  All arrays are zyx, lengths in voxels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Triple

Floats = NDArray[np.float32]

# A smooth field is drawn on a lattice this much coarser than its correlation length, then interpolated.
_LATTICE_PER_LENGTH = 2.0


def smooth_noise(rng: np.random.Generator, shape: Triple, length: float) -> Floats:
    """Gaussian random field of `shape` (float32, mean 0, standard deviation 1 in expectation).

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


def paint_balls(
    shape: Triple, centres: NDArray[np.float64], radii: NDArray[np.float64], owners: NDArray[np.int32]
) -> tuple[Floats, NDArray[np.int32]]:
    """Union of balls, each with an owner.

    Args:
        shape: of the grid, zyx.
        centres: [n, 3] zyx; may lie outside the grid.
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
