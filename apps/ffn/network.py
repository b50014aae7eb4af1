"""A flood-filling network that runs: Keras 3 on TensorFlow, jax or torch.

The network takes the image and the object map so far (the seed, in logits) over one field of view, and its output is an
update that is added to the seed (Januszewski et al., arXiv 1611.00421, section 2).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from apps.ffn.backend import Array, Predict, compile_predictor, start_backend, start_tensorflow
from apps.ffn.model import ModelParameters, Precision, Weights, weight_shapes
from apps.ffn.variants import VARIANTS
from apps.ffn.variants.keras_operations import KerasOperations

__all__ = ["Array", "Network", "Predict"]


class Network:
    """One FFN with its variables.

    Attributes:
        model: its description.
        keras_model: takes [image, seed], each [batch, z, y, x, 1] float32, gives the new logits of the same shape.
    """

    def __init__(
        self, model: ModelParameters, weights: Weights, threads: int, precision: Precision = "float32"
    ) -> None:
        """`weights` as `check_weights` gives them.  The backend is started with `threads` threads."""
        self.threads = threads
        start_backend(threads)
        import keras

        self.model = model
        self.precision = precision
        policy = keras.DTypePolicy("float32" if precision == "float32" else f"mixed_{precision}")
        image, seed = (keras.Input((*model.fov, 1), name=name) for name in ("image", "seed"))
        operations = KerasOperations(model, policy)
        update = VARIANTS[model.variant](model, operations, image, seed)
        # Logits add up over the steps of an object: in float32, whatever the network computes in.
        logits = keras.layers.Add(dtype="float32")([seed, update])
        self.keras_model = keras.Model([image, seed], logits)
        self._variables = operations.variables
        self._predictors: dict[int, Predict] = {}
        self.assign(weights)

    @property
    def tf(self) -> Any:
        """The `tensorflow` module, for training.  Raises ParameterError where Keras runs on another backend."""
        return start_tensorflow(self.threads)

    def weights(self) -> Weights:
        """A copy of the present weights, float32, in the order of `weight_shapes`."""
        return {
            name: np.array(self._variables[name].numpy(), np.float32).reshape(shape)
            for name, shape in weight_shapes(self.model).items()
        }

    def assign(self, weights: Weights) -> None:
        """Replace the weights by others as `check_weights` gives them."""
        for name, variable in self._variables.items():
            variable.assign(weights[name].reshape(variable.shape))

    def predictor(self, batch: int = 1) -> Predict:
        """A function of (image, seed), both [batch, z, y, x] float32, that gives the new logits, so too.

        It is compiled once for each batch, and follows the weights.
        """
        if batch not in self._predictors:
            self._predictors[batch] = compile_predictor(self.keras_model, batch, self.model.fov)
        return self._predictors[batch]
