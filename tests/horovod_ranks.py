"""What each rank of tests/test_horovod.py runs: `-m tests.horovod_ranks FOLDER` writes FOLDER/RANK.json."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from apps.ffn.backend import import_tensorflow

tf = import_tensorflow()  # first: without what TensorFlow and Keras load beside, in half of the time
import horovod.tensorflow as hvd  # noqa: E402
import keras  # noqa: E402


def train(rank: int, steps: int) -> tuple[str, list[float]]:
    """Train a small Keras model on data of this rank's own; returns the weights' hash and the losses."""
    keras.utils.set_random_seed(rank)  # ranks start from different weights: only the broadcast makes them equal
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    # Horovod takes TensorFlow's variables; those of Keras 3 are wrappers around them.
    variables = [variable.value for variable in model.trainable_variables]
    hvd.broadcast_variables(variables, root_rank=0)
    generator = np.random.default_rng(100 + rank)
    inputs = tf.constant(generator.normal(size=(64, 4)), tf.float32)
    targets = tf.reduce_sum(inputs, axis=1, keepdims=True)
    losses = []
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs) - targets) ** 2)
        gradients = hvd.DistributedGradientTape(tape).gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(0.05 * gradient)
        losses.append(float(loss))
    digest = hashlib.sha256(b"".join(variable.numpy().tobytes() for variable in variables))
    return digest.hexdigest(), losses


def main() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    hvd.init()
    rank = hvd.rank()
    total = hvd.allreduce(tf.constant([1.0 + rank, 10.0 * (1 + rank)]), op=hvd.Sum, name="total")
    mean = hvd.allreduce(tf.constant([float(rank)]), op=hvd.Average, name="mean")
    weights, losses = train(rank, steps=20)
    report = {
        "rank": rank,
        "size": hvd.size(),
        "mpi": bool(hvd.mpi_enabled()),
        "total": total.numpy().tolist(),
        "mean": mean.numpy().tolist(),
        "weights": weights,
        "losses": losses,
    }
    # Not to standard output: lines of several ranks get mixed there.
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(report))
    hvd.shutdown()


if __name__ == "__main__":
    main()
