"""Training of a network with Adam, and a checkpoint from which a killed one goes on to the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError, DivergedError
from apps.core.progress import Reporter
from apps.ffn.backend import import_tensorflow
from apps.ffn.checkpoint import STATE_FILE, WEIGHTS_FILE, checkpoint_in_the_making, load_arrays, save_arrays
from apps.unet.settings import Schedule
from apps.unet.weights import Weights, get_weights, initial_weights, set_weights

STAMP_FILE = "training.txt"

Floats = NDArray[np.float32]
Loss = Callable[[Any, Any, Any], Any]  # (tensorflow, logits, targets) -> scalar

_CLIP = 1.0  # norm that a gradient is cut to
_CURVE_ROW = 20  # steps that a row of the learning curve is the mean of


class Examples(Protocol):
    """Where the examples of a step come from."""

    def batch(self, step: int) -> tuple[Floats, Floats]:
        """(inputs, targets) of a step, which follow from its number alone."""
        ...


class Trainer:
    """A training in progress.

    Attributes:
        model: the Keras model.
        losses: of every step done.
        steps_done: in this process, those before a checkpoint not counted.
    """

    def __init__(self, model: Any, schedule: Schedule, examples: Examples, loss: Loss) -> None:
        """`model` gets its initial weights by the schedule's seed."""
        import keras

        self.model = model
        set_weights(self.model, initial_weights(self.model, schedule.seed))
        self.losses: list[float] = []
        self.steps_done = 0
        self._schedule, self._examples = schedule, examples
        self._optimizer = keras.optimizers.Adam(learning_rate=0.0, global_clipnorm=_CLIP)
        self._optimizer.build(self.model.trainable_variables)
        self._step = _compile(self.model, self._optimizer, loss)

    def train(self, checkpoint: Path, stamp: str, report: Reporter) -> None:
        """Train until the last step, from `checkpoint` where it is of the training `stamp`.

        Raises DivergedError where the loss is no finite number, DataError where the checkpoint is damaged or cannot be
        written.
        """
        schedule = self._schedule
        self._restore(checkpoint, stamp)
        while len(self.losses) < schedule.steps:
            step = len(self.losses)
            self._optimizer.learning_rate.assign(learning_rate_at(step, schedule))
            loss = float(self._step(*self._examples.batch(step)))
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {step}; lower learning_rate {schedule.learning_rate}")
            self.losses.append(loss)
            self.steps_done += 1
            if len(self.losses) % schedule.checkpoint_every == 0 and len(self.losses) < schedule.steps:
                self._save(checkpoint, stamp)
            report(len(self.losses), schedule.steps, f"training, loss {loss:.3f}")

    def weights(self) -> Weights:
        return get_weights(self.model)

    @property
    def loss(self) -> float:
        """Mean over the last quarter of the steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 4) :]))

    def curve(self) -> bytes:
        """CSV: step, mean loss of the steps up to it."""
        rows = ["step,loss"]
        for start in range(0, len(self.losses), _CURVE_ROW):
            part = self.losses[start : start + _CURVE_ROW]
            rows.append(f"{start + len(part)},{sum(part) / len(part):.6f}")
        return ("\n".join(rows) + "\n").encode()

    def _save(self, folder: Path, stamp: str) -> None:
        state: dict[str, NDArray[Any]] = {"losses": np.array(self.losses)}
        for number, variable in enumerate(self._optimizer.variables):
            state[f"optimizer-{number:05d}"] = np.asarray(variable.value)
        with checkpoint_in_the_making(folder) as temporary:
            save_arrays(temporary / WEIGHTS_FILE, self.weights())
            save_arrays(temporary / STATE_FILE, state)
            (temporary / STAMP_FILE).write_text(stamp)

    def _restore(self, folder: Path, stamp: str) -> None:
        """What another training has left there is no use, and is written over."""
        written = folder / STAMP_FILE
        if not written.is_file() or written.read_text() != stamp:
            return
        set_weights(self.model, load_arrays(folder / WEIGHTS_FILE))
        state = load_arrays(folder / STATE_FILE)
        try:
            for number, variable in enumerate(self._optimizer.variables):
                variable.assign(state[f"optimizer-{number:05d}"])
            self.losses = state["losses"].tolist()
        except (KeyError, ValueError) as error:
            raise DataError(f"{folder}: is a damaged checkpoint ({error}); remove it to start again") from error


def learning_rate_at(step: int, schedule: Schedule) -> float:
    """A rise in a line over the warm-up, then half a cosine down to 0."""
    warmup = schedule.warmup_steps
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (schedule.steps - warmup)))


def _compile(model: Any, optimizer: Any, loss_of: Loss) -> Any:
    """(inputs, targets) -> loss, with the update made."""
    tf = import_tensorflow()

    @tf.function(reduce_retracing=True)
    def step(inputs: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(tf, model(inputs, training=True), targets)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step
