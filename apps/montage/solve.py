"""From pairwise offsets to tile positions: weighted least squares that finds out which offsets are wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import spsolve

_ROUNDS = 12
_TO_STAGE = 1e-7  # weight, of a pair's, that ties a tile to its stage position: it only makes the system regular

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Positions of a section's tiles.

    Attributes:
        positions: float64 [n, 2], (y, x), in stage coordinates; the mean over every group of tiles that pairs hold
            together is that of its stage positions.
        residuals: float64 [pairs], distance of the solved from the measured offset, pixels.
        used: bool [pairs].
        connected: bool [n], whether a tile belongs to the largest group.
    """

    positions: Points
    residuals: Points
    used: NDArray[np.bool_]
    connected: NDArray[np.bool_]


def solve(
    stage: Points, pairs: NDArray[np.intp], offsets: Points, spreads: NDArray[np.float64], max_residual: float
) -> Solution:
    """Tile positions that fit the measured offsets.

    Args:
        stage: float64 [n, 2], where the stage put the tiles, (y, x).
        pairs: [m, 2] indices of tiles a and b.
        offsets: float64 [m, 2], position of b less that of a.
        spreads: float64 [m], expected standard error of each, pixels.
        max_residual: a pair that is farther from the others than this is rejected, pixels.

    Where plain least squares leaves a pair beyond that, iteratively reweighted least squares with the Geman-McClure
    weight, from two starts: the least sum of distances (Weiszfeld's weights), which few gross errors do not move; and
    the tree of the pairs with the smallest spreads that are the nearest to the stage's offsets.  The one that keeps
    more pairs in the end, by weight, is taken.
    """
    n, m = len(stage), len(pairs)
    if not m:
        return Solution(stage.copy(), np.zeros(0), np.zeros(0, bool), np.arange(n) == 0)
    system = _System(stage, pairs, offsets, 1.0 / np.maximum(spreads, 1e-3) ** 2)
    positions, used = system.least_squares(np.ones(m)), np.ones(m, bool)
    if (system.residuals(positions) > max_residual).any():
        starts = _least_distances(system, positions, max_residual), _along_tree(stage, pairs, offsets, spreads)
        found = [_descend(system, start, max_residual) for start in starts]
        positions, used = max(found, key=lambda answer: system.kept(answer[1]))
    groups = _groups(n, pairs[used])
    positions = _anchor(positions, stage, groups)
    largest = int(np.argmax(np.bincount(groups)))
    return Solution(positions, system.residuals(positions), used, groups == largest)


@dataclass(frozen=True)
class _System:
    """sum of w |p_b - p_a - offset|^2, whose minimum is that of a weighted graph Laplacian."""

    stage: Points
    pairs: NDArray[np.intp]
    offsets: Points
    weights: NDArray[np.float64]

    def residuals(self, positions: Points) -> Points:
        a, b = self.pairs.T
        found: Points = np.linalg.norm(positions[b] - positions[a] - self.offsets, axis=1)
        return found

    def least_squares(self, factors: NDArray[np.float64]) -> Points:
        """Its minimum with the weights times `factors` [m]."""
        n, m = len(self.stage), len(self.pairs)
        entries = np.tile([-1.0, 1.0], m), (np.repeat(np.arange(m), 2), self.pairs.ravel())
        incidence = sparse.csr_matrix(entries, shape=(m, n))
        weighted = incidence.T @ sparse.diags(self.weights * factors / self.weights.max())
        matrix = (weighted @ incidence + _TO_STAGE * sparse.identity(n)).tocsc()
        # Relative to the stage, so that what ties to it pulls towards no other place.
        away = self.offsets - incidence @ self.stage
        moved = np.stack([spsolve(matrix, weighted @ away[:, axis]) for axis in (0, 1)], axis=1)
        solved: Points = self.stage + moved
        return solved

    def kept(self, used: NDArray[np.bool_]) -> float:
        """What the used pairs weigh: in logarithms, so that three fair ones count more than an excellent one."""
        return float(np.log1p(self.weights / self.weights.min())[used].sum())


def _least_distances(system: _System, positions: Points, max_residual: float) -> Points:
    for _ in range(2 * _ROUNDS):
        # Weighted by 1 / spread: the solver's weights are the squares of that.
        factors = 1.0 / np.maximum(system.residuals(positions), 0.1 * max_residual) / np.sqrt(system.weights)
        positions = system.least_squares(factors / factors.max())
    return positions


def _descend(system: _System, positions: Points, max_residual: float) -> tuple[Points, NDArray[np.bool_]]:
    """Positions, and which pairs [m] are used: none of them is beyond `max_residual`."""
    for _ in range(_ROUNDS):
        residuals = system.residuals(positions)
        positions = system.least_squares((max_residual**2 / (max_residual**2 + residuals**2)) ** 2)
    used = np.ones(len(system.pairs), bool)
    for _ in range(_ROUNDS):
        before, used = used, system.residuals(positions) <= max_residual
        positions = system.least_squares(used.astype(float))
        if (used == before).all():
            break
    while (system.residuals(positions)[used] > max_residual).any():  # where the rounds went to and fro
        used[np.flatnonzero(used)[int(np.argmax(system.residuals(positions)[used]))]] = False
        positions = system.least_squares(used.astype(float))
    return positions, used


def _along_tree(stage: Points, pairs: NDArray[np.intp], offsets: Points, spreads: NDArray[np.float64]) -> Points:
    """Positions by adding up offsets along the minimum spanning tree of every group."""
    n = len(stage)
    a, b = pairs.T
    from_stage = np.linalg.norm(stage[b] - stage[a] - offsets, axis=1)
    cost = spreads * (1.0 + from_stage / max(1.0, float(np.median(from_stage)))) + 1e-6
    costs = sparse.coo_matrix((cost, (pairs[:, 0], pairs[:, 1])), shape=(n, n)).tocsr()
    tree = csgraph.minimum_spanning_tree(costs)
    step = {(int(a), int(b)): offset for (a, b), offset in zip(pairs, offsets, strict=True)}
    groups = _groups(n, pairs)
    positions = stage.copy()
    for root in (int(np.flatnonzero(groups == group)[0]) for group in range(groups.max() + 1)):
        order, before = csgraph.breadth_first_order(tree, root, directed=False)
        for tile in order[1:]:
            a, b = int(before[tile]), int(tile)
            positions[b] = positions[a] + (step[a, b] if (a, b) in step else -step[b, a])
    return _anchor(positions, stage, groups)


def _groups(n: int, pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number of the group that each tile belongs to, counted from the first tile on."""
    graph = sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    labels: NDArray[np.intp] = csgraph.connected_components(graph, directed=False)[1].astype(np.intp)
    return labels


def _anchor(positions: Points, stage: Points, groups: NDArray[np.intp]) -> Points:
    counts = np.bincount(groups)
    shifts = [np.bincount(groups, stage[:, axis] - positions[:, axis]) / counts for axis in (0, 1)]
    anchored: Points = positions + np.stack(shifts, axis=1)[groups]
    return anchored
