"""A volume with a tube that is split in two and one beside it, and a network set by hand that takes what is bright."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.agglomeration.parameters import AgglomerationParameters
from apps.core.volumes import VoxelSize, write_volume
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.hand_set import bright_is_object
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings

MODEL = ModelParameters(depth=1, features=2, fov=(9, 9, 9), deltas=(2, 2, 2))
MEAN, STD = 120.0, 40.0
SIZE = (10.0, 10.0, 10.0)
SHAPE = (32, 32, 96)
# The ids of the tube's parts, of the dark object beside it, and of a far one; large ones, as reconciliation gives them.
LEFT, RIGHT, DARK, FAR = 5, (1 << 40) + 7, (1 << 41) + 1, 9


def labels() -> NDArray[np.uint64]:
    """A bright tube along x, split at x = 40 into LEFT and RIGHT; DARK runs below both; FAR touches nothing."""
    found = np.zeros(SHAPE, np.uint64)
    found[11:16, 12:17, 4:40] = LEFT
    found[11:16, 12:17, 40:80] = RIGHT
    found[16:24, 12:17, 4:80] = DARK
    found[11:16, 12:17, 86:94] = FAR
    return found


def image() -> NDArray[np.uint8]:
    bright = np.isin(labels(), (LEFT, RIGHT, FAR))
    return np.where(bright, 170, 60).astype(np.uint8)


def write_inputs(folder: Path, trained_nm: VoxelSize | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_volume(folder / "image.zarr", image(), SIZE, (32, 32, 32))
    write_volume(folder / "labels.zarr", labels(), SIZE, (32, 32, 32))
    info = CheckpointInfo(model=MODEL, image_mean=MEAN, image_std=STD, step=1, provenance={}, voxel_size_nm=trained_nm)
    save_checkpoint(folder / "checkpoint", info, bright_is_object(MODEL), {})


def parameters(folder: Path, **fields: Any) -> AgglomerationParameters:
    """Parameters of a run on what `write_inputs` wrote; three blocks along x."""
    values: dict[str, Any] = {
        "segmentation": str(folder / "labels.zarr"),
        "image": str(folder / "image.zarr"),
        "model": str(folder / "checkpoint"),
        "output": str(folder / "out" / "agglomerated.zarr"),
        "block": (32, 32, 32),
        "radius": (12, 12, 12),
        "min_voxels": 100,
        "settings": InferenceSettings(),
        "canvas": "host",
    }
    return AgglomerationParameters(**{**values, **fields})
