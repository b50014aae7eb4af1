"""Scores of synapses: cases counted by hand, and matchings against a search of all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.evaluation.synapses import Agreement, match, score_synapses
from tests.apps.synapses.samples import table

NM = (10.0, 10.0, 10.0)


def test_clefts_and_partners_counted_by_hand() -> None:
    truth = table(
        [(0, 0, 0), (0, 0, 50), (0, 50, 0), (50, 0, 0), (50, 50, 50)], [(1, 2), (3, 4), (5, 6), (7, 8), (9, 1)]
    )
    found = table(
        [(0, 0, 3), (0, 4, 50), (0, 50, 0), (50, 0, 0), (90, 90, 90), (50, 50, 80)],
        [(1, 2), (4, 3), (5, 7), (7, 0), (1, 2), (9, 1)],
    )
    scores = score_synapses(found, truth, 100, NM)
    assert scores.clefts == Agreement(found=6, truth=5, matched=4, precision=4 / 6, recall=4 / 5, f1=8 / 11)
    # One right, one the wrong way round, one wrong, one half known; the last two are no true cleft's.
    assert scores.partners == Agreement(found=5, truth=5, matched=1, precision=1 / 5, recall=1 / 5, f1=1 / 5)
    assert scores.direction == pytest.approx(0.5)
    assert scores.offset_nm == pytest.approx((30 + 40 + 0 + 0) / 4)


def test_distance_is_in_nanometres_along_each_axis() -> None:
    truth, found = table([(0, 0, 0), (20, 0, 0)]), table([(1, 0, 0), (20, 0, 2)])
    assert score_synapses(found, truth, 25, (40, 10, 10)).clefts.matched == 1
    assert score_synapses(found, truth, 40, (40, 10, 10)).clefts.matched == 2


def test_one_found_is_no_two_true_ones_nor_the_other_way_round() -> None:
    middle, both = table([(0, 0, 2)]), table([(0, 0, 0), (0, 0, 4)])
    assert score_synapses(middle, both, 100, NM).clefts.matched == 1
    assert score_synapses(both, middle, 100, NM).clefts.matched == 1


def test_partners_are_matched_among_themselves() -> None:
    """The nearest true cleft is another's: the right partners, a little farther, still count."""
    truth = table([(0, 0, 0), (0, 0, 6)], [(1, 2), (3, 4)])
    found = table([(0, 0, 1)], [(3, 4)])
    scores = score_synapses(found, truth, 100, NM)
    assert (scores.clefts.matched, scores.partners.matched) == (1, 1)


def test_partners_by_the_labels_of_the_truth() -> None:
    truth, found = table([(0, 0, 0)], [(1, 2)]), table([(0, 0, 0)], [(77, 78)])
    assert score_synapses(found, truth, 100, NM).partners.matched == 0
    assert score_synapses(found, truth, 100, NM, np.array([[1, 2]], np.uint64)).partners.matched == 1
    assert score_synapses(found, truth, 100, NM, np.array([[2, 1]], np.uint64)).direction == 0
    unknown = table([(0, 0, 0)], [(77, 0)])
    assert score_synapses(unknown, truth, 100, NM, np.array([[1, 2]], np.uint64)).partners.found == 0


def test_none_found_or_none_there() -> None:
    nothing, one = table([]), table([(0, 0, 0)])
    missed, invented, neither = (
        score_synapses(a, b, 10, NM) for a, b in ((nothing, one), (one, nothing), 2 * [nothing])
    )
    assert (missed.clefts.precision, missed.clefts.recall, missed.clefts.f1) == (None, 0, 0)
    assert (invented.clefts.precision, invented.clefts.recall, invented.clefts.f1) == (0, None, 0)
    assert (neither.clefts.f1, neither.direction, neither.offset_nm) == (None, None, None)


def test_wrong_input_is_named() -> None:
    one = table([(0, 0, 0)])
    with pytest.raises(DataError, match="distance_nm 0"):
        score_synapses(one, one, 0, NM)
    with pytest.raises(DataError, match=r"expected \(1, 2\)"):
        score_synapses(one, one, 10, NM, np.zeros((2, 2), np.uint64))


@pytest.mark.parametrize("seed", range(8))
def test_matching_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((5, 2)), rng.random((4, 2))
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    pairs = np.argwhere(distance < 0.4)
    costs = distance[tuple(pairs.T)]
    chosen = match(pairs, costs)
    assert (np.diff(chosen) > 0).all()
    for column in pairs[chosen].T:
        assert len(np.unique(column)) == len(chosen)
    assert (len(chosen), -costs[chosen].sum()) == pytest.approx(_best(distance, 0.4))


def _best(distance: NDArray[np.float64], limit: float) -> tuple[int, float]:
    """(most matches, - least sum of distances), of all ways to give each column a row or none."""
    best = (0, 0.0)
    rows, columns = distance.shape
    for way in itertools.permutations([*range(rows), *([-1] * columns)], columns):
        taken = [(row, column) for column, row in enumerate(way) if row >= 0]
        if all(distance[at] < limit for at in taken):
            best = max(best, (len(taken), -sum(float(distance[at]) for at in taken)))
    return best
