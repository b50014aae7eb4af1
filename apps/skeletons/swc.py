"""SWC: one line a node, with its parent before it (Cannon et al. 1998)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from apps.core.volumes import VoxelSize
from apps.skeletons.lines import Line

Unit = Literal["nanometer", "micrometer"]
_NANOMETRES: dict[str, float] = {"nanometer": 1.0, "micrometer": 1000.0}


def to_swc(line: Line, size: VoxelSize, unit: Unit) -> str:
    """The text: number, type 0, x, y, z, radius, parent (-1 for the first node of each piece), in `unit`."""
    order, parent = _rooted(line)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(1, len(order) + 1)
    # To the picometre wherever in the volume: so many digits from the front would be voxels off far from its corner.
    places, radius = line.places_nm(size).round(3) / _NANOMETRES[unit], line.radius_nm / _NANOMETRES[unit]
    rows = [f"# x, y, z, radius in {unit}s, from the corner of the volume's first voxel"]
    for node in order:
        x, y, z = places[node]
        above = number[parent[node]] if parent[node] >= 0 else -1
        rows.append(f"{number[node]} 0 {x:.12g} {y:.12g} {z:.12g} {radius[node]:.6g} {above}")
    return "\n".join(rows) + "\n"


def _rooted(line: Line) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Nodes so that each comes after its parent, and the parent of each node (-1: none)."""
    count = len(line.nodes)
    one, other = line.edges.T
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), (count, count)).tocsr()
    pieces, piece = connected_components(graph, directed=False)
    roots = np.full(pieces, count)
    np.minimum.at(roots, piece, np.arange(count))
    order, parent = [], np.full(count, -1, np.int64)
    for root in roots:
        reached, before = breadth_first_order(graph, root, directed=False, return_predecessors=True)
        order.append(reached)
        parent[reached[1:]] = before[reached[1:]]
    return np.concatenate(order).astype(np.int64), parent
