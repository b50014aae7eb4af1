"""The wiring that was found against the true one: directed edges between neurons, by presence and by synapses.

Segments are told as neurons of the truth by their overlap in the box: a segment is the neuron that it shares most of
its labelled voxels with (of equal ones the smallest label).  A segment that covers no labelled voxel is none, and
stays a node of its own, so that its edges are false.  Two ways to read a neuron that is in several segments:

* by_overlap: all of them are that neuron, as if someone had put them together.  What is wrong then is due to mergers,
  and to synapses that are missed, invented or given to a wrong partner; splits cost nothing.
* one_to_one: only the segment with most of the neuron's voxels is it (of equal ones the smallest id), as when the
  segmentation is used as it is; the others are nodes of their own.

An edge is an ordered pair of nodes with a synapse.  By presence, an edge is matched where the truth has it; by synapses
(the weights), with so many as both have: the sum over edges of the smaller weight, of the sum of the weights found
(precision) and of the true ones (recall).  Synapses with a partner that is not known are no edge, and neither are those
of a node onto itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.parameters import Result
from apps.evaluation.contingency import Labels, count_pairs
from apps.evaluation.synapses import Agreement

Partners = NDArray[np.uint64]
_Nodes = NDArray[np.int64]


class EdgeScores(Result, frozen=True, kw_only=True):
    """One way to compare two wiring graphs."""

    presence: Annotated[Agreement, Meta(description="of edges, each counting once")]
    weight: Annotated[Agreement, Meta(description="of edges by their synapses, matched being what both have")]


class WiringScores(Result, frozen=True, kw_only=True):
    """How well the found graph agrees with the true one; the module's docstring says what each word means."""

    by_overlap: Annotated[EdgeScores, Meta(description="every segment is the neuron that it overlaps most")]
    one_to_one: Annotated[EdgeScores, Meta(description="of every neuron only the segment with most of it")]
    segments: Annotated[int, Meta(description="segments with a synapse whose partners are known")]
    segments_of_no_neuron: Annotated[int, Meta(description="of them, those that cover no labelled voxel")]


@dataclass(frozen=True)
class SegmentMatch:
    """Segments by the neuron that they overlap most.

    Attributes:
        segments: uint64 [n], ascending; those that share a voxel with a neuron.
        neurons: uint64 [n], labels of the truth.
        main: bool [n], whether it is the segment with most of its neuron.
    """

    segments: NDArray[np.uint64]
    neurons: NDArray[np.uint64]
    main: NDArray[np.bool_]


def match_segments(truth: Labels, segmentation: Labels) -> SegmentMatch:
    """Match the segments of an array with the truth's labels, both integers of equal shape (zyx); 0 is none in either.

    Raises DataError where the shapes differ.
    """
    if truth.shape != segmentation.shape:
        raise DataError(f"segmentation of shape {segmentation.shape}: expected the truth's shape {truth.shape}")
    both = (truth != 0) & (segmentation != 0)
    pairs = count_pairs(truth[both], segmentation[both])
    neurons, segments = pairs.first.astype(np.uint64), pairs.second.astype(np.uint64)
    best = _largest(segments, pairs.voxels, neurons)
    neurons, segments, voxels = neurons[best], segments[best], pairs.voxels[best]
    main = np.zeros(len(segments), bool)
    main[_largest(neurons, voxels, segments)] = True
    return SegmentMatch(segments, neurons, main)


def score_edges(found: Partners, truth: Partners, match: SegmentMatch) -> WiringScores:
    """Score a graph.

    Args:
        found: uint64 [n, 2], the segments before and after every cleft that was found; 0 where not known.
        truth: uint64 [m, 2], the neurons (labels of the truth) before and after every true one.
        match: of the segments, from `match_segments`.
    """
    found, truth = found[found.all(axis=1)], truth[truth.all(axis=1)]
    segments, place = np.unique(found, return_inverse=True)
    row = np.searchsorted(match.segments, segments)
    row[row == len(match.segments)] = 0
    known = match.segments[row] == segments if len(match.segments) else np.zeros(len(segments), bool)
    labels = np.unique(np.concatenate([truth.ravel(), match.neurons]))
    true_edges = np.searchsorted(labels, truth)

    def scores(named: NDArray[np.bool_]) -> EdgeScores:
        # Numbers from len(labels) on are segments that are no neuron.
        node = len(labels) + np.arange(len(segments))
        node[named] = np.searchsorted(labels, match.neurons[row[named]])
        return _compare(node[place.reshape(found.shape)], true_edges)

    main = known & match.main[row] if len(match.segments) else known
    return WiringScores(
        by_overlap=scores(known),
        one_to_one=scores(main),
        segments=len(segments),
        segments_of_no_neuron=int((~known).sum()),
    )


def _largest(group: NDArray[np.uint64], size: NDArray[np.int64], name: NDArray[np.uint64]) -> NDArray[np.intp]:
    """The rows with the largest size of every group, of equal ones that of the smallest name, by ascending group."""
    order = np.lexsort((name, -size, group))
    first = np.ones(len(order), bool)
    first[1:] = group[order][1:] != group[order][:-1]
    rows: NDArray[np.intp] = order[first]
    return rows


def _compare(found: _Nodes, truth: _Nodes) -> EdgeScores:
    """Two graphs, as the nodes [n, 2] before and after every synapse."""
    ours, theirs = (_weights(edges[edges[:, 0] != edges[:, 1]]) for edges in (found, truth))
    common = ours.keys() & theirs.keys()
    return EdgeScores(
        presence=Agreement.of(len(common), len(ours), len(theirs)),
        weight=Agreement.of(
            sum(min(ours[edge], theirs[edge]) for edge in common), sum(ours.values()), sum(theirs.values())
        ),
    )


def _weights(edges: _Nodes) -> dict[tuple[int, int], int]:
    """How many synapses every ordered pair of nodes has."""
    pairs, synapses = np.unique(edges, axis=0, return_counts=True)
    return {(a, b): count for (a, b), count in zip(pairs.tolist(), synapses.tolist(), strict=True)}
