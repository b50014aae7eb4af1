"""Union-find over a file: the groups of hundreds of millions of nodes, closed from links that come in batches.

Every node points at its parent, a node of lower number, and a root at itself; so the root of a group is its smallest
node, in whatever order the links come.  Batches are hooked as a whole (Y. Shiloach and U. Vishkin, J. Algorithms 3,
1982): every root takes the lowest root that it is linked to, and pointers are halved until all reach their root.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Nodes = NDArray[np.int64]

# Nodes that are swept at once.
BLOCK = 1 << 22


def parent_dtype(nodes: int) -> np.dtype[Any]:
    """What the parents of so many nodes are kept as."""
    return np.dtype(np.uint32 if nodes <= 1 << 32 else np.uint64)


class UnionFind:
    """The groups of `nodes` nodes.

    The parents lie in `file` (4 bytes a node, 8 where there are 2^32 or more), which is mapped into memory: pages of it
    that are not in use the system may take back.
    """

    def __init__(self, file: Path, nodes: int) -> None:
        self._nodes = nodes
        dtype = parent_dtype(nodes)
        # Written, not merely mapped: a disk without room for it is an error here, and no signal that kills us later.
        with file.open("wb") as stream:
            for start in range(0, nodes, BLOCK):
                stream.write(np.arange(start, min(start + BLOCK, nodes), dtype=dtype).tobytes())
        self._parents: NDArray[Any] = np.asarray(np.memmap(file, dtype, "r+")) if nodes else np.empty(0, dtype)

    def union(self, first: Nodes, second: Nodes) -> None:
        """Put the groups of `first[k]` and `second[k]` together, for all k; node numbers, int64 [n]."""
        while True:
            first, second = self.find(first), self.find(second)
            apart = first != second
            if not apart.any():
                return
            first, second = first[apart], second[apart]
            lower = np.minimum(first, second).astype(self._parents.dtype)
            np.minimum.at(self._parents, np.maximum(first, second), lower)

    def find(self, nodes: Nodes) -> Nodes:
        """The roots of nodes, int64 [n]; shortens the way there for all that it meets."""
        roots = self._parents[nodes].astype(np.int64)
        while True:
            above = self._parents[roots].astype(np.int64)
            if np.array_equal(above, roots):
                return roots
            self._parents[nodes] = above
            self._parents[roots] = self._parents[above]
            roots = above

    def roots(self) -> Iterator[tuple[int, Nodes]]:
        """(first node, the roots of the nodes from it on) of consecutive blocks; afterwards all point at their root."""
        for start in range(0, self._nodes, BLOCK):
            block = self._parents[start : start + BLOCK]
            while True:
                # Parents in earlier blocks are roots by now, so the pointers that are left are short ones.
                above = self._parents[block]
                if np.array_equal(above, block):
                    break
                block[:] = above
            yield start, block.astype(np.int64)

    def close(self) -> None:
        """Give the mapping back."""
        with contextlib.suppress(AttributeError):
            del self._parents
