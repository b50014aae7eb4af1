"""Numbering the objects of all subvolumes: 0, 1, ... in the order of subvolumes, and of ids within one.

The order is that of the supervoxel ids, so the smallest node of a group has its smallest supervoxel id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.supervoxels import split_ids, supervoxel_ids

Nodes = NDArray[np.int64]


@dataclass(frozen=True)
class NodeTable:
    """Which node is which object.

    Attributes:
        starts: int64 [subvolumes + 1], first node of each, and at last the number of nodes.
        dense: bool [subvolumes], where the ids are 1, 2, ... without a gap, as they mostly are.
        local_file: uint32 for each node, its id in its subvolume.
    """

    starts: NDArray[np.int64]
    dense: NDArray[np.bool_]
    local_file: Path

    @property
    def count(self) -> int:
        return int(self.starts[-1])

    def local(self, subvolume: int) -> NDArray[np.uint32]:
        """The ids of a subvolume's objects, ascending."""
        start, end = self.starts[subvolume : subvolume + 2]
        return np.fromfile(self.local_file, np.uint32, end - start, offset=4 * start)

    def nodes(self, subvolumes: NDArray[np.int64], sizes: NDArray[np.int64], local: NDArray[np.uint32]) -> Nodes:
        """The nodes of ids, int64 [n], that come in runs: `sizes[k]` of them in a row are of `subvolumes[k]`.

        Raises DataError where a subvolume has no such object.
        """
        nodes = np.repeat(self.starts[subvolumes], sizes) + local.astype(np.int64) - 1
        ends = np.cumsum(sizes)
        for run in np.flatnonzero(~self.dense[subvolumes]):
            subvolume, rows = int(subvolumes[run]), slice(int(ends[run] - sizes[run]), int(ends[run]))
            known = self.local(subvolume)
            place = np.searchsorted(known, local[rows])
            if len(known) == 0 or not np.array_equal(known[np.minimum(place, len(known) - 1)], local[rows]):
                raise _unknown(subvolume)
            nodes[rows] = self.starts[subvolume] + place
        wrong = (local == 0) | (nodes >= np.repeat(self.starts[subvolumes + 1], sizes))
        if wrong.any():
            raise _unknown(int(np.repeat(subvolumes, sizes)[np.argmax(wrong)]))
        return nodes

    def find(self, supervoxels: NDArray[np.uint64]) -> Nodes:
        """The nodes of supervoxel ids, int64 [n]; -1 where there is no such object."""
        subvolumes, local = split_ids(supervoxels)
        nodes = np.full(len(supervoxels), -1, np.int64)
        for subvolume in np.unique(subvolumes[subvolumes < len(self.dense)]):
            rows, known = np.flatnonzero(subvolumes == subvolume), self.local(int(subvolume))
            place = np.searchsorted(known, local[rows])
            there = place < len(known)
            there[there] = known[place[there]] == local[rows][there]
            nodes[rows[there]] = self.starts[subvolume] + place[there]
        return nodes

    def supervoxels(self, nodes: Nodes) -> NDArray[np.uint64]:
        """The supervoxel ids of nodes, uint64 [n]."""
        subvolumes = np.searchsorted(self.starts, nodes, side="right") - 1
        local = nodes - self.starts[subvolumes] + 1
        sparse = np.flatnonzero(~self.dense[subvolumes])
        if len(sparse):
            table = np.memmap(self.local_file, np.uint32, "r")
            local[sparse] = table[nodes[sparse]]
        return supervoxel_ids(subvolumes, local)


def _unknown(subvolume: int) -> DataError:
    return DataError(
        f"subvolume {subvolume}: a neighbour has seen an object in it that it does not list; remove their unit files "
        "and compare again"
    )
