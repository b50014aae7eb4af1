"""The overlapping pairs of a section: which there are, what their overlaps say, and how well they fit in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apps.montage.illumination import Exposure
from apps.montage.images import TileReader
from apps.montage.offsets import Extent, Look, Measured, correlation_at, measure, strips
from apps.montage.records import Point
from apps.montage.table import TileRow

_LONG_SIDE = 0.25  # of a tile: where an overlap is shorter than that, two tiles only touch at a corner


@dataclass(frozen=True)
class Pair:
    """Tiles `a` and `b` (indices), both of `shape`; `expected` is the position of b less that of a, (y, x)."""

    a: int
    b: int
    row_a: TileRow
    row_b: TileRow
    shape: Extent
    exposure: Exposure
    expected: Point
    search: int
    min_overlap: int


def plan_pairs(rows: list[TileRow], shape: Extent, exposure: Exposure, search: int, min_overlap: int) -> list[Pair]:
    """Pairs that overlap where the stage put them, by at least `min_overlap` across and a quarter of a tile along."""
    stage = np.array([(row.y, row.x) for row in rows]).reshape(-1, 2)
    if len(rows) < 2:
        return []
    near = cKDTree(stage / np.asarray(shape)).query_pairs(1.0, p=np.inf, output_type="ndarray")
    found = []
    for a, b in sorted((int(min(pair)), int(max(pair))) for pair in near):
        expected = stage[b] - stage[a]
        overlap = np.asarray(shape) - np.abs(expected)
        if overlap.min() >= min_overlap and (overlap / shape).max() >= _LONG_SIDE:
            offset = float(expected[0]), float(expected[1])
            found.append(Pair(a, b, rows[a], rows[b], shape, exposure, offset, search, min_overlap))
    return found


def measure_pair(reader: TileReader, pair: Pair) -> Measured | None:
    """What the overlap of a pair says about its offset."""
    strip_a, strip_b = strips(pair.shape, pair.expected, pair.search)
    a = pair.exposure.correct(reader.read(pair.row_a.file), strip_a)
    b = pair.exposure.correct(reader.read(pair.row_b.file), strip_b)
    return measure(a, b, strip_a, strip_b, pair.expected, pair.search, pair.min_overlap)


def check_pair(reader: TileReader, pair: Pair) -> tuple[float, Look] | None:
    """Correlation and look of a pair at its `expected` offset; None where nothing overlaps there."""
    strip_a, strip_b = strips(pair.shape, pair.expected, 0)
    if strip_a.empty or strip_b.empty:
        return None
    a = pair.exposure.correct(reader.read(pair.row_a.file), strip_a)
    b = pair.exposure.correct(reader.read(pair.row_b.file), strip_b)
    return correlation_at(a, b, strip_a, strip_b, pair.expected)


def at_positions(pairs: list[Pair], positions: NDArray[np.float64]) -> Iterator[Pair]:
    """The pairs with the offsets that tiles at `positions` [n, 2] have."""
    for pair in pairs:
        y, x = positions[pair.b] - positions[pair.a]
        yield replace(pair, expected=(float(y), float(x)))
