"""Which of several objectives' values stand above which: non-domination ranks, crowding, hypervolume.

Every objective is maximised, as DeepHyper has it.  Numpy alone: the search's promotion rules order trials with this.
One point dominates another where it is at least as good in every objective and better in one.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from analysis.errors import AnalysisError

Points = NDArray[np.float64]  # [point, objective]


def best_first(points: Points, tie: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order [point] from the best to the worst.

    One objective: by its value.  Several: by non-domination rank, then from the least to the most crowded (Deb et al.
    2002, NSGA-II), so that a front is taken over its whole breadth.  Equals are ordered by `tie`, smaller first.
    """
    if points.shape[1] == 1:
        return np.lexsort((tie, -points[:, 0]))
    rank = ranks(points)
    return np.lexsort((tie, -crowding(points, rank), rank))


def front(points: Points) -> NDArray[np.bool_]:
    """Which points [point] no other dominates; of equal points all or none."""
    distinct, which = _distinct(points)
    found = np.zeros(len(distinct), bool)
    found[_peel(distinct)[0]] = True
    return found[which]


def ranks(points: Points) -> NDArray[np.int64]:
    """The non-domination rank of every point: 0 for the front, 1 for the front of what is left without it, and so on.

    Two objectives take n log n steps (Jensen 2003), more of them the peeling of one front after the other.
    """
    if points.shape[1] == 2:
        return _ranks_of_two(points)
    distinct, which = _distinct(points)
    rank = np.zeros(len(distinct), np.int64)
    left = np.arange(len(distinct))
    level = 0
    while len(left):
        here, below = _peel(distinct[left])
        rank[left[here]] = level
        left = left[below]
        level += 1
    return rank[which]


def _distinct(points: Points) -> tuple[Points, NDArray[np.int64]]:
    """The points without repetition, the largest sum first, and the place there of every point."""
    distinct, which = np.unique(points, axis=0, return_inverse=True)
    order = np.argsort(-distinct.sum(axis=1), kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return distinct[order], place[which.reshape(-1)]


def _peel(points: Points) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places on the front, and off it, of distinct points with the largest sum first.

    In that order what dominates a point comes before it, and the first few rounds remove most of what is off the front.
    """
    on: list[int] = []
    left, rest = np.arange(len(points)), points
    while len(left):
        on.append(int(left[0]))
        keep = np.flatnonzero((rest > rest[0]).any(axis=1))
        left, rest = left[keep], rest[keep]
    off = np.ones(len(points), bool)
    off[on] = False
    return np.array(on, np.int64), np.flatnonzero(off)


def _ranks_of_two(points: Points) -> NDArray[np.int64]:
    """From the largest first objective on, a point is of the first front whose second objective it exceeds."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    negative_tops: list[float] = []  # of each front the largest second objective so far, negated: grows with the rank
    rank = np.empty(len(points), np.int64)
    before, level = None, 0
    for index, point in zip(order.tolist(), points[order].tolist(), strict=True):
        if point != before:
            level = bisect_right(negative_tops, -point[1])
            negative_tops[level : level + 1] = [-point[1]]
            before = point
        rank[index] = level
    return rank


def crowding(points: Points, rank: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far apart each point's neighbours on its own front are, summed over the objectives in units of their range.

    Infinite at the ends of a front.
    """
    distance = np.zeros(len(points))
    for values in points.T:
        spread = float(np.ptp(values)) if len(values) else 0.0
        order = np.lexsort((values, rank))
        level, sorted_values = rank[order], values[order]
        first = np.ones(len(order), bool)
        first[1:] = level[1:] != level[:-1]
        last = np.append(first[1:], True)
        gap = np.zeros(len(order))
        gap[1:-1] = (sorted_values[2:] - sorted_values[:-2]) / (spread or 1.0)
        gap[first | last] = np.inf
        distance[order] += gap
    return distance


def hypervolume(points: Points, reference: NDArray[np.float64]) -> float:
    """Measure of what the points dominate above the reference point (Zitzler & Thiele 1999).

    points [point, objective], reference [objective]; points that do not exceed the reference in every objective add
    nothing.  Exact, by slices along the last objective: meant for fronts of up to some hundred points.
    Raises AnalysisError where the reference has another number of objectives.
    """
    if points.ndim != 2 or points.shape[1] != len(reference):
        raise AnalysisError(
            f"reference of {len(reference)} objectives: expected {points.shape[-1]}, as many as the points have"
        )
    above = points[(points > reference).all(axis=1)] - reference
    return _volume(above[front(above)]) if len(above) else 0.0


def _volume(points: Points) -> float:
    """Hypervolume above the origin of mutually non-dominated points."""
    if points.shape[1] == 1:
        return float(points.max())
    order = np.argsort(-points[:, -1], kind="stable")
    points = points[order]
    if points.shape[1] == 2:
        widths = np.maximum.accumulate(points[:, 0])
        heights = points[:, 1] - np.append(points[1:, 1], 0.0)
        return float((widths * heights).sum())
    heights = points[:, -1] - np.append(points[1:, -1], 0.0)
    volume = 0.0
    for count, height in enumerate(heights.tolist(), start=1):
        if height > 0:
            base = points[:count, :-1]
            volume += height * _volume(base[front(base)])
    return volume
