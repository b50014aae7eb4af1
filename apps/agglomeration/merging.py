"""Which pairs of objects become one: thresholds on their scores, and union-find with pairs that must stay apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from apps.reconciliation.keeping_apart import Links, refuse_links

Ids = NDArray[np.uint64]
Flags = NDArray[np.bool_]

MERGED = ""
CUT, FORBIDDEN = "cut", "forbidden"


@dataclass(frozen=True)
class MergeRule:
    """When two objects that touch are one; the defaults are those that were published for flood-filling networks.

    Attributes:
        min_iou: the floods from both sides agree by more than this (intersection / union).
        min_recovered: each flood fills at least this share of each of the two objects.
        max_deleted: each flood takes away less than this share of what it fills.
    """

    min_iou: float = 0.8
    min_recovered: float = 0.6
    max_deleted: float = 0.02


@dataclass(frozen=True)
class Edges:
    """Scored pairs, one a decision point; where a score is NaN there was none.

    Attributes:
        a, b: ids, a < b, uint64 [n].
        scored: whether both floods ended, [n].
        iou, recovered, deleted: the agreement; the smallest of the four recovered shares; the larger of the deleted.
    """

    a: Ids
    b: Ids
    scored: Flags
    iou: NDArray[np.float64]
    recovered: NDArray[np.float64]
    deleted: NDArray[np.float64]


@dataclass(frozen=True)
class Merging:
    """What became of the edges, and of the objects they name.

    Attributes:
        refused: for every edge why it is none, "" for one that is: a verdict of the scores, or of the rule.
        base, object: ids of the objects that changed theirs, ascending, and what they are now: the smallest of all ids
            that became one.
    """

    refused: NDArray[np.object_]
    base: Ids
    object: Ids


def judge(edges: Edges, rule: MergeRule, verdicts: NDArray[np.object_]) -> NDArray[np.object_]:
    """For every edge "" where its scores say that it is one object, or why not; `verdicts` of what was not scored."""
    refused: NDArray[np.object_] = np.where(edges.scored, MERGED, verdicts)
    with np.errstate(invalid="ignore"):
        for name, fails in (
            ("iou", ~(edges.iou > rule.min_iou)),
            ("recovered", ~(edges.recovered >= rule.min_recovered)),
            ("deleted", ~(edges.deleted < rule.max_deleted)),
        ):
            refused[edges.scored & (refused == MERGED) & fails] = name
    return refused


def merge(edges: Edges, refused: NDArray[np.object_], forbidden: Ids, cut: Ids) -> Merging:
    """Close the accepted edges transitively.

    forbidden [n, 2]: ids that must not become one object; of a group that would hold such a pair, edges are taken
    strongest first (agreement, then ids), and one that would join the pair is refused.  cut [n, 2]: pairs whose edges
    are not taken, whatever their scores.  The result does not depend on the order of the edges.
    """
    refused = refused.copy()
    refused[(refused == MERGED) & _among(edges.a, edges.b, cut)] = CUT
    taken = np.flatnonzero(refused == MERGED)
    ids, nodes = np.unique(np.concatenate([edges.a[taken], edges.b[taken]]), return_inverse=True)
    one, other = nodes[: len(taken)], nodes[len(taken) :]
    group = _groups(len(ids), one, other)
    apart = _places(ids, forbidden)
    apart = apart[group[apart[:, 0]] == group[apart[:, 1]]] if len(apart) else apart
    if len(apart):
        affected = np.isin(group[one], group[apart[:, 0]])
        strength = np.unique(edges.iou[taken], return_inverse=True)[1]
        against = np.zeros(len(taken), bool)
        against[affected] = refuse_links(Links(one[affected], other[affected], strength[affected]), apart)
        refused[taken[against]] = FORBIDDEN
        group = _groups(len(ids), one[~against], other[~against])
    smallest = np.full(int(group.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, group, ids)
    objects = smallest[group]
    changed = objects != ids
    return Merging(refused, ids[changed], objects[changed])


def relabelled(ids: NDArray[Any], base: Ids, objects: Ids) -> Ids:
    """`ids` of any shape, those among the ascending `base` replaced by their `objects`."""
    new: Ids = ids.astype(np.uint64)
    if len(base):
        place = np.minimum(np.searchsorted(base, new), len(base) - 1)
        new = np.where(base[place] == new, objects[place], new)
    return new


def _groups(nodes: int, one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    graph = coo_array((np.ones(len(one), np.uint8), (one, other)), shape=(nodes, nodes))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def _places(ids: Ids, pairs: Ids) -> NDArray[np.int64]:
    """The pairs [n, 2] whose ids are both among the ascending `ids`, as places there."""
    known = np.isin(pairs, ids).all(axis=1)
    return np.searchsorted(ids, pairs[known]).astype(np.int64)


def _among(a: Ids, b: Ids, pairs: Ids) -> Flags:
    """Whether each pair (a, b), in either order, is one of `pairs` [n, 2]."""
    if not len(pairs):
        return np.zeros(len(a), bool)
    listed = {(min(pair), max(pair)) for pair in pairs.tolist()}
    return np.array([pair in listed for pair in zip(a.tolist(), b.tolist(), strict=True)], bool)
