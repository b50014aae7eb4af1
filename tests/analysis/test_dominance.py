"""Ranks, crowding and hypervolume, against definitions that are slow but plain."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.dominance import Points, best_first, crowding, front, hypervolume, ranks
from analysis.errors import AnalysisError


def plain_ranks(points: Points) -> list[int]:
    """By the definition: peel off what nothing that is left dominates."""
    rank, left, level = [-1] * len(points), set(range(len(points))), 0
    while left:
        here = {
            i for i in left if not any((points[j] >= points[i]).all() and (points[j] > points[i]).any() for j in left)
        }
        for i in here:
            rank[i] = level
        left, level = left - here, level + 1
    return rank


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [3, 1000])
def test_ranks_are_those_of_the_definition(objectives: int, grid: int) -> None:
    for seed in range(3):
        points = np.random.default_rng(seed).integers(0, grid, (40, objectives)).astype(np.float64)
        assert ranks(points).tolist() == plain_ranks(points)
        assert front(points).tolist() == [rank == 0 for rank in plain_ranks(points)]


def test_nothing_has_no_ranks() -> None:
    for objectives in (1, 2, 3):
        empty = np.empty((0, objectives))
        assert len(ranks(empty)) == len(front(empty)) == len(crowding(empty, ranks(empty))) == 0
        assert len(best_first(empty, np.empty(0, np.int64))) == 0


def test_crowding_by_hand() -> None:
    points = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0], [0.0, 0.0]])
    rank = ranks(points)
    assert rank.tolist() == [0, 0, 0, 0, 1]
    # In units of the range 4: the second has neighbours 3 apart in both objectives, as has the third.
    assert crowding(points, rank).tolist() == [np.inf, 1.5, 1.5, np.inf, np.inf]
    assert best_first(points, np.arange(5)[::-1]).tolist() == [3, 0, 2, 1, 4], "of equals the smaller tie first"


def test_hypervolume_by_hand() -> None:
    two = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [1.0, 1.0], [9.0, -1.0]])
    assert hypervolume(two, np.zeros(2)) == 6.0
    assert hypervolume(two, np.array([1.0, 1.0])) == 1.0
    three = np.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert hypervolume(three, np.zeros(3)) == pytest.approx(4.0)  # three boxes of 2, which share one of 1
    assert hypervolume(np.array([[2.0], [5.0]]), np.ones(1)) == 4.0
    assert hypervolume(two[:0], np.zeros(2)) == 0.0
    with pytest.raises(AnalysisError, match="reference of 3 objectives: expected 2"):
        hypervolume(two, np.zeros(3))


def test_hypervolume_is_what_sampling_gives() -> None:
    rng = np.random.default_rng(0)
    for objectives in (2, 3, 4):
        points = rng.random((12, objectives))
        samples = rng.random((10_000, objectives))
        covered = np.mean([(points >= sample).all(axis=1).any() for sample in samples])
        assert hypervolume(points, np.zeros(objectives)) == pytest.approx(covered, abs=0.02)
