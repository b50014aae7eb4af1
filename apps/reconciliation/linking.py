"""Which objects of two overlapping subvolumes are the same: the rule, applied to columns of pairs.

Source: the reconciliation step of flood-filling networks (M. Januszewski et al., Nature Methods 15, 2018) and its use
at Argonne: objects are linked where their overlap is large and mutual.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.parameters import Parameters
from apps.reconciliation.observations import Pairs

Reasons = NDArray[np.int8]

# Why a pair is not linked: the index into this, 0 for a linked one.  The first that applies is given.
REASONS: Final = ("", "few voxels", "small fraction", "not the largest", "cut", "forbidden")
LINKED, FEW_VOXELS, SMALL_FRACTION, NOT_LARGEST, CUT, FORBIDDEN = range(len(REASONS))


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


def apply_rule(pairs: Pairs, face: NDArray[np.int64], rule: LinkRule) -> Reasons:
    """For each pair [n] why it is not linked; LINKED where the rule holds.

    face: int64 [n], ascending, which face a pair is of.  Of equally large overlaps the first counts as the largest.
    """
    shared = pairs.shared
    reasons = np.where(shared >= rule.min_overlap_voxels, np.int8(LINKED), np.int8(FEW_VOXELS))
    # A pair with too few voxels may be left out of the comparison: were it a largest, all others had fewer still.
    large = np.flatnonzero(reasons == LINKED)
    if rule.mutual_maximum and len(large):
        keys = face[large] << 32
        own, count = keys | pairs.a[large], shared[large]
        mutual = _is_largest(own, count, np.arange(len(large)))
        other = keys | pairs.b[large]
        mutual &= _is_largest(other, count, np.argsort(other, kind="stable"))
        reasons[large[~mutual]] = NOT_LARGEST
    larger = np.maximum(pairs.voxels_a[large], pairs.voxels_b[large])
    reasons[large[shared[large] < rule.min_overlap_fraction * larger]] = SMALL_FRACTION
    return reasons


def _is_largest(keys: NDArray[np.int64], shared: NDArray[Any], order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a pair shares the most voxels among those of its key; of equal ones the first.

    order: sorts the keys, and keeps the order of equal ones.
    """
    keys, shared = keys[order], shared[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(first, append=len(keys))
    place = np.where(shared == np.repeat(np.maximum.reduceat(shared, first), sizes), np.arange(len(keys)), len(keys))
    largest = np.zeros(len(keys), bool)
    largest[order[np.minimum.reduceat(place, first)]] = True
    return largest
