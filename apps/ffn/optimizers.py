"""The optimisers of distributed FFN training (Dong et al., arXiv 1905.06236, and google/ffn), from Keras, and what goes
with them: loss scaling for float16 (Micikevicius et al., arXiv 1710.03740) and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

OptimizerName = Literal["sgd", "momentum", "adam", "adamw", "adagrad", "rmsprop"]

MOMENTUM = 0.9

# The scale of the loss in float16: where it starts, and after how many good steps in a row it doubles.
FIRST_SCALE = 2.0**15
GROWTH_STEPS = 2000
LOWEST_SCALE, HIGHEST_SCALE = 1.0, 2.0**24


def make_optimizer(name: OptimizerName, clip: float | None) -> Any:
    """A Keras optimiser of that name; `clip` bounds every entry of the gradient to this magnitude (None: it does not).

    Its learning rate is a variable that the trainer sets before every step.  To add an optimiser: its line here, its
    name in `OptimizerName`; the tests run over all of them.
    """
    from keras import optimizers

    makers: dict[str, Any] = {
        "sgd": optimizers.SGD,
        "momentum": lambda **options: optimizers.SGD(momentum=MOMENTUM, **options),
        "adam": optimizers.Adam,
        "adamw": optimizers.AdamW,
        "adagrad": optimizers.Adagrad,
        "rmsprop": optimizers.RMSprop,
    }
    return makers[name](learning_rate=0.0, clipvalue=clip)


class LossScale:
    """Dynamic loss scaling: small gradients are kept from vanishing in float16, large ones from overflowing.

    Where a gradient overflows, the step is skipped and the scale halved; it doubles after GROWTH_STEPS good steps.

    Attributes:
        variables: the scale and the number of good steps in a row, float32.
    """

    def __init__(self, tf: Any) -> None:
        self._tf = tf
        self._scale, self._good = tf.Variable(FIRST_SCALE, trainable=False), tf.Variable(0.0, trainable=False)
        self.variables = [self._scale, self._good]

    def scaled(self, loss: Any) -> Any:
        """The loss to differentiate.  Inside a tf.function, as the other methods."""
        return loss * self._scale

    def unscaled(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients of the loss itself."""
        return [gradient / self._scale for gradient in gradients]

    @property
    def lowest(self) -> bool:
        """Whether the scale cannot be halved any more."""
        return float(self._scale) <= LOWEST_SCALE

    def update(self, finite: Any) -> None:
        """Adapt the scale after a step whose gradients were `finite` (a scalar truth value)."""
        where, grown = self._tf.where, self._good + 1.0 >= GROWTH_STEPS
        factor = where(finite, where(grown, 2.0, 1.0), 0.5)
        self._good.assign(where(finite & ~grown, self._good + 1.0, 0.0))
        self._scale.assign(self._tf.clip_by_value(self._scale * factor, LOWEST_SCALE, HIGHEST_SCALE))


def average_decay(decay: float, step: int) -> float:
    """Decay of the moving average of the weights at `step`: smaller at first, to forget the initial weights.

    min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has it with `num_updates`.
    """
    return min(decay, (1.0 + step) / (10.0 + step))
