"""What two subvolumes say about the voxels that both have seen.

Source of the quantities: the reconciliation of flood-filling networks (M. Januszewski et al., Nature Methods 15, 2018),
which links objects by their common voxels; variation of information as M. Meila (COLT 2003) defines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.evaluation.contingency import LabelPairs, Labels, count_pairs, totals
from apps.reconciliation.observations import Faces, Objects, Pairs


@dataclass(frozen=True)
class Face:
    """One face: its number of voxels, those filled by both and by one, VI in bits, and the pairs of its objects."""

    voxels: int
    both: int
    one: int
    vi: float
    pairs: Pairs


def list_objects(labels: Labels, written: Labels) -> Objects:
    """The objects of a subvolume.  labels: of its read box, zyx; written: those of its write box."""
    ids, voxels = fastremap.unique(labels, return_counts=True)
    own_ids, own = fastremap.unique(written, return_counts=True)
    count = np.zeros(len(ids), np.uint32)
    count[np.searchsorted(ids, own_ids)] = own
    objects = ids != 0
    return Objects(ids[objects].astype(np.uint32), voxels[objects].astype(np.uint32), count[objects])


def compare_face(first: Labels, second: Labels) -> Face:
    """Compare two label arrays of equal shape (zyx), the same box as two subvolumes see it; 0 is no object."""
    cells = count_pairs(first, second)
    voxels_a, voxels_b = totals(cells.first, cells.voxels), totals(cells.second, cells.voxels)
    filled_a, filled_b = cells.first != 0, cells.second != 0
    kept = filled_a & filled_b
    co_labelled = LabelPairs(cells.first[kept], cells.second[kept], cells.voxels[kept])
    columns = (co_labelled.first, co_labelled.second, co_labelled.voxels, voxels_a[kept], voxels_b[kept])
    return Face(
        voxels=first.size,
        both=int(co_labelled.voxels.sum()),
        one=int(cells.voxels[filled_a != filled_b].sum()),
        vi=variation_of_information(co_labelled),
        pairs=Pairs(*(column.astype(np.uint32) for column in columns)),
    )


def variation_of_information(pairs: LabelPairs) -> float:
    """H(first | second) + H(second | first) in bits, over the voxels that the pairs count; 0 for none."""
    total = int(pairs.voxels.sum())
    if not total:
        return 0.0
    joint = pairs.voxels / total
    given_first = totals(pairs.first, pairs.voxels) / total
    given_second = totals(pairs.second, pairs.voxels) / total
    return max(0.0, -float(np.sum(joint * (2 * np.log2(joint) - np.log2(given_first) - np.log2(given_second)))))


def join_faces(neighbours: Sequence[int], faces: Sequence[Face]) -> tuple[Faces, Pairs]:
    """The columns of all faces of a subvolume, in the order of its neighbours."""
    table = Faces(
        neighbour=np.array(neighbours, np.int64),
        voxels=np.array([face.voxels for face in faces], np.int64),
        both=np.array([face.both for face in faces], np.int64),
        one=np.array([face.one for face in faces], np.int64),
        vi=np.array([face.vi for face in faces], np.float64),
        pairs=np.array([len(face.pairs.a) for face in faces], np.int64),
    )
    return table, join_pairs([face.pairs for face in faces])


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """The rows of all parts, one after the other."""

    def column(name: str) -> NDArray[np.uint32]:
        arrays = [np.empty(0, np.uint32), *(getattr(part, name) for part in parts)]
        return np.concatenate(arrays)

    return Pairs(column("a"), column("b"), column("shared"), column("voxels_a"), column("voxels_b"))
