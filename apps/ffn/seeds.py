"""Where to start objects: seed policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple

SeedPolicyName = Literal["peaks"]

# Constants of google/ffn's PolicyPeaks.
_SIGMA = 49.0 / 6.0
_MIN_DISTANCE = 3
_JITTER = 1e-4
_JITTER_SEED = 42


def peaks(image: NDArray[np.float32], voxel_size: tuple[float, float, float]) -> NDArray[np.int64]:
    """Points [n, 3] zyx far from edges of the normalised image, in zyx order: google/ffn's PolicyPeaks.

    Edges are voxels whose Sobel magnitude is above its local (Gaussian) mean; seeds are the local maxima of the
    distance to them.  A small fixed jitter decides between equal distances.  `voxel_size` zyx: only ratios matter.
    """
    import edt
    from scipy import ndimage
    from skimage.feature import peak_local_max

    magnitude = ndimage.generic_gradient_magnitude(image, ndimage.sobel)
    local_mean = np.zeros(magnitude.shape, np.float32)
    ndimage.gaussian_filter(magnitude, _SIGMA, output=local_mean, mode="reflect")
    interior = magnitude <= local_mean
    distance = edt.edt(interior, anisotropy=voxel_size).astype(np.float32)
    distance[~np.isfinite(distance)] = -1
    jitter = np.random.RandomState(_JITTER_SEED).rand(*distance.shape) * _JITTER
    found = peak_local_max(distance + jitter, min_distance=_MIN_DISTANCE, threshold_abs=0, threshold_rel=0)
    return found[np.lexsort(found.T[::-1])].astype(np.int64)


# To add a policy: a function of (normalised image zyx, voxel size) that gives points [n, 3] zyx in order, and its name
# in `SeedPolicyName`.
POLICIES: dict[SeedPolicyName, Callable[[NDArray[np.float32], tuple[float, float, float]], NDArray[np.int64]]] = {
    "peaks": peaks,
}


def find_seeds(
    policy: SeedPolicyName, image: NDArray[np.float32], voxel_size: tuple[float, float, float], margin: Triple
) -> NDArray[np.int64]:
    """Seeds [n, 3] zyx of the policy, those only that lie at least `margin` (half a field of view) off the border."""
    found = POLICIES[policy](image, voxel_size)
    inside = ((found >= margin) & (found + margin < image.shape)).all(axis=1)
    return found[inside]
