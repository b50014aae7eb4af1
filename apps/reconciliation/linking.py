"""Which objects of two overlapping subvolumes are the same, and the union of all such links.

Source: the reconciliation step of flood-filling networks (M. Januszewski et al., Nature Methods 15, 2018) and its
use at Argonne: objects are linked where their overlap is large and mutual; links are closed transitively by union-find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from apps.core.parameters import Parameters
from apps.evaluation.contingency import Labels, count_pairs, totals


class LinkRule(Parameters, frozen=True, kw_only=True):
    """When two objects of two subvolumes are one.  All counts are of voxels in the overlap of their read boxes."""

    min_overlap_voxels: Annotated[
        int,
        Meta(
            ge=1,
            description="voxels that both objects cover at least; 100 suits overlaps of some 16 voxels, Argonne uses "
            "500 with subvolumes of 256 x 256 x 64 and overlaps of 32 x 32 x 16",
        ),
    ] = 100
    min_overlap_fraction: Annotated[
        float, Meta(ge=0, le=1, description="share of the voxels of either object that both cover at least")
    ] = 0.3
    mutual_maximum: Annotated[
        bool,
        Meta(
            description="link only objects of which each is the other's largest overlap, so that a merger in one "
            "subvolume does not merge the objects of another; off, an object may be linked to several"
        ),
    ] = True


@dataclass(frozen=True)
class Candidates:
    """Pairs of objects that share voxels, ordered by first and then second id.

    Attributes:
        first, second: ids in the two segmentations, [n].
        shared: int64 [n], voxels that carry both.
        first_voxels, second_voxels: int64 [n], voxels of each object in the overlap.
        linked: bool [n], true where the rule holds.
    """

    first: Labels
    second: Labels
    shared: NDArray[np.int64]
    first_voxels: NDArray[np.int64]
    second_voxels: NDArray[np.int64]
    linked: NDArray[np.bool_]


def find_links(first: Labels, second: Labels, rule: LinkRule) -> Candidates:
    """Compare what two subvolumes say about the overlap of their read boxes (two label arrays of equal shape, zyx)."""
    pairs = count_pairs(first, second)
    first_voxels, second_voxels = totals(pairs.first, pairs.voxels), totals(pairs.second, pairs.voxels)
    objects = (pairs.first != 0) & (pairs.second != 0)
    a, b, shared = pairs.first[objects], pairs.second[objects], pairs.voxels[objects]
    first_voxels, second_voxels = first_voxels[objects], second_voxels[objects]
    linked = shared >= rule.min_overlap_voxels
    linked &= shared >= rule.min_overlap_fraction * np.maximum(first_voxels, second_voxels)
    if rule.mutual_maximum:
        linked &= _is_largest(a, shared) & _is_largest(b, shared)
    return Candidates(a, b, shared, first_voxels, second_voxels, linked)


def unite(nodes: int, links: NDArray[np.int64]) -> NDArray[np.int64]:
    """Close links transitively: for each node its group, groups numbered from 0 by their smallest node.

    nodes: how many there are.  links: [n, 2] pairs of nodes.
    """
    ones = np.ones(len(links), np.uint8)
    graph = coo_array((ones, (links[:, 0], links[:, 1])), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1]
    _, smallest, member = np.unique(group, return_index=True, return_inverse=True)
    rank: NDArray[Any] = np.empty(len(smallest), np.int64)
    rank[np.argsort(smallest)] = np.arange(len(smallest))
    numbers: NDArray[np.int64] = rank[member]
    return numbers


def _is_largest(labels: Labels, shared: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a pair shares the most voxels among the pairs of its label; of equal ones the first."""
    largest = np.zeros(len(labels), bool)
    by_label = np.lexsort((np.arange(len(labels)), -shared, labels))
    ordered = labels[by_label]
    first_of_label = np.ones(len(labels), bool)
    first_of_label[1:] = ordered[1:] != ordered[:-1]
    largest[by_label[first_of_label]] = True
    return largest
