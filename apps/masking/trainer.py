"""Training of a network: Adam on cross-entropy and soft Dice, with a checkpoint from which a killed one goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError, DivergedError
from apps.core.files import folder_in_the_making
from apps.core.progress import Reporter
from apps.ffn.backend import import_tensorflow
from apps.ffn.checkpoint import load_arrays, save_arrays
from apps.masking.examples import Examples
from apps.masking.model import Weights, get_weights, initial_weights, set_weights
from apps.masking.network import build
from apps.masking.settings import TrainSettings

WEIGHTS_FILE, STATE_FILE, STAMP_FILE = "weights.npz", "state.npz", "training.txt"

_CLIP = 1.0  # norm that a gradient is cut to
_SOFT = 1.0  # pixels added to the Dice of a batch: one without the class is no division by 0


class Trainer:
    """A training in progress.

    Attributes:
        model: the Keras model.
        losses: of every step done.
        steps_done: in this process, those before a checkpoint not counted.
    """

    def __init__(self, settings: TrainSettings, examples: Examples) -> None:
        import keras

        self.model = build(settings.network)
        set_weights(self.model, initial_weights(self.model, settings.seed))
        self.losses: list[float] = []
        self.steps_done = 0
        self._settings, self._examples = settings, examples
        self._optimizer = keras.optimizers.Adam(learning_rate=0.0, global_clipnorm=_CLIP)
        self._optimizer.build(self.model.trainable_variables)
        self._step = _compile(self.model, self._optimizer)

    def train(self, checkpoint: Path, stamp: str, report: Reporter) -> None:
        """Train until the last step, from `checkpoint` where it is of the training `stamp`.

        Raises DivergedError where the loss is no finite number, DataError where the checkpoint is damaged or cannot be
        written.
        """
        settings = self._settings
        self._restore(checkpoint, stamp)
        while len(self.losses) < settings.steps:
            step = len(self.losses)
            self._optimizer.learning_rate.assign(learning_rate_at(step, settings))
            loss = float(self._step(*self._examples.batch(step)))
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {step}; lower learning_rate {settings.learning_rate}")
            self.losses.append(loss)
            self.steps_done += 1
            if len(self.losses) % settings.checkpoint_every == 0 and len(self.losses) < settings.steps:
                self._save(checkpoint, stamp)
            report(len(self.losses), settings.steps, f"training, loss {loss:.3f}")

    def weights(self) -> Weights:
        return get_weights(self.model)

    @property
    def loss(self) -> float:
        """Mean over the last quarter of the steps."""
        return float(np.mean(self.losses[-max(1, len(self.losses) // 4) :]))

    def _save(self, folder: Path, stamp: str) -> None:
        state: dict[str, NDArray[Any]] = {"losses": np.array(self.losses)}
        for number, variable in enumerate(self._optimizer.variables):
            state[f"optimizer-{number:05d}"] = np.asarray(variable.value)
        try:
            with folder_in_the_making(folder) as temporary:
                save_arrays(temporary / WEIGHTS_FILE, self.weights())
                save_arrays(temporary / STATE_FILE, state)
                (temporary / STAMP_FILE).write_text(stamp)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error

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


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """A rise in a line over the warm-up, then half a cosine down to 0."""
    warmup = settings.warmup_steps
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (settings.steps - warmup)))


def _compile(model: Any, optimizer: Any) -> Any:
    """(images, shares) -> loss, with the update made."""
    tf = import_tensorflow()

    @tf.function(reduce_retracing=True)
    def step(images: Any, shares: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = _loss(tf, model(images, training=True), shares)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return step


def _loss(tf: Any, logits: Any, shares: Any) -> Any:
    """Cross-entropy with the shares, and 1 - soft Dice (Milletari et al. 2016) of the classes in the batch."""
    logs = tf.nn.log_softmax(logits)
    annotated = tf.reduce_sum(shares, axis=-1)
    entropy = -tf.reduce_sum(shares * logs) / tf.maximum(tf.reduce_sum(annotated), 1.0)
    found = tf.exp(logs) * annotated[..., None]
    sums = [tf.reduce_sum(part, axis=(0, 1, 2)) for part in (found * shares, found, shares)]
    dice = (2 * sums[0] + _SOFT) / (sums[1] + sums[2] + _SOFT)
    there = tf.cast(sums[2] > 0, tf.float32)
    return entropy + tf.reduce_sum((1 - dice) * there) / tf.maximum(tf.reduce_sum(there), 1.0)
