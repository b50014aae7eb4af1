"""Separable filters on float32 images [y, x]: reduction, band pass, and shifts by a part of a pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

TAPS_BEFORE, TAPS_AFTER = 1, 2  # neighbours of a pixel that cubic interpolation reads

_SMOOTHING = 1.0  # pixels: half the camera's noise is finer than this, hardly any of the membranes
_BACKGROUND = 31  # pixels: what is coarser (illumination, charging) tells nothing about position


def reduce(image: NDArray[np.generic], factor: int) -> Floats:
    """Means of `factor` x `factor` pixels; rows and columns that fill no block are left out."""
    rows, columns = (n // factor for n in image.shape)
    if factor == 1:
        return np.asarray(image, np.float32)
    blocks = image[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    reduced: Floats = blocks.mean(axis=(1, 3), dtype=np.float32)
    return reduced


def band_pass(image: Floats) -> Floats:
    """The image without pixel noise and without slow background: what an offset is measured on."""
    smooth = ndimage.gaussian_filter(image, _SMOOTHING, mode="nearest", truncate=3.0)
    smooth -= ndimage.uniform_filter(smooth, _BACKGROUND, mode="nearest")
    return np.asarray(smooth, np.float32)


def cubic_weights(fraction: float) -> NDArray[np.float64]:
    """Weights of the pixels -1, 0, 1, 2 for the value at `fraction` (0 to 1): Keys' cubic convolution, a = -1/2."""
    f = fraction
    return np.array(
        [
            ((-0.5 * f + 1.0) * f - 0.5) * f,
            (1.5 * f - 2.5) * f * f + 1.0,
            ((-1.5 * f + 2.0) * f + 0.5) * f,
            (0.5 * f - 0.5) * f * f,
        ]
    )


def sample_between(image: Floats, fraction_y: float, fraction_x: float) -> Floats:
    """float32 of the same shape: the value at pixel + (fraction_y, fraction_x), both 0 to 1, edges repeated.

    A pixel of the answer depends on its 4 x 4 neighbours alone, whatever the extent of `image`: pieces of an image that
    are worked on apart, with a margin, give the same bytes as the whole.
    """
    for axis, fraction in enumerate((fraction_y, fraction_x)):
        if fraction:
            # The origin moves the four taps from ndimage's -2..1 to -1..2.
            image = ndimage.correlate1d(image, cubic_weights(fraction), axis, mode="nearest", origin=-1)
    return np.asarray(image, np.float32)
