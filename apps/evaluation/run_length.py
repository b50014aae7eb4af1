"""Expected run length: how far one can follow a neurite through a segmentation before it errs.

Every edge of the truth's skeletons is, by the segments that its two nodes lie in,

* omitted, where one of them is 0 (no object),
* split, where they differ,
* merged, where they are one segment that two or more skeletons share,
* correct otherwise.

For a point that is chosen uniformly on the skeletons, the run length is what the point's segment holds correctly of the
point's skeleton, and 0 on an edge that is not correct.  The expected run length is its mean: for skeletons of lengths L
and the lengths c that they have correctly in one segment each, the sum over skeletons of (L / sum of all L) times
(sum of c^2) / L, which is the sum of all c^2 over the sum of all L.  Normalised, it is divided by that of the truth
itself, the sum of all L^2 over the sum of all L, so that 1 is perfect.

Source: M. Januszewski et al., High-precision automated reconstruction of neurons with flood-filling networks, Nature
Methods 15 (2018).  Two conventions are in use for mergers.  As in funlib.evaluate, the edges in a segment that merges
score 0, and the same skeleton's edges in other segments count: `erl_nm`.  em_erl gives 0 to all of a skeleton of which
a part is in such a segment: `strict_erl_nm`; the two agree where no skeleton that has merged is in several segments.
From em_erl is the tolerance: a segment merges only those skeletons that have a least number of nodes in it.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.parameters import Result
from apps.core.volumes import VoxelSize
from apps.evaluation.skeletons import Skeletons


class RunLength(Result, frozen=True, kw_only=True):
    """How far the truth's skeletons can be followed through the segmentation."""

    erl_nm: Annotated[float, Meta(description="expected run length, nanometres")]
    nerl: Annotated[float, Meta(description="the same as a share of truth_erl_nm; 1 is perfect")]
    strict_erl_nm: Annotated[
        float, Meta(description="erl_nm if all of a skeleton scores 0 of which a node is in a segment that merges")
    ]
    strict_nerl: Annotated[float, Meta(description="the same as a share of truth_erl_nm")]
    truth_erl_nm: Annotated[float, Meta(description="expected run length of a perfect segmentation, nanometres")]
    length_nm: Annotated[float, Meta(description="of all skeletons, nanometres")]
    skeletons: Annotated[int, Meta(description="skeletons with a length")]
    correct_fraction: Annotated[float, Meta(description="share of the length on correct edges")]
    split_fraction: Annotated[float, Meta(description="share of the length on edges from one segment into another")]
    merged_fraction: Annotated[float, Meta(description="share of the length in segments that merge skeletons")]
    omitted_fraction: Annotated[float, Meta(description="share of the length on edges with an end in no segment")]
    split_edges: Annotated[int, Meta(description="edges from one segment into another")]
    merging_segments: Annotated[int, Meta(description="segments that hold two skeletons or more")]
    merged_skeletons: Annotated[int, Meta(description="skeletons that share a segment with another")]


def score_run_length(
    skeletons: Skeletons, segment: NDArray[Any], voxel_size_nm: VoxelSize, merge_nodes: int = 1
) -> RunLength:
    """Score skeletons by the segment, [n] integers, that each of their nodes lies in; 0 is no segment.

    A skeleton takes part in a merger where `merge_nodes` of its nodes or more are in the segment; a node counts whether
    or not it has an edge.

    Raises DataError where the edges have no length: there is nothing to follow.
    """
    a, b = skeletons.edges.T
    place = skeletons.nodes * np.array(voxel_size_nm)
    length = np.sqrt(((place[a] - place[b]) ** 2).sum(axis=1))
    total = float(length.sum())
    if not total > 0:
        raise DataError("skeletons: their edges have no length; expected centre lines of objects")
    _, skeleton = np.unique(skeletons.label, return_inverse=True)
    _, number = np.unique(segment, return_inverse=True)
    shared = _shared(skeleton, number, merge_nodes)
    merging = np.bincount(shared[:, 1], minlength=int(number.max()) + 1) > 1
    merging[number[segment == 0]] = False

    omitted = (segment[a] == 0) | (segment[b] == 0)
    split = ~omitted & (segment[a] != segment[b])
    merged = ~omitted & ~split & merging[number[a]]
    correct = ~(omitted | split | merged)
    of_skeleton = _sums(skeleton[a], length)
    pair = skeleton[a] * (int(number.max()) + 1) + number[a]
    tainted = np.zeros(int(skeleton.max()) + 1, bool)
    tainted[skeleton[merging[number]]] = True
    strict = correct & ~tainted[skeleton[a]]
    found, spotless = (float((_sums(pair[edges], length[edges]) ** 2).sum()) / total for edges in (correct, strict))
    perfect = float((of_skeleton**2).sum()) / total

    def share(edges: NDArray[np.bool_]) -> float:
        return float(length[edges].sum()) / total

    return RunLength(
        erl_nm=found,
        nerl=found / perfect,
        strict_erl_nm=spotless,
        strict_nerl=spotless / perfect,
        truth_erl_nm=perfect,
        length_nm=total,
        skeletons=int(np.count_nonzero(of_skeleton)),
        correct_fraction=share(correct),
        split_fraction=share(split),
        merged_fraction=share(merged),
        omitted_fraction=share(omitted),
        split_edges=int(split.sum()),
        merging_segments=int(merging.sum()),
        merged_skeletons=len(np.unique(shared[merging[shared[:, 1]], 0])),
    )


def _shared(skeleton: NDArray[np.int64], number: NDArray[np.int64], merge_nodes: int) -> NDArray[np.int64]:
    """The pairs (skeleton, segment) [k, 2] that have so many nodes in common."""
    pairs, nodes = np.unique(np.stack([skeleton, number], axis=1), axis=0, return_counts=True)
    return pairs[nodes >= merge_nodes]


def _sums(group: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sum of the values of every group that there is."""
    _, number = np.unique(group, return_inverse=True)
    sums: NDArray[np.float64] = np.bincount(number, values).astype(np.float64, copy=False)
    return sums
