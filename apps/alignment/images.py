"""Pieces of a section at any scale, with what is tissue, prepared for correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, uniform_filter

from apps.alignment.transforms import Points
from apps.core.boxes import Box
from apps.core.volumes import Volume

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
_PIXELS_AT_ONCE = 4_000_000  # of the section, so that a coarse scale needs no whole section in memory
Window = tuple[int, int, int, int]  # first and past-last row, first and past-last column


@dataclass(frozen=True)
class Piece:
    """Part of a section at a scale.

    Attributes:
        pixels: [h, w] float32 grey levels, 0 where `valid` is false.
        valid: [h, w], where the section has tissue (a grey level over 0).
        origin: (y, x) of the first pixel, in pixels of the scale.
    """

    pixels: Floats
    valid: Mask
    origin: tuple[int, int]


def read_piece(section: Volume, window: Window, factor: int) -> Piece:
    """The pixels `window` (of the scale; it may leave the section) that average factor x factor pixels of a section.

    Pixel (i, j) of the scale has its centre at (i, j) * factor + (factor - 1) / 2 of the section.
    """
    y0, y1, x0, x1 = window
    step = max(1, _PIXELS_AT_ONCE // (factor * factor * max(x1 - x0, 1)))
    strips = [_read(section, (y, min(y + step, y1), x0, x1), factor) for y in range(y0, y1, step)]
    pixels, valid = (np.concatenate(parts) for parts in zip(*strips, strict=True))
    return Piece(pixels, valid, (y0, x0))


def _read(section: Volume, window: Window, factor: int) -> tuple[Floats, Mask]:
    y0, y1, x0, x1 = (v * factor for v in window)
    _, height, width = section.shape
    inside = Box.between((0, max(y0, 0), max(x0, 0)), (1, max(min(y1, height), 0), max(min(x1, width), 0)))
    full = np.zeros((y1 - y0, x1 - x0), np.uint8)
    if min(inside.shape) > 0:
        _, iy, ix = inside.slices((0, y0, x0))
        full[iy, ix] = section.read(inside)[0]
    return shrink(full, factor)


def shrink(image: NDArray[np.uint8], factor: int) -> tuple[Floats, Mask]:
    """Means of the tissue in factor x factor pixels, and where at least half of them are tissue."""
    if factor == 1:
        return image.astype(np.float32), image > 0
    parts = [image[i::factor, j::factor] for i in range(factor) for j in range(factor)]
    total = np.zeros(parts[0].shape, np.uint32)
    count = np.zeros(parts[0].shape, np.uint32)
    for part in parts:  # many times faster than a sum over two axes of length `factor`
        total += part
        count += part > 0
    valid = 2 * count >= factor * factor
    return np.where(valid, total / np.maximum(count, 1), 0).astype(np.float32), valid


def flatten(piece: Piece, width: int, smooth: float = 1.0) -> Floats:
    """The piece with the mean over `width` pixels taken off and fine noise smoothed; 0 where there is no tissue.

    Illumination and contrast that change slowly do not pull the correlation that way.
    """
    weight = uniform_filter(piece.valid.astype(np.float32), width, mode="constant")
    mean = uniform_filter(piece.pixels, width, mode="constant") / np.maximum(weight, 1e-6)
    flat = np.where(piece.valid, piece.pixels - mean, 0).astype(np.float32)
    return gaussian_filter(flat, smooth, mode="constant", truncate=3.0) if smooth else flat


def sample(piece: Piece, places: Points) -> Piece:
    """The piece at `places` [2, h, w] (y and x, pixels of its scale), bilinear; its own origin is then (0, 0)."""
    at = places - np.reshape(piece.origin, (2, 1, 1))
    rows, columns = at
    values = map_coordinates(piece.pixels, at, order=1, mode="constant")
    h, w = piece.pixels.shape
    if piece.valid.all():
        # Beyond the edge there is half a pixel with nothing to average with; "constant" would darken it.
        valid = (rows >= 0) & (rows <= h - 1) & (columns >= 0) & (columns <= w - 1)
        return Piece(np.where(valid, values, 0).astype(np.float32), valid, (0, 0))
    weight = map_coordinates(piece.valid.astype(np.float32), at, order=1, mode="constant")
    valid = weight > 0.5
    return Piece(np.where(valid, values / np.maximum(weight, 1e-6), 0).astype(np.float32), valid, (0, 0))


def on_lattice(
    function: Callable[[Points], Points], corner: tuple[int, int], shape: tuple[int, int], spacing: int
) -> Points:
    """[2, h, w]: a smooth function of points at the pixels of `shape` (h, w) from `corner` on.

    It is called for points [.., .., 2] that are multiples of `spacing`, and interpolated (bilinear) between them: the
    value at a pixel does not depend on the corner.
    """
    rows, columns = (_shares(start, extent, spacing) for start, extent in zip(corner, shape, strict=True))
    y, x = np.meshgrid(rows[0] * spacing, columns[0] * spacing, indexing="ij")
    nodes = function(np.stack([y, x], axis=-1).astype(np.float64))
    return np.stack([rows[1] @ nodes[..., k] @ columns[1].T for k in (0, 1)])


def _shares(start: int, extent: int, spacing: int) -> tuple[NDArray[np.int64], Points]:
    """Numbers of the nodes that `extent` pixels from `start` on lie between, and their shares [extent, nodes]."""
    numbers = np.arange(start // spacing, (start + extent - 1) // spacing + 2)
    node, share = np.divmod(start + np.arange(extent), spacing)
    weights = np.zeros((extent, len(numbers)))
    weights[np.arange(extent), node - numbers[0]] = 1 - share / spacing
    weights[np.arange(extent), node - numbers[0] + 1] = share / spacing
    return numbers, weights
