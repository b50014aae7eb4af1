"""Block matching: where small blocks of one image are in another, with how far each answer can be trusted.

Normalised cross-correlation over a square of shifts, by FFT for all blocks of a batch at once; its sub-pixel peak; the
ratio of the second peak to the first (Saalfeld et al., 2012, tell wrong matches in EM by it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from apps.alignment.images import Floats, Mask

_BATCH = 128
_PEAK_RADIUS = 3  # shifts this near to a peak belong to it
_MIN_TISSUE = 0.75  # of a block


@dataclass(frozen=True)
class BlockMatches:
    """One answer a block.

    Attributes:
        shift: [n, 2], where the second image has the block, relative to the first (y, x), pixels.
        correlation: [n], at the peak; 0 where the block has no tissue or no contrast, in either image.
        ratio: [n], second to first peak; 1 where the peak is at the border of the search.
        tissue: [n], whether both images have tissue there, so that an answer could be expected.
    """

    shift: NDArray[np.float64]
    correlation: NDArray[np.float64]
    ratio: NDArray[np.float64]
    tissue: NDArray[np.bool_]


def match_blocks(
    first: tuple[Floats, Mask],
    second: tuple[Floats, Mask],
    corners: NDArray[np.int64],
    block: int,
    search: int,
) -> BlockMatches:
    """Match blocks of `first` in `second`: images of one frame and shape, with their tissue.

    corners: [n, 2], first pixel of each block; a block with `search` pixels around it lies in the images.
    """
    size = block + 2 * search
    windows = tuple(np.lib.stride_tricks.sliding_window_view(image, (size, size)) for image in (*first, *second))
    inner = slice(search, search + block)
    places = 2 * search + 1
    sums = [_box_sums(second[0], block), _box_sums(second[0] * second[0], block)]
    around = [np.lib.stride_tricks.sliding_window_view(values, (places, places)) for values in sums]
    found = []
    for start in range(0, len(corners), _BATCH):
        y, x = (corners[start : start + _BATCH] - search).T
        a, a_valid, b, b_valid = (window[y, x] for window in windows)
        covered = [v[:, inner, inner].mean(axis=(1, 2)) for v in (a_valid, b_valid)]
        surface = _correlation(a[:, inner, inner], b, around[0][y, x], around[1][y, x])
        shift, peak, ratio = _peaks(surface)
        tissue = np.minimum(*covered) >= _MIN_TISSUE
        found.append((shift - search, np.where(tissue, peak, 0), ratio, tissue))
    parts = zip(*found, strict=True) if found else (np.zeros((0, 2)), np.zeros(0), np.zeros(0), np.zeros(0, bool))
    return BlockMatches(*(np.concatenate(part) if found else part for part in parts))  # type: ignore[arg-type]


def _correlation(
    templates: Floats, regions: Floats, total: NDArray[np.float64], squares: NDArray[np.float64]
) -> Floats:
    """[n, 2 search + 1, 2 search + 1]: normalised cross-correlation of templates [n, b, b] in regions [n, s, s].

    total, squares: sums of the regions' values and their squares over a block at each of the places.
    """
    block, size = templates.shape[1], regions.shape[1]
    area, places = block * block, size - block + 1
    centred = templates - templates.mean(axis=(1, 2), keepdims=True)
    padded = [fft.next_fast_len(size, real=True)] * 2
    spectrum = np.conj(fft.rfft2(centred, padded)) * fft.rfft2(regions, padded)
    product = fft.irfft2(spectrum, padded)[:, :places, :places]
    energy = np.maximum(squares - total * total / area, 0)
    norm = np.sqrt(energy * np.einsum("nij,nij->n", centred, centred, dtype=np.float64)[:, None, None])
    correlation: Floats = np.where(norm > 1e-3 * area, product / np.maximum(norm, 1e-12), 0).astype(np.float32)
    return correlation


def _box_sums(image: Floats, block: int) -> NDArray[np.float64]:
    """Sums over block x block pixels, from each pixel on that has them."""
    table = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    np.cumsum(np.cumsum(image, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    sums: NDArray[np.float64] = (
        table[block:, block:] - table[:-block, block:] - table[block:, :-block] + table[:-block, :-block]
    )
    return sums


def _peaks(surface: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sub-pixel place [n, 2] of the highest value, that value, and the ratio of the next peak to it."""
    count, places, _ = surface.shape
    rows = np.arange(count)
    y, x = np.divmod(np.argmax(surface.reshape(count, -1), axis=1), places)
    peak = surface[rows, y, x].astype(np.float64)
    inside = (y > 0) & (y < places - 1) & (x > 0) & (x < places - 1)
    yi, xi = np.clip(y, 1, places - 2), np.clip(x, 1, places - 2)
    dy = _vertex(surface[rows, yi - 1, xi], surface[rows, yi, xi], surface[rows, yi + 1, xi])
    dx = _vertex(surface[rows, yi, xi - 1], surface[rows, yi, xi], surface[rows, yi, xi + 1])
    shift = np.stack([np.where(inside, yi + dy, y), np.where(inside, xi + dx, x)], axis=1)
    axis = np.arange(places)
    near_y = np.abs(axis - y[:, None]) <= _PEAK_RADIUS
    near_x = np.abs(axis - x[:, None]) <= _PEAK_RADIUS
    others = np.where(near_y[:, :, None] & near_x[:, None, :], 0, surface)
    second = others.reshape(count, -1).max(axis=1)
    ratio = np.where(inside & (peak > 0), second / np.maximum(peak, 1e-12), 1.0)
    return shift, peak, ratio


def _vertex(before: Floats, at: Floats, after: Floats) -> NDArray[np.float64]:
    """Where the parabola through three equally spaced values has its top, relative to the middle."""
    bend = (before - 2.0 * at + after).astype(np.float64)
    slope = (after - before).astype(np.float64)
    top: NDArray[np.float64] = np.clip(np.where(bend < 0, -0.5 * slope / np.minimum(bend, -1e-12), 0), -0.5, 0.5)
    return top
