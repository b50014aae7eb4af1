"""The weights of a Keras model, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError

Weights = dict[str, NDArray[np.float32]]

# What the name of a transposed convolution's layer ends in, by which `initial_weights` knows it.
GROW = "_grow"


def get_weights(model: Any) -> Weights:
    """All variables of a Keras model, the batch statistics among them, by name."""
    return {variable.path: np.asarray(variable.value) for variable in model.variables}


def set_weights(model: Any, weights: Weights) -> None:
    """Put weights into a Keras model.  Raises DataError where names or shapes are not its own."""
    expected = {variable.path: tuple(variable.shape) for variable in model.variables}
    given = {name: array.shape for name, array in weights.items()}
    if expected != given:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise DataError(f"weights {', '.join(wrong[:5])}: are not those of this network; it is damaged, train again")
    for variable in model.variables:
        variable.assign(weights[variable.path])


def initial_weights(model: Any, seed: int) -> Weights:
    """Weights to start from (He et al. 2015: normal, of variance 2 / inputs of a unit); the rest as Keras has it."""
    rng = np.random.default_rng(seed)
    weights = get_weights(model)
    for name in sorted(weights):
        if name.endswith("kernel"):
            shape = weights[name].shape
            # A transposed convolution has [..., out, in], and each of its outputs one place of the kernel.
            inputs = shape[-1] if f"{GROW}/" in name else int(np.prod(shape[:-1]))
            if name.endswith("depthwise_kernel"):
                inputs = int(np.prod(shape[:-2]))
            weights[name] = (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)
    return weights
