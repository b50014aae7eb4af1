"""Rounding that keeps the sums of kernels."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from apps.ffn.model import ModelParameters, Precision, initial_weights
from apps.ffn.rounding import diffused, round_weights, snake


@pytest.mark.parametrize("extent", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (3, 5, 3)])
def test_the_path_goes_through_every_tap_from_neighbour_to_neighbour(extent: tuple[int, int, int]) -> None:
    path = snake(extent)
    assert sorted(path) == list(itertools.product(*map(range, extent)))
    steps = [sum(abs(a - b) for a, b in zip(p, q, strict=True)) for p, q in itertools.pairwise(path)]
    assert set(steps) == {1}


@pytest.mark.parametrize(("precision", "digits"), [("bfloat16", 8), ("float16", 11)])
def test_values_fit_the_precision_and_sums_are_kept(precision: Precision, digits: int) -> None:
    kernel = np.random.default_rng(0).normal(0, 0.1, (3, 3, 3, 5, 7)).astype(np.float32)
    rounded = diffused(kernel, precision)
    reduced = ml_dtypes.bfloat16 if precision == "bfloat16" else np.float16
    np.testing.assert_array_equal(rounded.astype(reduced).astype(np.float32), rounded)
    taps = (0, 1, 2)
    largest = np.abs(kernel).max()
    # What is left is the error of the last tap alone; rounded one by one, 27 errors add up.
    assert np.abs(rounded.sum(taps, dtype=float) - kernel.sum(taps, dtype=float)).max() <= largest * 2.0**-digits
    plain = kernel.astype(reduced).astype(np.float32)
    assert np.abs(plain.sum(taps) - kernel.sum(taps)).std() > 2 * np.abs(rounded.sum(taps) - kernel.sum(taps)).std()
    assert np.abs(rounded - kernel).max() <= 2 * largest * 2.0**-digits


def test_kernels_are_rounded_and_nothing_else() -> None:
    weights = initial_weights(ModelParameters(depth=2, features=4), 0)
    weights["conv0_a/biases"] += np.float32(0.1)
    rounded = round_weights(weights, "bfloat16")
    assert list(rounded) == list(weights)
    for name, value in rounded.items():
        same = name.endswith("/biases") or name in ("conv0_a/weights", "conv_lom/weights")  # these run in float32
        assert np.array_equal(value, weights[name]) is same
    assert round_weights(weights, "float32") is weights
