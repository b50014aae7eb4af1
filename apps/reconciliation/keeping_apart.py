"""Pairs that must stay apart: which links to refuse, so that no group holds both of a pair.

Links are taken strongest first, as in Kruskal's algorithm, and one that would bring a forbidden pair into one group is
refused; agglomeration with "cannot link" constraints.  It works on the groups that hold such a pair, and in memory.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Links:
    """Links between nodes: `a` and `b` int64 [n], a < b, and `shared`, the voxels in common."""

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    shared: NDArray[np.int64]


def refuse_links(links: Links, forbidden: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True [n] where a link has to be refused.

    forbidden: [m, 2] pairs of nodes.  Links are taken by descending `shared`, then ascending a and b, so the answer
    depends on nothing else.
    """
    parent: dict[int, int] = {}
    enemies: dict[int, set[int]] = defaultdict(set)  # by root; of nodes, so that a root need not be kept up to date
    members: dict[int, list[int]] = {}  # by root; of the nodes that have enemies

    def find(node: int) -> int:
        root = node
        while (above := parent.get(root, root)) != root:
            root = above
        while (above := parent.get(node, node)) != root:
            parent[node] = root
            node = above
        return root

    for one, other in forbidden.tolist():
        for node, enemy in ((one, other), (other, one)):
            enemies[node].add(enemy)
            members[node] = [node]
    refused = np.zeros(len(links.a), bool)
    order = np.lexsort((links.b, links.a, -links.shared))
    a, b = links.a.tolist(), links.b.tolist()
    for number in order.tolist():
        one, other = find(a[number]), find(b[number])
        if one == other:
            continue
        if len(members.get(one, ())) > len(members.get(other, ())):
            one, other = other, one
        # `one` has the fewer nodes with enemies: whether these are among the enemies of `other` is soon told.
        theirs = enemies.get(other, set())
        if any(node in theirs for node in members.get(one, ())):
            refused[number] = True
            continue
        parent[one] = other
        if one in members:
            members.setdefault(other, []).extend(members.pop(one))
            enemies[other] |= enemies.pop(one)
    return refused
