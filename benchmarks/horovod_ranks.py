"""One rank of benchmarks/horovod_scaling.py: `horovod_ranks.py MODE FOLDER SETTING STEPS`.

Modes: `train` steps a trainer with the ranks of its launch; `apart` does the same as processes that know nothing of
each other; `horovod`, `mirrored` and `mpi` only reduce as many bytes as the setting's gradients have, with the
training's own call, with TensorFlow's MultiWorkerMirroredStrategy, and with mpi4py from one array to another.
Rank 0 writes FOLDER/seconds.json: the seconds of every step after the warm-up.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.ranks import read_launch
from apps.ffn.model import ModelParameters, Precision, weight_shapes
from apps.ffn.ranks import one_rank, start_ranks
from benchmarks.training_task import make_trainer

# Network and batch of each rank.
SETTINGS: dict[str, tuple[ModelParameters, int]] = {
    # Many parameters and few voxels: 0.7 M numbers to reduce after a few milliseconds of work.
    "communication-bound": (ModelParameters(depth=6, features=48, fov=(5, 5, 5), deltas=(1, 1, 1)), 1),
    "published": (ModelParameters(depth=12, features=32, fov=(33, 33, 33), deltas=(8, 8, 8)), 1),
    "quick": (ModelParameters(depth=3, features=16, fov=(5, 5, 5), deltas=(1, 1, 1)), 1),
}
PRECISION: Precision = "float32"
THREADS = 1
WARM_UP = 3


def main() -> None:
    mode, folder, setting, steps = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    model, batch = SETTINGS[setting]
    shapes = list(weight_shapes(model).values())
    step, rank = {"train": _train, "apart": _train, "horovod": _horovod, "mirrored": _mirrored, "mpi": _mpi}[mode](
        mode, folder, model, batch, shapes
    )
    seconds = []
    for number in range(WARM_UP + steps):
        begin = time.perf_counter()
        step()
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - begin)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))


Step = tuple[Callable[[], Any], int]
Shapes = list[tuple[int, ...]]


def _train(mode: str, folder: Path, model: ModelParameters, batch: int, shapes: Shapes) -> Step:
    ranks = start_ranks(THREADS) if mode == "train" else one_rank()
    trainer = make_trainer(folder, model, batch, PRECISION, THREADS, ranks)
    return trainer.train_step, read_launch().rank


def _horovod(mode: str, folder: Path, model: ModelParameters, batch: int, shapes: Shapes) -> Step:
    ranks = start_ranks(THREADS)
    import tensorflow as tf

    gradients = [tf.Variable(tf.ones(shape)) for shape in shapes]

    @tf.function
    def reduce() -> Any:
        return ranks.average([gradient.value() for gradient in gradients])

    return lambda: reduce()[0].numpy(), ranks.rank


def _mirrored(mode: str, folder: Path, model: ModelParameters, batch: int, shapes: Shapes) -> Step:
    launch = read_launch()
    ports = json.loads((folder / "ports.json").read_text())
    workers = [f"localhost:{port}" for port in ports]
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": launch.rank}}
    )
    from apps.ffn.backend import start_tensorflow

    tf = start_tensorflow(THREADS)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    gradients = [tf.ones(shape) for shape in shapes]

    def reduce_in_replica() -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)

    @tf.function
    def reduce() -> Any:
        return strategy.run(reduce_in_replica)

    return lambda: reduce()[0].numpy(), launch.rank


def _mpi(mode: str, folder: Path, model: ModelParameters, batch: int, shapes: Shapes) -> Step:
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    flat = np.ones(sum(int(np.prod(shape)) for shape in shapes), np.float32)
    reduced = np.empty_like(flat)
    return lambda: world.Allreduce(flat, reduced), int(world.Get_rank())


if __name__ == "__main__":
    main()
