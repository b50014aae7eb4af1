"""A volume and a network small enough that a test trains and segments in seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from apps.core.volumes import write_volume
from apps.ffn.model import ModelParameters
from apps.ffn.training_volumes import TrainingVolume

TINY = ModelParameters(depth=2, features=4, fov=(9, 9, 9), deltas=(2, 2, 2))
MEAN, STD = 120.0, 40.0

FIB25 = Path(os.environ.get("ENSEMBLE_FIB25", Path(__file__).resolve().parents[4] / "shared/data/fib25"))
GOOGLE_CHECKPOINT = str(FIB25 / "google_ffn_checkpoint/model.ckpt-27465036")
needs_fib25 = pytest.mark.skipif(not FIB25.is_dir(), reason=f"the FIB-25 sample is not at {FIB25}")


@dataclass(frozen=True)
class TinyData:
    image: str
    labels: str
    coordinates: str
    held_out: str

    @property
    def volumes(self) -> tuple[TrainingVolume, ...]:
        """To train on."""
        return (TrainingVolume(image=self.image, labels=self.labels, coordinates=self.coordinates),)

    @property
    def held_out_volumes(self) -> tuple[TrainingVolume, ...]:
        """The same volumes with other coordinates, to judge a training on."""
        return (TrainingVolume(image=self.image, labels=self.labels, coordinates=self.held_out),)


def tiny_data(folder: Path, margin: int = 6) -> TinyData:
    """Four bright tubes along z (labels 1 to 4) between membranes, 24 x 32 x 32 voxels, and coordinates in them.

    `margin`: voxels between a coordinate and the border; 6 for the canvas of policy `fixed`, 8 for `max_pred_moves`.
    """
    rng = np.random.default_rng(7)
    labels = np.zeros((24, 32, 32), np.uint32)
    for number, (y, x) in enumerate([(1, 1), (1, 17), (17, 1), (17, 17)], start=1):
        labels[:, y : y + 14, x : x + 14] = number
    image = np.where(labels > 0, 160, 60) + rng.normal(0, 8, labels.shape)
    write_volume(folder / "image.zarr", image.astype(np.uint8), (10.0, 10.0, 10.0))
    write_volume(folder / "labels.zarr", labels, (10.0, 10.0, 10.0))
    inner = slice(margin, -margin)
    inside = rng.permutation(np.argwhere(labels[inner, inner, inner] > 0) + margin).astype(np.int32)
    np.savez(folder / "coordinates.npz", zyx=inside[:200])
    np.savez(folder / "held_out.npz", zyx=inside[200:250])
    names = ("image.zarr", "labels.zarr", "coordinates.npz", "held_out.npz")
    return TinyData(*(str(folder / name) for name in names))
