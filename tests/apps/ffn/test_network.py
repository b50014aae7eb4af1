from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate

from apps.ffn.model import ModelParameters, Weights, initial_weights
from apps.ffn.network import Network
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
    np.testing.assert_allclose(
        predict(image[None], seed[None])[0], reference(model, weights, image, seed), rtol=1e-4, atol=1e-4
    )


def test_weights_come_back_as_they_went_in() -> None:
    weights = initial_weights(TINY, 5)
    back = Network(TINY, weights, threads=1).weights()
    assert list(back) == list(weights)
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_a_batch_is_each_of_its_views() -> None:
    network = Network(TINY, initial_weights(TINY, 5), threads=1)
    rng = np.random.default_rng(0)
    image, seed = (rng.normal(0, 1, (3, *TINY.fov)).astype(np.float32) for _ in range(2))
    together, alone = network.predictor(3)(image, seed), network.predictor()
    for number in range(3):
        single = alone(image[number : number + 1], seed[number : number + 1])[0]
        np.testing.assert_allclose(together[number], single, rtol=1e-5, atol=1e-5)


def test_new_weights_count_at_once() -> None:
    """Assigned after the predictor was compiled, as training does before each evaluation."""
    network = Network(TINY, initial_weights(TINY, 5), threads=1)
    predict, view = network.predictor(), np.ones((1, *TINY.fov), np.float32)
    network.assign(initial_weights(TINY, 6))
    expected = Network(TINY, initial_weights(TINY, 6), threads=1).predictor()(view, view)
    assert np.array_equal(predict(view, view), expected)
