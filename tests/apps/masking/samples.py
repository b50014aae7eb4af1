"""Sections on which a tiny network learns its classes in seconds: bright discs, dark squares, nothing below an edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import write_volume
from apps.masking.classes import OUTSIDE, SOMA, VESSEL
from apps.masking.stage import MaskingParameters

SHAPE = (4, 64, 96)
VOXEL = (40.0, 10.0, 10.0)
TRAINING: dict[str, Any] = {
    "network": {"channels": 8, "poolings": 1, "downsample": 2},
    "augmentation": {"zoom": 1.0, "brightness": 0.1, "contrast": 0.1, "shading": 0.0, "noise": 0.1},
    "patch": 32,
    "batch_size": 4,
    "steps": 60,
    "warmup_steps": 5,
    "learning_rate": 0.01,
    "checkpoint_every": 10,
    "validation_fraction": 0.34,
}

Bytes = NDArray[np.uint8]


def sections(depth: int = SHAPE[0], seed: int = 0) -> tuple[Bytes, Bytes]:
    """(image, classes), zyx."""
    rng = np.random.default_rng(seed)
    shape = (depth, *SHAPE[1:])
    classes = np.zeros(shape, np.uint8)
    y, x = np.ogrid[: shape[1], : shape[2]]
    for plane in classes:
        for left in (16, 48, 80):
            top = int(rng.integers(12, 20))
            plane[(y - top) ** 2 + (x - left) ** 2 < 64] = VESSEL
            row = int(rng.integers(34, 40))
            plane[row : row + 14, left - 7 : left + 7] = SOMA
        plane[58:] = OUTSIDE
    grey = np.array([130.0, 220.0, 50.0, 0.0])[classes] + 8 * rng.standard_normal(shape)
    image = np.clip(grey, 1, 255).astype(np.uint8)
    image[classes == OUTSIDE] = 0
    return image, classes


def save(folder: Path, depth: int = SHAPE[0], seed: int = 0) -> tuple[str, str]:
    """Write image.zarr and classes.zarr; returns their names."""
    image, classes = sections(depth, seed)
    write_volume(folder / "image.zarr", image, VOXEL)
    write_volume(folder / "classes.zarr", classes, VOXEL)
    return str(folder / "image.zarr"), str(folder / "classes.zarr")


def training(folder: Path, output: str = "trained", **changed: Any) -> MaskingParameters:
    """Parameters of a training on what `save` has written."""
    return MaskingParameters.from_json(
        {
            "image": str(folder / "image.zarr"),
            "labels": str(folder / "classes.zarr"),
            "output": str(folder / output),
            "action": "train",
            "training": TRAINING | changed,
        }
    )
