"""The network that is set by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apps.ffn.hand_set import bright_is_object, with_bright_path
from apps.ffn.model import ModelParameters, check_weights, initial_weights
from apps.ffn.network import Network


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_brighter_than_the_mean_is_object(depth: int) -> None:
    model = ModelParameters(depth=depth, features=2, fov=(5, 5, 5), deltas=(1, 1, 1))
    weights = bright_is_object(model)
    check_weights(model, weights, "set by hand")
    image = np.random.default_rng(0).normal(size=(1, 5, 5, 5)).astype(np.float32)
    update = Network(model, weights, threads=1).predictor()(image, np.zeros_like(image))
    np.testing.assert_allclose(np.asarray(update).reshape(image.shape), 30 * np.maximum(image, 0) - 5, rtol=1e-4)


def test_a_path_is_laid_through_a_copy() -> None:
    model = ModelParameters(depth=1, features=2, fov=(5, 5, 5), deltas=(1, 1, 1))
    before = initial_weights(model, 3)
    after = with_bright_path(before)
    assert all(np.array_equal(value, initial_weights(model, 3)[name]) for name, value in before.items())
    changed = {name: int((after[name] != before[name]).sum()) for name in before}
    assert {name for name, count in changed.items() if count} == {
        *("conv0_a/weights", "conv0_b/weights", "conv_lom/weights", "conv_lom/biases")
    }
    assert sum(changed.values()) == 4
