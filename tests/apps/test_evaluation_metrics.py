"""Metrics of accuracy, against hand computation and against scikit-image."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information

from apps.core.errors import DataError
from apps.evaluation.contingency import count_pairs, totals
from apps.evaluation.metrics import score


def test_perfect_whatever_the_ids() -> None:
    truth = np.array([[[1, 1, 2, 2, 0]]], np.uint32)
    found = np.array([[[7, 7, 2**60, 2**60, 5]]], np.uint64)
    scores = score(truth, found)
    assert (scores.vi, scores.adapted_rand_error, scores.filled_fraction) == (0, 0, 1)
    assert (scores.rand_precision, scores.rand_recall) == (1, 1)
    assert scores.objects == 3, "an object where the truth is 0 still is one"


def test_a_split_by_hand() -> None:
    # One object of four voxels in two halves: one bit of split; 4 * 3 ordered pairs of which 2 * 2 * 1 are found.
    scores = score(np.array([[[1, 1, 1, 1]]]), np.array([[[1, 1, 2, 2]]]))
    assert (scores.vi_split, scores.vi_merge) == (1, 0)
    assert scores.rand_precision == 1
    assert scores.rand_recall == pytest.approx(4 / 12)
    assert scores.adapted_rand_error == pytest.approx(1 - 2 * 4 / (12 + 4))


def test_a_merger_by_hand() -> None:
    scores = score(np.array([[[1, 1, 2, 2]]]), np.array([[[1, 1, 1, 1]]]))
    assert (scores.vi_split, scores.vi_merge) == (0, 1)
    assert (scores.rand_precision, scores.rand_recall) == (pytest.approx(4 / 12), 1)


def test_predicted_zero_is_one_segment() -> None:
    truth = np.array([[[1, 1, 2, 2, 3, 3, 4, 4]]])
    nothing, everything = score(truth, np.zeros_like(truth)), score(truth, np.full_like(truth, 9))
    assert nothing.vi == everything.vi == nothing.vi_merge == 2
    assert nothing.adapted_rand_error == everything.adapted_rand_error
    assert (nothing.filled_fraction, nothing.objects) == (0, 0)
    assert (everything.filled_fraction, everything.objects) == (1, 1)


def test_truth_zero_takes_no_part() -> None:
    truth = np.array([[[1, 1, 0, 0]]])
    assert score(truth, np.array([[[1, 1, 1, 2]]])).vi == 0


def test_no_pair_to_judge() -> None:
    truth = np.array([[[1, 2, 3]]])
    scores = score(truth, truth)
    assert (scores.adapted_rand_error, scores.rand_precision, scores.rand_recall) == (0, 1, 1)
    assert scores.to_dict(), "no NaN: it goes into JSON"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("objects", "dtype"), [(3, np.uint8), (40, np.int64), (3000, np.uint32)])
def test_equals_scikit_image(seed: int, objects: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    truth: NDArray[Any] = rng.integers(0, objects, (20, 21, 22)).astype(dtype)
    found: NDArray[Any] = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, objects, truth.shape)).astype(
        dtype
    )
    scores = score(truth, found)
    split, merge = variation_of_information(truth, found, ignore_labels=(0,))
    error, first, second = adapted_rand_error(truth, found)
    assert (scores.vi_split, scores.vi_merge) == (pytest.approx(split, abs=1e-9), pytest.approx(merge, abs=1e-9))
    assert scores.adapted_rand_error == pytest.approx(error, abs=1e-9)
    # The order that scikit-image returns is recall, precision in CREMI's terms.
    assert (scores.rand_recall, scores.rand_precision) == (
        pytest.approx(first, abs=1e-9),
        pytest.approx(second, abs=1e-9),
    )


def test_many_labels_take_the_sorting_path() -> None:
    truth = np.arange(1, 5001).reshape(1, 50, 100)
    scores = score(np.repeat(truth, 2, axis=0), np.concatenate([truth, truth + 5000]))
    assert scores.vi_split == pytest.approx(1)
    assert scores.vi_merge == 0


def test_a_million_voxels_are_quick() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 300, (100, 100, 10)), 10, axis=2)
    start = time.perf_counter()
    score(truth, np.roll(truth, 3, axis=2))
    assert time.perf_counter() - start < 2


def test_bad_arrays_are_named() -> None:
    labels = np.ones((2, 2, 2), np.uint8)
    with pytest.raises(DataError, match=r"segmentation of shape \(1, 2, 2\).*\(2, 2, 2\)"):
        score(labels, labels[:1])
    with pytest.raises(DataError, match="segmentation: has dtype float64"):
        score(labels, labels.astype(float))
    with pytest.raises(DataError, match="truth: is 0 everywhere"):
        score(labels * 0, labels)


def test_pairs_keep_labels_and_order() -> None:
    pairs = count_pairs(np.array([5, 5, -2, 0], np.int64), np.array([9, 0, 2**63, 9], np.uint64))
    assert pairs.first.tolist() == [-2, 0, 5, 5]
    assert pairs.second.tolist() == [2**63, 9, 0, 9]
    assert pairs.voxels.tolist() == [1, 1, 1, 1]
    assert totals(pairs.first, pairs.voxels).tolist() == [1, 1, 2, 2]


def test_bits_are_base_two() -> None:
    truth = np.repeat(np.arange(1, 9), 4).reshape(1, 4, 8)
    assert score(truth, np.ones_like(truth)).vi_merge == pytest.approx(math.log2(8))
