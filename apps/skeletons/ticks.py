"""Removing ticks: side branches that are too short to be more than the edge of a thick place."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


def without_ticks(places: NDArray[np.float64], edges: NDArray[np.int64], longest: float) -> NDArray[np.bool_]:
    """Which nodes of a forest (places [n, 3], edges [m, 2]) stay when ticks up to a length are removed.

    A tick runs from a tip to the first node where its tree branches.  The shortest goes first, whichever tree it is
    in; where a node then branches no more, what is left of it runs on through the node, and is as long as both.  So a
    tree never comes apart, and one without branches stays, however short.

    kimimaro has such a step too; its 5.8.5 also takes short stretches between two branching nodes for ticks, once a
    tick beside them has gone, and leaves trees in pieces.
    """
    around: list[dict[int, float]] = [{} for _ in range(len(places))]
    lengths = np.linalg.norm(places[edges[:, 0]] - places[edges[:, 1]], axis=1)
    for (a, b), length in zip(edges.tolist(), lengths.tolist(), strict=True):
        around[a][b] = around[b][a] = length
    waiting = [(0.0, node) for node, others in enumerate(around) if len(others) == 1]
    kept = np.ones(len(places), bool)
    while waiting:
        length, tip = heapq.heappop(waiting)
        tick = _tick(around, tip, longest)
        if tick is None:
            continue
        nodes, now, branching = tick
        if now > length:  # not looked at yet, or grown since: its turn comes when it is the shortest
            heapq.heappush(waiting, (now, tip))
            continue
        kept[nodes] = False
        del around[branching][nodes[-1]]
    return kept


def _tick(around: list[dict[int, float]], tip: int, longest: float) -> tuple[list[int], float, int] | None:
    """The nodes of the tick at a tip, its length, and the branching node it ends at; None where there is none."""
    nodes, length = [tip], 0.0
    while True:
        ahead = [node for node in around[nodes[-1]] if len(nodes) < 2 or node != nodes[-2]]
        if not ahead:  # the other end of a tree without branches
            return None
        length += around[nodes[-1]][ahead[0]]
        if length > longest:
            return None
        if len(around[ahead[0]]) > 2:
            return nodes, length, ahead[0]
        nodes.append(ahead[0])
