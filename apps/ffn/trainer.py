"""Training a flood-filling network: one optimiser update a step, over a batch of fields of view on every rank.

As in the paper, the logits that the network gives become the seed of the next step at the same place: they are written
back to the example's canvas, and the field of view moves on where they allow it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError, DivergedError
from apps.ffn.checkpoint import State
from apps.ffn.examples import ExampleSource, Slot
from apps.ffn.model import ModelParameters, Precision, Weights
from apps.ffn.movement import Policy
from apps.ffn.network import Network
from apps.ffn.optimizers import LossScale, OptimizerName, average_decay, make_optimizer
from apps.ffn.ranks import Ranks, lost_ranks
from apps.ffn.schedules import Schedule, learning_rate_at
from apps.ffn.tracker import FIELDS, SKIPPED, Row, Tracker, metrics_of

# Cross-entropy per voxel, averaged over one row of the curve, from which a training counts as exploded: a sound one
# starts under 3, and logits of this size that are wrong everywhere do not come back.
EXPLODED_LOSS = 20.0


@dataclass(frozen=True)
class TrainerSettings:
    """How to train.

    Attributes:
        clip: bound on the magnitude of every entry of the gradient; None for none.
        ema: decay of the moving average of the weights; None for none.
        batch_size: fields of view a step on each rank.
        seed: orders the examples.
        curve_every: steps of one row of the learning curve.
    """

    optimizer: OptimizerName
    schedule: Schedule
    clip: float | None
    ema: float | None
    precision: Precision
    policy: Policy
    batch_size: int
    seed: int
    threads: int
    curve_every: int


class Trainer:
    """A training in progress: network, optimiser, streams of examples, canvases and learning curve.

    Attributes:
        step: optimiser updates done, skipped ones counted.
        seconds: spent in `train_step`.
        loss: of the last step, mean over all ranks.
        tracker: the learning curve so far.
    """

    def __init__(
        self,
        model: ModelParameters,
        weights: Weights,
        source: ExampleSource,
        settings: TrainerSettings,
        ranks: Ranks,
    ) -> None:
        self.network = Network(model, weights, settings.threads, settings.precision)
        self.settings = settings
        self.step = 0
        self.seconds = 0.0
        self.loss = math.nan
        self.tracker = Tracker()
        self._ranks, self._tf = ranks, self.network.tf
        batch = settings.batch_size
        self._canvases = np.zeros((batch, *source.canvas), np.float32)
        self._slots = [
            Slot(
                source,
                model.deltas,
                settings.policy,
                settings.seed,
                ranks.rank * batch + place,
                ranks.size * batch,
                self._canvases[place],
            )
            for place in range(batch)
        ]
        for slot in self._slots:
            slot.start()
        # Image, seed, labels and weights of the batch, handed to TensorFlow as one array.
        self._inputs = np.zeros((4, batch, *model.fov), np.float32)
        self._radius = np.array(model.fov) // 2
        self._fov = np.array(model.fov)
        self._variables = self.network.keras_model.trainable_variables
        self._optimizer = make_optimizer(settings.optimizer, settings.clip)
        self._optimizer.build(self._variables)
        self._loss_scale = LossScale(self._tf) if settings.precision == "float16" else None
        ranks.broadcast([*self.network.keras_model.variables, *self._optimizer.variables])
        self._averaged = [] if settings.ema is None else list(self._variables)
        self._averages = [self._tf.Variable(variable.value, trainable=False) for variable in self._averaged]
        self._update = self._compile()

    def _compile(self) -> Any:
        tf, network, scale = self._tf, self.network.keras_model, self._loss_scale
        variables = [variable.value for variable in self._variables]

        def apply(gradients: list[Any], rate: Any, decay: Any) -> Any:
            self._optimizer.learning_rate.assign(rate)
            self._optimizer.apply(gradients, self._variables)
            for average, variable in zip(self._averages, self._averaged, strict=True):
                average.assign_add((1.0 - decay) * (variable.value - average))
            return tf.constant(True)

        @tf.function(input_signature=[tf.TensorSpec(self._inputs.shape, tf.float32), tf.TensorSpec((2,), tf.float32)])
        def update(inputs: Any, controls: Any) -> Any:
            image, seed, labels, weights = tf.unstack(inputs[..., None])
            rate, decay = tf.unstack(controls)
            with tf.GradientTape() as tape:
                logits = network([image, seed], training=True)
                per_voxel = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
                loss = tf.reduce_mean(weights * per_voxel)
                differentiated = loss if scale is None else scale.scaled(loss)
            gradients = tape.gradient(differentiated, variables)
            # The loss goes with them, so that all ranks see the same one, and the same NaN.
            *gradients, loss = self._ranks.average([*gradients, loss])
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
            if scale is None:
                apply(gradients, rate, decay)
            else:
                gradients = scale.unscaled(gradients)
                tf.cond(finite, lambda: apply(gradients, rate, decay), lambda: tf.constant(False))
                scale.update(finite)
            return loss, finite, logits[..., 0]

        return update.get_concrete_function()

    def train_step(self) -> Row | None:
        """One update.  Returns a row of the learning curve where this step ends one.

        Raises DivergedError, on all ranks, where the loss is NaN, infinite, or has exploded, or a gradient is not
        finite; TransientError where another rank has ended.
        """
        begin = time.perf_counter()
        settings, constant = self.settings, self._tf.constant
        rate = learning_rate_at(self.step, settings.schedule)
        decay = 0.0 if settings.ema is None else average_decay(settings.ema, self.step)
        views = [self._gather(place, slot) for place, slot in enumerate(self._slots)]
        with lost_ranks():
            loss_tensor, finite_tensor, logits = self._update(
                constant(self._inputs), constant((rate, decay), self._tf.float32)
            )
            self.loss, finite = float(loss_tensor), bool(finite_tensor)
        self.step += 1
        self._check_step(finite)
        for view, prediction in zip(views, logits.numpy(), strict=True):
            view[...] = prediction
        seconds = time.perf_counter() - begin
        self.tracker.add_step(self.loss, settings.batch_size, seconds, skipped=not finite)
        self.seconds += seconds
        if self.step % settings.curve_every:
            return None
        row = self.tracker.close_row(self.step, rate, self.seconds, self._ranks.total)
        mean = metrics_of(row).loss
        if mean is not None and mean > EXPLODED_LOSS:
            raise DivergedError(
                f"training diverged: the loss rose to {mean:.3g} a voxel by step {self.step}; lower the learning rate"
            )
        return row

    def _check_step(self, finite: bool) -> None:
        """Raise DivergedError where the step cannot be gone on from.

        A loss that is finite means that all logits are: an infinite one has an infinite cross-entropy, and times a
        weight of 0 it is NaN.
        """
        if not math.isfinite(self.loss):
            raise DivergedError(
                f"training diverged: the loss was {self.loss} at step {self.step}; lower the learning rate"
            )
        if not finite and (self._loss_scale is None or self._loss_scale.lowest):
            raise DivergedError(
                f"training diverged: a gradient was not finite at step {self.step}; lower the learning rate"
            )

    def _gather(self, place: int, slot: Slot) -> NDArray[np.float32]:
        """Put one slot's next field of view into the batch; returns the view of its canvas to write back to."""
        centre = np.array(slot.next_position())
        start = centre - self._radius
        z, y, x = (slice(a, b) for a, b in zip(start, start + self._fov, strict=True))
        view = slot.canvas[z, y, x]
        example = slot.current
        self._inputs[0, place] = example.image[z, y, x]
        self._inputs[1, place] = view
        self._inputs[2, place] = example.labels[z, y, x]
        self._inputs[3, place] = example.weights[z, y, x]
        for patch in slot.finished:
            self.tracker.add_patch(patch)
        slot.finished.clear()
        return view

    @property
    def skipped(self) -> int:
        """Steps that changed nothing, since a gradient overflowed in float16."""
        return int(self.tracker.rows[:, SKIPPED].sum() + self.tracker.current[SKIPPED])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block the network has the weights that are to be used: their moving average, where there is one."""
        if not self._averages:
            yield
            return
        raw = self.network.weights()
        for average, variable in zip(self._averages, self._averaged, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            self.network.assign(raw)

    def weights(self) -> Weights:
        """The weights that are to be used: their moving average, where there is one."""
        with self.averaged():
            return self.network.weights()

    def recent(self) -> Row:
        """Raw rows of the last quarter of the steps; called by all ranks."""
        return self.tracker.recent(self.step, self._ranks.total)

    def state(self) -> State:
        """Everything but `weights()` and the streams that the next step depends on, the same on all ranks."""
        raw = self.network.weights() if self._averages else {}
        scale = self._loss_scale.variables if self._loss_scale else []
        return {
            **{
                f"optimizer_{n:04d}": np.asarray(variable.numpy())
                for n, variable in enumerate(self._optimizer.variables)
            },
            **{f"scale_{n}": np.asarray(variable.numpy()) for n, variable in enumerate(scale)},
            **{f"raw:{name}": value for name, value in raw.items()},
            "rows": self.tracker.rows,
            "step": np.array(self.step, np.int64),
            "seconds": np.array(self.seconds, np.float64),
            "ranks": np.array(self._ranks.size, np.int64),
        }

    def streams(self) -> State:
        """This rank's streams of examples, and its share of the row in progress."""
        places = {f"slot_{place:04d}": slot.state() for place, slot in enumerate(self._slots)}
        return {**places, "canvases": self._canvases, "row": self.tracker.current}

    def restore(self, state: Mapping[str, NDArray[Any]], streams: Mapping[str, NDArray[Any]], where: str) -> None:
        """Go on from `state()` and `streams()`; the `weights()` are those given at construction.

        Raises DataError that names `where` (the checkpoint) where they do not fit this training.
        """
        try:
            self.step, self.seconds = int(state["step"]), float(state["seconds"])
            self._restore_tracker(state["rows"], streams["row"])
            for n, variable in enumerate(self._optimizer.variables):
                variable.assign(state[f"optimizer_{n:04d}"])
            for n, variable in enumerate(self._loss_scale.variables if self._loss_scale else ()):
                variable.assign(state[f"scale_{n}"])
            if self._averages:
                self.network.assign({name: state[f"raw:{name}"] for name in self.network.weights()})
            if streams["canvases"].shape != self._canvases.shape:
                raise ValueError(f"canvases of shape {streams['canvases'].shape}, expected {self._canvases.shape}")
            self._canvases[...] = streams["canvases"]
            for place, slot in enumerate(self._slots):
                slot.restore(streams[f"slot_{place:04d}"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: holds a training state that does not fit ({error}); start again") from error

    def _restore_tracker(self, rows: Row, current: Row) -> None:
        if rows.shape[1:] != (len(FIELDS),) or current.shape != (len(FIELDS),):
            raise ValueError(f"a learning curve of shape {rows.shape}, expected {len(FIELDS)} columns")
        self.tracker = Tracker(rows.copy(), current.copy())
