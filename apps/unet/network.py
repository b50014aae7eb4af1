"""The U-Net (Ronneberger et al. 2015; in 3-D, Cicek et al. 2016) around a block of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.ffn.backend import import_tensorflow
from apps.unet.weights import GROW, Weights, set_weights

Floats = NDArray[np.float32]
# What the network sees of one image [extents, seen] -> probabilities [extents, outputs].
Predict = Callable[[Floats], Floats]
# (Keras's layers, what goes in, channels, name of the layers) -> what comes out, of the same extent.
Block = Callable[[Any, Any, int, str], Any]

CONVOLUTIONS = 2  # of a block, at every level, on the way down and up
MOMENTUM = 0.9  # of the batch statistics: trainings are short


def build_u_net(
    name: str, seen: int, outputs: int, channels: int, windows: Sequence[tuple[int, ...]], block: Block
) -> Any:
    """The Keras model: float32 [batch, extents, seen] -> logits [batch, extents, outputs].

    Args:
        name: of the model.
        seen: numbers that it sees of every place.
        outputs: logits that it gives for each.
        channels: at the finest level; each pooling doubles them.
        windows: one for each pooling, from the finest level on: what becomes one place of the next, (z,) y, x.
        block: at every level, on the way down and up.

    Layers are named by where they are, so that weights have the same names in every process.
    """
    import keras

    layers, axes = keras.layers, len(windows[0])
    pool, grow, convolve = (getattr(layers, kind.format(axes)) for kind in _KINDS)
    image = keras.Input((*[None] * axes, seen), name="image")
    skips = []
    x = image
    for level, window in enumerate(windows):
        x = block(layers, x, channels * 2**level, f"down{level}")
        skips.append(x)
        x = pool(window, name=f"pool{level}")(x)
    x = block(layers, x, channels * 2 ** len(windows), "bottom")
    for level, window in reversed(list(enumerate(windows))):
        x = grow(channels * 2**level, window, strides=window, name=f"up{level}{GROW}")(x)
        x = layers.Concatenate(name=f"up{level}_join")([skips[level], x])
        x = block(layers, x, channels * 2**level, f"up{level}")
    return keras.Model(image, convolve(outputs, 1, name="logits")(x), name=name)


_KINDS = "MaxPooling{}D", "Conv{}DTranspose", "Conv{}D"


def ready_to_predict(model: Any, weights: Weights, activation: Literal["sigmoid", "softmax"]) -> Predict:
    """A Keras model with these weights, compiled now, and not with the first image that it sees.

    Raises DataError where the weights are not those of such a network.
    """
    tf = import_tensorflow()
    set_weights(model, weights)
    activate = {"sigmoid": tf.sigmoid, "softmax": tf.nn.softmax}[activation]

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape[1:], tf.float32)])
    def step(image: Any) -> Any:
        return activate(model(image[None], training=False)[0])

    concrete = step.get_concrete_function()

    def predict(image: Floats) -> Floats:
        result: Floats = concrete(tf.constant(image)).numpy()
        return result

    return predict
