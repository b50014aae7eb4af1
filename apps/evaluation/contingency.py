"""The contingency table of two label arrays, sparse: which labels meet, and in how many voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

Labels = NDArray[Any]

# Up to this many cells, counting all pairs of labels in one dense table is faster than sorting the pairs.
_DENSE_CELLS = 1 << 24


@dataclass(frozen=True)
class LabelPairs:
    """The non-zero cells of a contingency table, ordered by first and then second label.

    Attributes:
        first, second: the labels that meet, [n], in the dtypes of the arrays compared.
        voxels: int64 [n], how many voxels carry both.
    """

    first: Labels
    second: Labels
    voxels: NDArray[np.int64]


def count_pairs(first: Labels, second: Labels) -> LabelPairs:
    """Count which labels of two integer arrays of equal shape share voxels; 0 is a label as any other."""
    if first.size == 0:
        return LabelPairs(first.ravel(), second.ravel(), np.empty(0, np.int64))
    row_labels, rows = _rank(first)
    column_labels, columns = _rank(second)
    cell = rows * len(column_labels) + columns
    if len(row_labels) * len(column_labels) <= _DENSE_CELLS:
        table = np.bincount(cell)
        cells = np.flatnonzero(table)
        voxels = table[cells]
    else:
        cells, voxels = np.unique(cell, return_counts=True)
    row, column = np.divmod(cells, len(column_labels))
    return LabelPairs(row_labels[row], column_labels[column], voxels.astype(np.int64, copy=False))


def totals(labels: Labels, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each cell [n], the voxels of all cells with the same label: `totals(pairs.first, pairs.voxels)`."""
    _, group = np.unique(labels, return_inverse=True)
    summed = np.zeros(int(group.max(initial=-1)) + 1, np.int64)
    np.add.at(summed, group, voxels)
    return summed[group]


def _rank(labels: Labels) -> tuple[Labels, NDArray[np.int64]]:
    """The sorted distinct labels, and for each voxel (flat) the index of its label in them."""
    # fastremap numbers labels with a hash table in order of appearance, several times as fast as sorting voxels.
    numbered, numbers = fastremap.renumber(labels.ravel(), preserve_zero=False, in_place=False)
    distinct = np.array(list(numbers), labels.dtype)
    order = np.argsort(distinct)
    rank = np.zeros(max(numbers.values()) + 1, np.int64)
    rank[np.array(list(numbers.values()))[order]] = np.arange(len(distinct))
    return distinct[order], rank[numbered]
