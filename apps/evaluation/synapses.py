"""Synapses that were found against those that are there: clefts, and directed pairs of partners.

A found and a true cleft can be the same where their middles are no more than a distance apart.  Each is matched with at
most one of the others: as many as can be, and of all such matchings the one with the least sum of distances (the
Hungarian method; Kuhn 1955).  Partners are matched in the same way, among those pairs whose pre and post are the same
objects of the truth (as Buhmann et al., Nature Methods 18, 2021, count partners): a cleft that is found with the wrong
partner, or the right two the wrong way round, counts as a cleft only.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from apps.core.errors import DataError
from apps.core.parameters import Result
from apps.core.volumes import VoxelSize
from apps.synapses.table import SynapseTable

Pairs = NDArray[np.int64]


class Agreement(Result, frozen=True, kw_only=True):
    """How many of the found are true, and of the true are found."""

    found: Annotated[int, Meta(ge=0, description="how many were found")]
    truth: Annotated[int, Meta(ge=0, description="how many there are")]
    matched: Annotated[int, Meta(ge=0, description="how many of either are the same")]
    precision: Annotated[float | None, Meta(description="matched of found; null where none was found")]
    recall: Annotated[float | None, Meta(description="matched of truth; null where there is none")]
    f1: Annotated[float | None, Meta(description="2 matched / (found + truth); null where both are none")]

    @classmethod
    def of(cls, matched: int, found: int, truth: int) -> Agreement:
        return cls(
            found=found,
            truth=truth,
            matched=matched,
            precision=matched / found if found else None,
            recall=matched / truth if truth else None,
            f1=2 * matched / (found + truth) if found + truth else None,
        )


class SynapseScores(Result, frozen=True, kw_only=True):
    """How well synapses were found."""

    distance_nm: Annotated[float, Meta(gt=0, description="largest distance of two middles that can be one synapse's")]
    clefts: Annotated[Agreement, Meta(description="whatever the partners")]
    partners: Annotated[
        Agreement, Meta(description="with the right pre and post; found: those with both partners known")
    ]
    direction: Annotated[
        float | None,
        Meta(
            description="of the synapses with the right two partners, share the right way round; null: there are none"
        ),
    ]
    offset_nm: Annotated[
        float | None, Meta(description="distance of the middles of matched clefts, mean; null: there are none")
    ]


def score_synapses(
    found: SynapseTable,
    truth: SynapseTable,
    distance_nm: float,
    voxel_size_nm: VoxelSize,
    found_partners: NDArray[np.uint64] | None = None,
) -> SynapseScores:
    """Score synapses that were found.

    Args:
        found, truth: places of both in voxels of one grid, zyx.
        distance_nm: how far apart two middles may be, to be one synapse's.
        voxel_size_nm: zyx.
        found_partners: uint64 [n, 2], pre and post of the found as the truth's objects, 0 for none; what
            `apps.synapses.table.sample_labels(labels, found.points)` gives; not looked at where found.partners is 0,
            not known.  None: found.partners are the truth's ids.

    Raises DataError where distance_nm is not positive, or found_partners are not of the found.
    """
    if not distance_nm > 0:
        raise DataError(f"distance_nm {distance_nm}: expected a positive number of nanometres")
    partners = found.partners if found_partners is None else found_partners
    if partners.shape != (len(found), 2):
        raise DataError(f"found_partners: have the shape {partners.shape}; expected {(len(found), 2)}")
    partners = np.where(found.partners == 0, np.uint64(0), partners)
    near, distances = _near(found.centre, truth.centre, distance_nm, voxel_size_nm)
    ours, theirs = partners[near[:, 0]], truth.partners[near[:, 1]]
    known = ours.all(axis=1)
    right = known & (ours == theirs).all(axis=1)
    # Someone's synapse onto itself is no direction the wrong way round.
    turned = known & (ours == theirs[:, ::-1]).all(axis=1) & ~right
    clefts = match(near, distances)
    either = match(near[right | turned], distances[right | turned])
    good = match(near[right], distances[right])
    return SynapseScores(
        distance_nm=distance_nm,
        clefts=Agreement.of(len(clefts), len(found), len(truth)),
        partners=Agreement.of(len(good), int(partners.all(axis=1).sum()), len(truth)),
        direction=len(good) / len(either) if len(either) else None,
        offset_nm=float(distances[clefts].mean()) if len(clefts) else None,
    )


def match(pairs: Pairs, distances: NDArray[np.float64]) -> Pairs:
    """Which of `pairs` [n, 2] (one number, another number) make the largest one-to-one matching of least distance.

    Returns their places in `pairs`, ascending.  Groups that nothing connects are solved one by one, so that cost grows
    with how crowded places are, and not with the number of synapses.
    """
    if not len(pairs):
        return np.zeros(0, np.int64)
    (ones, a), (others, b) = (np.unique(column, return_inverse=True) for column in pairs.T)
    total = len(ones) + len(others)
    graph = sparse.coo_matrix((np.ones(len(pairs), bool), (a, b + len(ones))), shape=(total, total))
    _, group = csgraph.connected_components(graph, directed=False)
    order = np.argsort(group[a], kind="stable")
    chosen = []
    for members in np.split(order, np.flatnonzero(np.diff(group[a][order])) + 1):
        rows, row = np.unique(a[members], return_inverse=True)
        columns, column = np.unique(b[members], return_inverse=True)
        # One more match is worth more than any distances that it costs.
        cost = np.full((len(rows), len(columns)), (1 + 2 * float(distances.max())) * (len(members) + 1))
        place = np.full(cost.shape, -1, np.int64)
        cost[row, column], place[row, column] = distances[members], members
        kept = place[linear_sum_assignment(cost)]
        chosen.append(kept[kept >= 0])
    return np.sort(np.concatenate(chosen))


def _near(
    found: NDArray[Any], truth: NDArray[Any], distance_nm: float, voxel_size_nm: VoxelSize
) -> tuple[Pairs, NDArray[np.float64]]:
    """(pairs [n, 2] of found and truth that are near enough, their distances in nm), sorted."""
    if not len(found) or not len(truth):
        return np.zeros((0, 2), np.int64), np.zeros(0)
    size = np.array(voxel_size_nm)
    ours, theirs = found * size, truth * size
    lists = cKDTree(theirs).query_ball_point(ours, distance_nm, return_sorted=True)
    pairs = np.array([(a, b) for a, row in enumerate(lists) for b in row], np.int64).reshape(-1, 2)
    distances: NDArray[np.float64] = np.linalg.norm(ours[pairs[:, 0]] - theirs[pairs[:, 1]], axis=1)
    return pairs, distances
