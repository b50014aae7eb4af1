from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError
from apps.ffn.cost import flop_per_fov, parameter_count
from apps.ffn.model import ModelParameters, check_weights, initial_weights, weight_shapes
from tests.apps.ffn.tiny import TINY

PUBLISHED = ModelParameters(depth=12, features=32, fov=(33, 33, 33), deltas=(8, 8, 8))


def test_published_network_has_the_published_size_and_cost() -> None:
    assert parameter_count(PUBLISHED) == 638_433
    assert flop_per_fov(PUBLISHED) == pytest.approx(45.8e9, rel=0.002)


def test_geometry() -> None:
    model = ModelParameters(fov=(9, 17, 33), deltas=(0, 4, 8))
    assert model.canvas == (9, 25, 49)
    assert model.margin == (4, 8, 16)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"fov": (16, 17, 17)}, "odd"),
        ({"fov": (1, 17, 17)}, "odd"),
        ({"deltas": (9, 4, 4)}, "half the field of view"),
        ({"deltas": (-1, 4, 4)}, "half the field of view"),
        ({"deltas": (0, 0, 0)}, "never move"),
        ({"depth": 0}, "depth"),
        ({"variant": "unet"}, "variant"),
    ],
)
def test_impossible_descriptions_are_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        ModelParameters(**fields)


def test_initial_weights_follow_the_seed_alone() -> None:
    one, same, other = (initial_weights(TINY, seed) for seed in (3, 3, 4))
    assert list(one) == list(weight_shapes(TINY))
    for name, shape in weight_shapes(TINY).items():
        assert one[name].shape == shape
        assert one[name].dtype == np.float32
        assert np.array_equal(one[name], same[name])
    assert not np.array_equal(one["conv0_a/weights"], other["conv0_a/weights"])


def test_check_weights_names_what_does_not_fit() -> None:
    good = initial_weights(TINY, 0)
    assert list(check_weights(TINY, dict(reversed(good.items())), "here")) == list(good)
    with pytest.raises(DataError, match=r"here: .*conv1_b/biases"):
        check_weights(TINY, {name: value for name, value in good.items() if name != "conv1_b/biases"}, "here")
    with pytest.raises(DataError, match=r"shape \(3, 3, 3, 2, 5\)"):
        check_weights(TINY, {**good, "conv0_a/weights": np.zeros((3, 3, 3, 2, 5))}, "here")
    with pytest.raises(DataError, match="conv7_a/weights"):
        check_weights(TINY, {**good, "conv7_a/weights": np.zeros(1)}, "here")
    with pytest.raises(DataError, match="NaN"):
        check_weights(TINY, {**good, "conv_lom/biases": np.array([np.nan])}, "here")
