"""Fields of block shifts on a grid: which are outliers, and what stands between those that are not."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

_TOLERANCE = 3.0  # times the spread of the neighbours
_FLOOR = 0.7  # pixels of the scale: what neighbours may differ by where they agree perfectly
_MIN_NEIGHBOURS = 4
_ROUNDS = 2  # neighbours that were outliers themselves no longer speak in the second


def consistent(shift: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the `good` [gy, gx] shifts [gy, gx, 2] agree with the good ones around them.

    The normalised median test of particle image velocimetry (Westerweel and Scarano, 2005), over 5 x 5 neighbours; a
    shift with hardly any neighbours is not trusted.
    """
    for _ in range(_ROUNDS):
        good = _agree(shift, good)
    return good


def _agree(shift: NDArray[np.float64], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    known = np.where(good[..., None], shift, np.nan)
    padded = np.pad(known, ((2, 2), (2, 2), (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(0, 1)).reshape(*shift.shape, 25)
    around = np.delete(windows, 12, axis=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of places without neighbours
        middle = np.nanmedian(around, axis=-1)
        spread = np.nanmedian(np.abs(around - middle[..., None]), axis=-1)
    off = np.abs(known - middle) / (spread + _FLOOR / _TOLERANCE * 2)
    neighbours = np.isfinite(around[..., 0, :]).sum(axis=-1)
    agrees: NDArray[np.bool_] = (
        good & (neighbours >= _MIN_NEIGHBOURS) & (np.nan_to_num(off, nan=np.inf) < _TOLERANCE).all(axis=-1)
    )
    return agrees


def fill(shift: NDArray[np.float64], good: NDArray[np.bool_], smooth: float) -> NDArray[np.float64]:
    """The field from its good shifts alone: smoothed over `smooth` nodes, and from further away where there are none.

    Far from all good shifts it is their mean.
    """
    weight = good.astype(np.float64)
    filled = np.broadcast_to((shift * weight[..., None]).sum(axis=(0, 1)) / max(weight.sum(), 1.0), shift.shape).copy()
    for sigma in (8 * smooth, 4 * smooth, 2 * smooth, smooth):
        total = gaussian_filter(weight, sigma, mode="constant")
        sums = np.stack([gaussian_filter(shift[..., k] * weight, sigma, mode="constant") for k in (0, 1)], axis=-1)
        share = np.clip(total / 0.05, 0, 1)[..., None]
        filled = share * sums / np.maximum(total, 1e-9)[..., None] + (1 - share) * filled
    return filled
