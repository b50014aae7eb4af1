"""What the training benchmarks train on: a phantom in a temporary folder, and a trainer that is ready to step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from apps.ffn.model import ModelParameters, Precision
    from apps.ffn.ranks import Ranks
    from apps.ffn.trainer import Trainer

MEAN, STD = 128.0, 33.0
COORDINATES = 2000


def make_data(folder: Path, extent: int) -> None:
    """Write image, labels and coordinates of a phantom of `extent` voxels on a side; every object is trained on."""
    from apps.core.volumes import write_volume
    from apps.phantom.design import PhantomDesign
    from apps.phantom.stage import generate

    image, labels = generate((extent,) * 3, 0, PhantomDesign())
    write_volume(folder / "image.zarr", image, (10.0, 10.0, 10.0))
    write_volume(folder / "labels.zarr", labels, (10.0, 10.0, 10.0))
    np.save(folder / "inside.npy", np.argwhere(labels > 0).astype(np.int32))


def make_trainer(
    folder: Path, model: ModelParameters, batch: int, precision: Precision, threads: int, ranks: Ranks
) -> Trainer:
    """A trainer with Adam on the data of `make_data`, as the training stage makes it."""
    from apps.ffn.examples import ExampleSource
    from apps.ffn.model import initial_weights
    from apps.ffn.schedules import Schedule
    from apps.ffn.trainer import Trainer, TrainerSettings
    from apps.ffn.training_volumes import TrainingVolume, open_training_volumes

    inside = np.load(folder / "inside.npy")
    margin = np.array(model.canvas) // 2
    fits = ((inside >= margin) & (inside < inside.max(axis=0) - margin)).all(axis=1)
    file = folder / f"coordinates-{os.getpid()}-{model.fov[0]}.npz"  # trainings apart from each other share the folder
    np.savez(file, zyx=np.random.default_rng(0).permutation(inside[fits])[:COORDINATES])
    volume = TrainingVolume(image=str(folder / "image.zarr"), labels=str(folder / "labels.zarr"), coordinates=str(file))
    settings = TrainerSettings(
        optimizer="adam",
        schedule=Schedule(learning_rate=1e-4),
        clip=0.7,
        ema=None,
        precision=precision,
        policy="fixed",
        batch_size=batch,
        seed=0,
        threads=threads,
        curve_every=20,
    )
    source = ExampleSource(open_training_volumes([volume]), model, (MEAN, STD), 1.0)
    return Trainer(model, initial_weights(model, 0), source, settings, ranks)
