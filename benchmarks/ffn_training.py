"""What training costs beyond the network: seconds a field of view of the trainer, against forward and backward alone.

Both run in one process on two threads, one step of each in turn, with the same network, batch and precision.  The bare
step is a `tf.function` of the Keras network under a GradientTape on constant input; the trainer's has the examples, the
movement of the field of view, the optimiser, the checks and the learning curve as well.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import Figure, benchmark_main, median
from benchmarks.training_task import make_data, make_trainer

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters, Precision

THREADS = 2
GOAL = 1.10
WARM_UP = 2


def run(quick: bool) -> list[Figure]:
    from apps.ffn.model import ModelParameters

    if quick:
        model, batch, steps, extent = (
            ModelParameters(depth=2, features=8, fov=(13, 13, 13), deltas=(3, 3, 3)),
            4,
            6,
            48,
        )
    else:
        model, batch, steps, extent = (
            ModelParameters(depth=12, features=32, fov=(33, 33, 33), deltas=(8, 8, 8)),
            4,
            15,
            96,
        )
    network = f"depth {model.depth}, {model.features} features, {model.fov[0]}^3, batch {batch}"
    figures = []
    with tempfile.TemporaryDirectory(prefix="ensemble-ffn-training-") as folder:
        make_data(Path(folder), extent)
        precisions: tuple[Precision, ...] = ("float32", "bfloat16")
        for precision in precisions:
            trainer_s, bare_s = _compare(Path(folder), model, batch, precision, steps)
            figures += [
                Figure(f"trainer, {precision}", trainer_s / batch, "s/FOV", note=network),
                Figure(f"bare forward + backward, {precision}", bare_s / batch, "s/FOV", note=network),
                # The network of --quick is so small that what surrounds it weighs more.
                Figure(
                    f"trainer / bare, {precision}",
                    trainer_s / bare_s,
                    "",
                    None if quick else GOAL,
                    note=f"medians of {steps} steps each, in turn, {THREADS} threads",
                ),
            ]
    return figures


def _compare(folder: Path, model: ModelParameters, batch: int, precision: Precision, steps: int) -> tuple[float, float]:
    """Median seconds of a step: the trainer's, and the bare network's."""
    from apps.ffn.ranks import one_rank

    trainer = make_trainer(folder, model, batch, precision, THREADS, one_rank())
    bare = _bare_step(model, batch, precision)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(WARM_UP + steps):
        # Whoever comes second finds the other's data in the caches: the order changes every turn.
        for which in (0, 1) if turn % 2 else (1, 0):
            begin = time.perf_counter()
            (trainer.train_step, bare)[which]()
            if turn >= WARM_UP:
                seconds[which].append(time.perf_counter() - begin)
    return median(seconds[0]), median(seconds[1])


def _bare_step(model: ModelParameters, batch: int, precision: Precision) -> Callable[[], Any]:
    """Loss and all gradients of a network of its own, on one constant batch."""
    from apps.ffn.model import initial_weights
    from apps.ffn.network import Network

    network = Network(model, initial_weights(model, 0), THREADS, precision)
    tf, keras_model = network.tf, network.keras_model
    rng = np.random.default_rng(0)
    shape = (batch, *model.fov, 1)
    image, seed = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
    labels = tf.constant(rng.random(shape), tf.float32)
    variables = [variable.value for variable in keras_model.trainable_variables]

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            logits = keras_model([image, seed], training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        return loss, tape.gradient(loss, variables)

    def wait_for_it() -> float:
        loss, gradients = step()
        return float(loss) + float(gradients[0][0, 0, 0, 0, 0])

    return wait_for_it


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.ffn_training", __doc__, run))
