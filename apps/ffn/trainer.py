"""Training a flood-filling network: one optimiser update a step, over a batch of fields of view.

As in the paper, the logits that the network gives become the seed of the next step at the same place: they are written
back to the example's canvas, and the field of view moves on where they allow it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError, DivergedError
from apps.ffn.checkpoint import State
from apps.ffn.examples import ExampleSource, Slot
from apps.ffn.model import ModelParameters, Weights
from apps.ffn.network import Network
from apps.ffn.optimizers import OptimizerName, ScheduleName, learning_rate_at, make_optimizer
from apps.ffn.tracker import Tracker

# Cross-entropy per voxel, averaged over one row of the curve, from which a training counts as exploded: a sound one
# starts under 3, and logits of this size that are wrong everywhere do not come back.
EXPLODED_LOSS = 20.0


@dataclass(frozen=True)
class TrainerSettings:
    """`seed` orders the examples; `curve_every` is the number of steps of one row of the learning curve; `steps` is
    where the schedule of the learning rate ends."""

    optimizer: OptimizerName
    learning_rate: float
    schedule: ScheduleName
    steps: int
    batch_size: int
    seed: int
    threads: int
    curve_every: int


class Trainer:
    """A training in progress: network, optimiser, streams of examples, canvases and learning curve."""

    def __init__(
        self, model: ModelParameters, weights: Weights, source: ExampleSource, settings: TrainerSettings
    ) -> None:
        self.network = Network(model, weights, settings.threads)
        self.settings = settings
        self.step = 0
        self.seconds = 0.0
        self.loss = 0.0
        self.tracker = Tracker()
        batch, fov = settings.batch_size, model.fov
        self._canvases = np.zeros((batch, *model.canvas), np.float32)
        self._slots = [
            Slot(source, model.deltas, settings.seed, number, batch, self._canvases[number]) for number in range(batch)
        ]
        for slot in self._slots:
            slot.start()
        # Image, seed, labels and weights of the batch, handed to TensorFlow as one array.
        self._inputs = np.zeros((4, batch, *fov), np.float32)
        self._radius = np.array(fov) // 2
        self._fov = np.array(fov)
        self._optimizer = make_optimizer(settings.optimizer, settings.learning_rate)
        self._optimizer.build(self.network.keras_model.trainable_variables)
        self._update = self._compile()

    def _compile(self) -> Any:
        tf, network, optimizer = self.network.tf, self.network.keras_model, self._optimizer
        variables = network.trainable_variables

        @tf.function(input_signature=[tf.TensorSpec(self._inputs.shape, tf.float32)])
        def update(inputs: Any) -> Any:
            image, seed, labels, weights = tf.unstack(inputs[..., None])
            with tf.GradientTape() as tape:
                logits = network([image, seed], training=True)
                per_voxel = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                loss = tf.reduce_mean(weights * per_voxel)
            gradients = tape.gradient(loss, [variable.value for variable in variables])
            optimizer.apply(gradients, variables)
            return loss, logits[..., 0]

        return update.get_concrete_function()

    def train_step(self) -> str | None:
        """One update.  Returns a line for the curve's CSV where this step ends a row.

        Raises DivergedError where the loss is NaN, infinite, or has exploded.
        """
        begin = time.perf_counter()
        if self.settings.schedule != "constant":
            rate = learning_rate_at(self.settings.schedule, self.settings.learning_rate, self.step, self.settings.steps)
            self._optimizer.learning_rate.assign(rate)
        views = [self._gather(number, slot) for number, slot in enumerate(self._slots)]
        loss_tensor, logits_tensor = self._update(self.network.tf.constant(self._inputs))
        loss, logits = float(loss_tensor), logits_tensor.numpy()
        self.step += 1
        if not np.isfinite(loss) or not np.isfinite(logits).all():
            raise DivergedError(f"training diverged: the loss was {loss} at step {self.step}; lower the learning rate")
        for view, prediction in zip(views, logits, strict=True):
            view[...] = prediction
        self.loss = loss
        self.tracker.add_step(loss)
        self.seconds += time.perf_counter() - begin
        if self.step % self.settings.curve_every:
            return None
        line = self.tracker.close_row(self.step, self.seconds)
        mean = self.tracker.last_loss()
        if mean > EXPLODED_LOSS:
            raise DivergedError(
                f"training diverged: the loss rose to {mean:.3g} a voxel by step {self.step}; lower the learning rate"
            )
        return line

    def _gather(self, number: int, slot: Slot) -> NDArray[np.float32]:
        """Put one slot's next field of view into the batch; returns the view of its canvas to write back to."""
        centre = np.array(slot.next_position())
        start = centre - self._radius
        z, y, x = (slice(a, b) for a, b in zip(start, start + self._fov, strict=True))
        view = slot.canvas[z, y, x]
        example = slot.current
        self._inputs[0, number] = example.image[z, y, x]
        self._inputs[1, number] = view
        self._inputs[2, number] = example.labels[z, y, x]
        self._inputs[3, number] = example.weights[z, y, x]
        for patch in slot.finished:
            self.tracker.add_patch(patch)
        slot.finished.clear()
        return view

    def state(self) -> State:
        """Everything but the weights that the next step depends on, as arrays."""
        optimizer = {
            f"optimizer_{number:03d}": np.asarray(variable.numpy())
            for number, variable in enumerate(self._optimizer.variables)
        }
        return optimizer | {
            "canvases": self._canvases,
            "places": np.array([(slot.example, slot.move) for slot in self._slots], np.int64),
            "rows": self.tracker.rows,
            "row": self.tracker.current,
            "step": np.array(self.step, np.int64),
            "seconds": np.array(self.seconds, np.float64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]], where: str) -> None:
        """Go on from `state()`; the weights are those given at construction.

        Raises DataError that names `where` (the checkpoint) where the state does not fit this training.
        """
        try:
            places, canvases = state["places"], state["canvases"]
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self.tracker = Tracker(state["rows"].copy(), state["row"].copy())
            variables = self._optimizer.variables
            saved = [state[f"optimizer_{number:03d}"] for number in range(len(variables))]
            if canvases.shape != self._canvases.shape or places.shape != (len(self._slots), 2):
                raise ValueError(f"canvases of shape {canvases.shape}, expected {self._canvases.shape}")
            for variable, value in zip(variables, saved, strict=True):
                variable.assign(value)
        except (KeyError, ValueError) as error:
            raise DataError(f"{where}: holds a training state that does not fit ({error}); start again") from error
        self._canvases[...] = canvases
        for slot, (example, move) in zip(self._slots, places, strict=True):
            slot.restore(int(example), int(move))
