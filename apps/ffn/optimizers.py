"""The optimisers of distributed FFN training (Dong et al., arXiv 1905.06236, and google/ffn), from Keras."""

from __future__ import annotations

import math
from typing import Any, Literal

ScheduleName = Literal["constant", "cosine"]
OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "adagrad", "rmsprop"]

# google/ffn clips every entry of the gradient to this magnitude.
GRADIENT_CLIP = 0.7
MOMENTUM = 0.9


def make_optimizer(name: OptimizerName, learning_rate: float) -> Any:
    """A Keras optimiser of that name that clips gradients by value."""
    from keras import optimizers

    makers: dict[str, Any] = {
        "sgd": optimizers.SGD,
        "momentum": lambda **options: optimizers.SGD(momentum=MOMENTUM, **options),
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
        "adagrad": optimizers.Adagrad,
        "rmsprop": optimizers.RMSprop,
    }
    return makers[name](learning_rate=learning_rate, clipvalue=GRADIENT_CLIP)


def learning_rate_at(schedule: ScheduleName, learning_rate: float, step: int, steps: int) -> float:
    """The rate of step `step` (0 is the first) of `steps`: the same throughout, or half a cosine down to 0."""
    if schedule == "constant":
        return learning_rate
    return 0.5 * learning_rate * (1.0 + math.cos(math.pi * step / steps))
