"""The trivial answers: what a segmentation has to beat before its accuracy says anything.

one_object: every voxel belongs to one object.  nothing: no voxel belongs to any.  threshold: connected components of
the smoothed image above a threshold (cytoplasm is brighter than membranes in EM), fitted on ground truth.
"""

from __future__ import annotations

from typing import Annotated, Any

import cc3d
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from apps.core.boxes import Box
from apps.core.parameters import Result
from apps.core.volumes import VoxelSize
from apps.evaluation.contingency import Labels
from apps.evaluation.metrics import Scores, score

# What is tried: smoothing in voxels of the finest axis, and thresholds at these quantiles of the smoothed image.
SIGMAS = (0.0, 1.0, 2.0)
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

# The fit looks at no more voxels than these, so that its time is bounded whatever the box.
LARGEST_FIT = 1 << 20


class Threshold(Result, frozen=True, kw_only=True):
    """The fitted threshold segmentation."""

    sigma: Annotated[float, Meta(description="Gaussian smoothing in voxels of the finest axis")]
    level: Annotated[float, Meta(description="smoothed grey value from which on a voxel is inside an object")]
    min_size: Annotated[int, Meta(description="components of fewer voxels are left out")]


def one_object(truth: Labels) -> Scores:
    """Scores of a segmentation that is one object."""
    return score(truth, np.ones(truth.shape, np.uint8))


def nothing(truth: Labels) -> Scores:
    """Scores of a segmentation that is empty."""
    return score(truth, np.zeros(truth.shape, np.uint8))


def segment_by_threshold(image: NDArray[Any], threshold: Threshold, voxel_size_nm: VoxelSize | None) -> Labels:
    """Connected components (by faces) of the smoothed image at or above the level, ids from 1, as a zyx array."""
    return _components(_smooth(image, threshold.sigma, voxel_size_nm) >= threshold.level, threshold.min_size)


def fit_threshold(
    image: NDArray[Any], truth: Labels, voxel_size_nm: VoxelSize | None = None, min_size: int = 0
) -> Threshold:
    """The smoothing and level, out of a fixed grid, whose components have the lowest VI against `truth` (both zyx).

    The first of equally good ones in the grid's order is taken.  Raises DataError where the truth is 0 everywhere.
    """
    best: tuple[float, Threshold] | None = None
    for sigma in SIGMAS:
        smooth = _smooth(image, sigma, voxel_size_nm)
        for level in np.unique(np.quantile(smooth, QUANTILES)):
            candidate = Threshold(sigma=sigma, level=float(level), min_size=min_size)
            vi = score(truth, _components(smooth >= level, min_size)).vi
            if best is None or vi < best[0]:
                best = vi, candidate
    assert best is not None  # the grid is not empty
    return best[1]


def box_of_the_fit(box: Box) -> Box:
    """The middle of `box`, scaled down where it has more than LARGEST_FIT voxels."""
    if box.size <= LARGEST_FIT:
        return box
    # Flat boxes keep their shortest sides: axes are cut to a common length that fills the budget.
    shape = list(box.shape)
    low, high = 1, max(shape)
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.prod([min(n, middle) for n in shape])) <= LARGEST_FIT:
            low = middle
        else:
            high = middle - 1
    z, y, x = (min(n, low) for n in shape)
    offset = tuple(o + (n - m) // 2 for o, n, m in zip(box.offset, shape, (z, y, x), strict=True))
    return Box.of((offset[0], offset[1], offset[2]), (z, y, x))


def _smooth(image: NDArray[Any], sigma: float, voxel_size_nm: VoxelSize | None) -> NDArray[np.float32]:
    size = np.asarray(voxel_size_nm or (1.0, 1.0, 1.0))
    smooth: NDArray[np.float32] = gaussian_filter(image.astype(np.float32), sigma * size.min() / size, truncate=3.0)
    return smooth


def _components(inside: NDArray[np.bool_], min_size: int) -> Labels:
    labels: Labels = cc3d.connected_components(inside, connectivity=6)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= min_size
    keep[0] = False
    number = np.where(keep, np.cumsum(keep), 0).astype(np.uint32)
    return number[labels]
