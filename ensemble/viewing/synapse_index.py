"""The spatial index of a table of synapses: what a viewer asks for lies together, and is found without a search.

Rows are put in the order of the index: level by level from coarse to fine, and in a level cell by cell.  Each level has
a random sample of what the coarser ones have left, the last one all of it: neuroglancer shows what the levels down to
some fineness have where it looks, and the rules of its annotations ask for that.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.synapses.table import SynapseTable

# Synapses in a cell, except on the last level, which has all that is left.
PER_CELL = 1000
MOST_LEVELS = 12
# The centre of voxel i is at i in the table, and at i + 1/2 in neuroglancer, which counts from a voxel's corner.
CENTRE = 0.5

Cell = tuple[int, int, int]


@dataclass(frozen=True)
class SynapseIndex:
    """n synapses in c cells on some levels.

    Attributes:
        ids: uint64 [n], each once.
        partners: uint64 [n, 2]: segments before and after the cleft; 0 where unknown.
        lines: float32 [n, 2, 3]: from a point in the first to one in the second, xyz, in voxels of the image from the
            corner of its first one.
        confidence: float32 [n].
        orders: int64 [3, n], rows in the order of id, of segment before and of segment after.
        bounds: float64 [2, 3], lower and upper corner of a box around all lines, xyz; not empty along any axis.
        cells: int64 [c], numbers of the cells that have synapses, ascending in each level; x is slowest.
        starts: int64 [c + 1], a cell's rows are starts[i] to starts[i + 1].
        ends: int64 [levels], a level's cells are ends[k - 1] to ends[k].
    """

    ids: NDArray[np.uint64]
    partners: NDArray[np.uint64]
    lines: NDArray[np.float32]
    confidence: NDArray[np.float32]
    orders: NDArray[np.int64]
    bounds: NDArray[np.float64]
    cells: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def levels(self) -> int:
        return len(self.ends)

    def counts(self, level: int) -> NDArray[np.int64]:
        """Cells of a level along xyz."""
        return cell_counts(self.bounds, level)

    def most(self, level: int) -> int:
        """Synapses in the fullest cell of a level."""
        cells = self._cells(level)
        return int(np.diff(self.starts[cells.start : cells.stop + 1]).max(initial=0))

    def in_cell(self, level: int, cell: Cell) -> slice:
        """Rows of a cell xyz; none where there is no such cell."""
        counts = self.counts(level)
        if any(place >= count for place, count in zip(cell, counts, strict=True)):
            return slice(0, 0)
        number, cells = int(np.ravel_multi_index(cell, tuple(counts))), self._cells(level)
        place = bisect_left(self.cells, number, cells.start, cells.stop)
        if place == cells.stop or self.cells[place] != number:
            return slice(0, 0)
        return slice(int(self.starts[place]), int(self.starts[place + 1]))

    def with_id(self, number: int) -> NDArray[np.int64]:
        """The row of a synapse, or none."""
        return self._rows(self.ids, self.orders[0], number)

    def with_partner(self, end: int, number: int) -> NDArray[np.int64]:
        """Rows with this segment before (end = 0) or after (1) the cleft."""
        return self._rows(self.partners[:, end], self.orders[1 + end], number)

    def _cells(self, level: int) -> slice:
        return slice(int(self.ends[level - 1]) if level else 0, int(self.ends[level]))

    @staticmethod
    def _rows(column: NDArray[np.uint64], order: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        def key(row: np.int64) -> int:
            return int(column[row])

        return order[bisect_left(order, number, key=key) : bisect_right(order, number, key=key)]


def cell_counts(bounds: NDArray[np.float64], level: int) -> NDArray[np.int64]:
    """Cells of a level along xyz: the longest sides are halved first, so that cells become about cubic."""
    extent = bounds[1] - bounds[0]
    return np.maximum(1, np.round(extent / (extent.max() / 2**level))).astype(np.int64)


def build_index(table: SynapseTable) -> SynapseIndex:
    """The index of a table; the same for the same table."""
    lines = (table.points[..., ::-1] + CENTRE).astype(np.float32)
    bounds = _bounds(lines)
    left = np.random.default_rng(0).permutation(len(lines))
    middles = (lines[:, 0].astype(np.float64) + lines[:, 1])[left] / 2
    places = ((middles - bounds[0]) / (bounds[1] - bounds[0])).T.copy()  # 0 to 1 along xyz
    rows: list[NDArray[np.int64]] = []
    cells: list[NDArray[np.int64]] = []
    sizes: list[NDArray[np.int64]] = []
    while len(left) or not rows:
        last = len(rows) == MOST_LEVELS - 1
        numbers = _cell_numbers(places, cell_counts(bounds, len(rows)))
        order = np.argsort(numbers, kind="stable")
        found = numbers[order]
        first = np.flatnonzero(np.diff(found, prepend=found[:1] + 1)) if len(found) else np.empty(0, np.int64)
        there = np.diff(first, append=len(found))
        taken = there if last else np.minimum(there, PER_CELL)
        rank = np.arange(len(found)) - np.repeat(first, there)
        chosen = order[rank < np.repeat(taken, there)]
        rows.append(left[chosen])
        cells.append(found[first].astype(np.int64))
        sizes.append(taken)
        stays = np.ones(len(left), bool)
        stays[chosen] = False
        left, places = left[stays], places[:, stays]
    everything = np.concatenate(rows)
    ids, partners = table.id.astype(np.uint64)[everything], table.partners[everything]
    return SynapseIndex(
        ids=ids,
        partners=partners,
        lines=lines[everything],
        confidence=table.confidence.astype(np.float32)[everything],
        orders=np.stack([np.argsort(key, kind="stable") for key in (ids, *partners.T)]),
        bounds=bounds,
        cells=np.concatenate(cells),
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes), dtype=np.int64)]),
        ends=np.cumsum([len(own) for own in cells], dtype=np.int64),
    )


def _bounds(lines: NDArray[np.float32]) -> NDArray[np.float64]:
    if not len(lines):
        return np.stack([np.zeros(3), np.ones(3)])
    low = np.floor(lines.min(axis=(0, 1)).astype(np.float64))
    return np.stack([low, np.maximum(np.floor(lines.max(axis=(0, 1)).astype(np.float64)) + 1, low + 1)])


def _cell_numbers(places: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
    """Of each place [3, m] the number of its cell, in the smallest type: short ones are sorted many times faster."""
    numbers = np.zeros(places.shape[1], np.int64)
    for along, count in zip(places, counts, strict=True):
        numbers *= count
        numbers += np.clip((along * count).astype(np.int64), 0, count - 1)
    return numbers.astype(np.min_scalar_type(int(np.prod(counts)) - 1))
