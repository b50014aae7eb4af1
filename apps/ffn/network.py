"""A flood-filling network that runs: Keras 3 on TensorFlow.

The network takes the image and the object map so far (the seed, in logits) over one field of view, and its output is an
update that is added to the seed (Januszewski et al., arXiv 1611.00421, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.ffn.model import ModelParameters, Weights, weight_shapes
from apps.ffn.runtime import start_tensorflow

Array = NDArray[np.float32]
Predict = Callable[[Array, Array], Array]


def _convstack(model: ModelParameters, image: Any, seed: Any) -> Any:
    """conv0_a, relu, conv0_b; then residual modules relu, conv_a, relu, conv_b; then relu and a 1x1x1 convolution."""
    from keras import layers

    def convolution(name: str, net: Any, activation: str | None = None) -> Any:
        return layers.Conv3D(model.features, 3, padding="same", activation=activation, name=name)(net)

    net = layers.Concatenate(axis=-1)([image, seed])
    net = convolution("conv0_a", net, "relu")
    net = convolution("conv0_b", net)
    for module in range(1, model.depth):
        before = net
        net = layers.ReLU()(net)
        net = convolution(f"conv{module}_a", net, "relu")
        net = convolution(f"conv{module}_b", net)
        net = layers.Add()([net, before])
    net = layers.ReLU()(net)
    return layers.Conv3D(1, 1, padding="same", name="conv_lom")(net)


# Variant -> function of (model, image, seed), both [batch, z, y, x, 1], that gives the update of the seed.
VARIANTS: dict[str, Callable[[ModelParameters, Any, Any], Any]] = {"convstack": _convstack}


class Network:
    """One FFN with its variables.

    Attributes:
        model: its description.
        keras_model: takes [image, seed], each [batch, z, y, x, 1] float32, gives the new logits of the same shape.
    """

    def __init__(self, model: ModelParameters, weights: Weights, threads: int) -> None:
        """`weights` as `check_weights` gives them.  TensorFlow is started with `threads` threads."""
        self.tf = start_tensorflow(threads)
        import keras

        self.model = model
        image, seed = (keras.Input((*model.fov, 1), name=name) for name in ("image", "seed"))
        logits = keras.layers.Add()([seed, VARIANTS[model.variant](model, image, seed)])
        self.keras_model = keras.Model([image, seed], logits)
        for name, variable in self._variables().items():
            variable.assign(weights[name])

    def _variables(self) -> dict[str, Any]:
        """Weight name -> Keras variable, in the order of `weight_shapes`."""
        attribute = {"weights": "kernel", "biases": "bias"}
        variables = {}
        for name in weight_shapes(self.model):
            layer, _, kind = name.partition("/")
            variables[name] = getattr(self.keras_model.get_layer(layer), attribute[kind])
        return variables

    def weights(self) -> Weights:
        """A copy of the present weights."""
        return {name: np.array(variable.numpy(), np.float32) for name, variable in self._variables().items()}

    def predictor(self) -> Predict:
        """A function of (image, seed), both [z, y, x] float32, that gives the new logits [z, y, x].

        One compiled function of a fixed signature.  (Frozen to constants, its convolutions were a third slower.)
        """
        tf = self.tf
        spec = tf.TensorSpec(self.model.fov, tf.float32)

        @tf.function(input_signature=[spec, spec])
        def step(image: Any, seed: Any) -> Any:
            logits = self.keras_model([image[None, ..., None], seed[None, ..., None]], training=False)
            return logits[0, ..., 0]

        concrete, constant = step.get_concrete_function(), tf.constant

        def predict(image: Array, seed: Array) -> Array:
            result: Array = concrete(constant(image), constant(seed)).numpy()
            return result

        return predict
