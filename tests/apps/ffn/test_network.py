from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate

from apps.core.errors import StateError
from apps.ffn.model import ModelParameters, Weights, initial_weights
from apps.ffn.network import Network
from apps.ffn.runtime import start_tensorflow
from tests.apps.ffn.tiny import TINY

Array = NDArray[np.float32]


def convolve(net: Array, weights: Weights, name: str) -> Array:
    """Zero-padded convolution of [channels, z, y, x], written out tap by tap."""
    kernel, bias = weights[f"{name}/weights"], weights[f"{name}/biases"]
    outputs = [
        sum(correlate(net[i], kernel[..., i, o], mode="constant") for i in range(net.shape[0])) + bias[o]
        for o in range(kernel.shape[-1])
    ]
    return np.stack(outputs)


def reference(model: ModelParameters, weights: Weights, image: Array, seed: Array) -> Array:
    """The network of the paper: update from (image, seed), added to the seed."""
    net = convolve(np.stack([image, seed]), weights, "conv0_a")
    net = convolve(np.maximum(net, 0), weights, "conv0_b")
    for module in range(1, model.depth):
        inner = convolve(np.maximum(net, 0), weights, f"conv{module}_a")
        net = net + convolve(np.maximum(inner, 0), weights, f"conv{module}_b")
    update: Array = convolve(np.maximum(net, 0), weights, "conv_lom")[0]
    return seed + update


def test_prediction_is_the_papers_network() -> None:
    model = ModelParameters(depth=3, features=3, fov=(5, 7, 9), deltas=(1, 2, 2))
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.3, value.shape).astype(np.float32) for name, value in initial_weights(model, 0).items()
    }
    image, seed = (rng.normal(0, 1, model.fov).astype(np.float32) for _ in range(2))
    predict = Network(model, weights, threads=1).predictor()
    np.testing.assert_allclose(predict(image, seed), reference(model, weights, image, seed), rtol=1e-4, atol=1e-4)


def test_weights_come_back_as_they_went_in() -> None:
    weights = initial_weights(TINY, 5)
    back = Network(TINY, weights, threads=1).weights()
    assert list(back) == list(weights)
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_threads_are_fixed_once_tensorflow_runs() -> None:
    Network(TINY, initial_weights(TINY, 0), threads=1)
    with pytest.raises(StateError, match="threads = 3"):
        start_tensorflow(3)
