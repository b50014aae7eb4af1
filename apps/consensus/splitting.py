"""Split consensus of two label arrays (Januszewski et al., Nature Methods 2018): two voxels stay in one object where
both segmentations have them in one, so that a split of either is kept and a merger of one alone is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cc3d
import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError

Labels = NDArray[Any]


@dataclass(frozen=True)
class Consensus:
    """What two segmentations agree on.

    Attributes:
        labels: uint32, of their shape; 0 none, ids 1..n in the order of (first, second).
        first, second: for each id, from 1 on, the objects that it is the common part of, [n].
        voxels: int64 [n].
        dropped: voxels in both segmentations that are left out, as their part was too small.
    """

    labels: NDArray[np.uint32]
    first: Labels
    second: Labels
    voxels: NDArray[np.int64]
    dropped: int


def split_consensus(first: Labels, second: Labels, min_voxels: int, connected: bool = False) -> Consensus:
    """Every pair of ids that meets becomes an object, parts of under `min_voxels` voxels become 0.

    first, second: integer labels of equal shape zyx, 0 for none.  With `connected`, parts of a pair that are not
    connected (26 neighbours) are objects of their own.  Raises DataError where shapes or dtypes do not fit.
    """
    for labels in (first, second):
        if labels.dtype.kind not in "ui":
            raise DataError(f"an array of dtype {labels.dtype}: expected integer labels")
    if first.shape != second.shape:
        raise DataError(f"shapes {first.shape} and {second.shape}: expected two segmentations of the same box")
    rows, row_ids = _rank(first)
    columns, column_ids = _rank(second)
    pairs = np.where((first != 0) & (second != 0), rows * len(column_ids) + columns, -1)
    if connected:
        known, numbers = np.unique(pairs, return_inverse=True)
        parts = cc3d.connected_components(
            (numbers.reshape(pairs.shape) + (known[0] >= 0)).astype(np.uint32), connectivity=26
        ).astype(np.int64)
        # A part's number comes after its pair, so that ids are in the order of pairs whatever cc3d counts by.
        cells = np.where(pairs >= 0, pairs * (int(parts.max(initial=0)) + 1) + parts, -1)
        width = int(parts.max(initial=0)) + 1
    else:
        cells, width = pairs, 1
    found, numbers, voxels = np.unique(cells, return_inverse=True, return_counts=True)
    inside = found >= 0
    kept = inside & (voxels >= min_voxels)
    new_ids = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    row, column = np.divmod(found[kept] // width, len(column_ids))
    return Consensus(
        labels=new_ids[numbers].reshape(first.shape),
        first=row_ids[row],
        second=column_ids[column],
        voxels=voxels[kept].astype(np.int64),
        dropped=int(voxels[inside & ~kept].sum()),
    )


def _rank(labels: Labels) -> tuple[NDArray[np.int64], Labels]:
    """(for every voxel the place of its label among the sorted labels, the sorted labels)."""
    ids = fastremap.unique(labels)
    return np.searchsorted(ids, labels).astype(np.int64, copy=False), ids
