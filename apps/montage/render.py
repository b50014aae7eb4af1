"""The section image, piece by piece: tiles at their exact places, blended where they overlap."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, tiles
from apps.montage.filters import TAPS_AFTER, TAPS_BEFORE, Floats, sample_between
from apps.montage.illumination import Exposure
from apps.montage.images import TileReader
from apps.montage.offsets import Extent, Strip
from apps.montage.records import Point
from apps.montage.table import TileRow


@dataclass(frozen=True)
class RenderTile:
    """A tile as it is drawn: `position` (y, x) of its first pixel in the section image, and its grey levels."""

    row: TileRow
    position: Point
    gain: float
    brightness: float


@dataclass(frozen=True)
class Piece:
    """Pixels `part` of the section image, and all tiles (of `shape`) that touch them."""

    part: Strip
    tiles: tuple[RenderTile, ...]
    shape: Extent
    exposure: Exposure
    pivot: float
    blend: int


def section_extent(positions: NDArray[np.float64], shape: Extent) -> tuple[tuple[int, int], Extent]:
    """Whole-pixel origin (y, x) and shape of the image that holds tiles of `shape` at `positions` [n, 2]."""
    origin = np.floor(positions.min(axis=0)).astype(int)
    # The last pixel's centre is at position + extent - 1; beyond it there is no image.
    end = np.floor(positions.max(axis=0) + np.asarray(shape) - 1).astype(int) + 1
    return (int(origin[0]), int(origin[1])), (int(end[0] - origin[0]), int(end[1] - origin[1]))


def plan_pieces(
    section: Extent,
    chunk: int,
    drawn: tuple[RenderTile, ...],
    shape: Extent,
    exposure: Exposure,
    pivot: float,
    blend: int,
) -> Iterator[Piece]:
    """One piece for every chunk that a tile touches, in an order in which neighbours in time share tiles."""
    parts = (Strip(box.offset[1:], box.end[1:]) for box in tiles(Box.of((0, 0, 0), (1, *section)), (1, chunk, chunk)))
    rows, columns = (max(1, n // chunk) * chunk for n in shape)
    ordered = sorted(parts, key=lambda p: (p.first[0] // rows, p.first[1] // columns, p.first))
    for part in ordered:
        touching = tuple(tile for tile in drawn if not _common(tile, shape, part).empty)
        if touching:
            yield Piece(part, touching, shape, exposure, pivot, blend)


def render_piece(reader: TileReader, piece: Piece) -> NDArray[np.uint8]:
    """The piece's pixels, uint8: 0 where there is no tile, 1 to 255 elsewhere.

    Where tiles overlap each counts the more the farther the pixel is from its border, up to `blend` pixels.
    """
    total = np.zeros(piece.part.shape, np.float32)
    weight = np.zeros(piece.part.shape, np.float32)
    y0, x0 = piece.part.first
    for tile in piece.tiles:
        common = _common(tile, piece.shape, piece.part)
        grey = _draw(reader, tile, common, piece)
        shares = [
            _share(np.arange(a, b) - p, n, piece.blend)
            for a, b, p, n in zip(common.first, common.end, tile.position, piece.shape, strict=True)
        ]
        share = shares[0][:, None] * shares[1]
        where = Strip((common.first[0] - y0, common.first[1] - x0), (common.end[0] - y0, common.end[1] - x0)).slices()
        total[where] += share * grey
        weight[where] += share
    there = weight > 0
    blended = np.rint(total / np.where(there, weight, np.float32(1)))
    return np.where(there, np.clip(blended, 1, 255), 0).astype(np.uint8)


def _common(tile: RenderTile, shape: Extent, part: Strip) -> Strip:
    """The pixels of `part` whose centres lie within the tile."""
    first = [max(a, math.ceil(p)) for a, p in zip(part.first, tile.position, strict=True)]
    end = [min(b, math.floor(p + n - 1) + 1) for b, p, n in zip(part.end, tile.position, shape, strict=True)]
    return Strip((first[0], first[1]), (end[0], end[1]))


def _draw(reader: TileReader, tile: RenderTile, common: Strip, piece: Piece) -> Floats:
    """Grey levels of the tile at the section's pixels `common`."""
    cuts, fractions, inner = [], [], []
    for a, b, p, n in zip(common.first, common.end, tile.position, piece.shape, strict=True):
        whole = a - math.ceil(p)  # the tile's pixel at or before the first one asked for
        first, end = max(0, whole - TAPS_BEFORE), min(n, whole + b - a + TAPS_AFTER)
        cuts.append((first, end))
        fractions.append(math.ceil(p) - p)
        inner.append(slice(whole - first, whole - first + b - a))
    part = Strip((cuts[0][0], cuts[1][0]), (cuts[0][1], cuts[1][1]))
    grey = sample_between(piece.exposure.correct(reader.read(tile.row.file), part), fractions[0], fractions[1])
    grey = grey[inner[0], inner[1]]
    return (grey - np.float32(piece.pivot)) * np.float32(tile.gain) + np.float32(piece.pivot + tile.brightness)


def _share(inside: NDArray[np.floating], extent: int, blend: int) -> Floats:
    """0 to 1 from a tile's border inwards, along one axis, at pixels `inside` it."""
    to_border = np.minimum(inside, extent - 1 - inside) + 1
    return np.clip(to_border / (blend + 1), 1e-3, 1.0).astype(np.float32)
