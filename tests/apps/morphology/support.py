"""A small segmentation: a ball that crosses units, a fibre along z from end to end, and a speck; anisotropic voxels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import write_volume

SIZE = (30.0, 8.0, 10.3)
BALL, FIBRE, SPECK = 2**52 + 7, 3, 9


def labels() -> NDArray[np.uint64]:
    """uint64 [40, 50, 60] zyx."""
    z, y, x = np.mgrid[:40, :50, :60]
    found = np.zeros((40, 50, 60), np.uint64)
    found[(z - 20) ** 2 + (y - 25) ** 2 + (x - 34) ** 2 < 17**2] = BALL
    found[(y - 5) ** 2 + (x - 5) ** 2 < 16] = FIBRE
    found[38:40, 48:50, 58:60] = SPECK
    return found


def write_labels(folder: Path, data: NDArray[Any] | None = None) -> str:
    path = folder / "labels.zarr"
    write_volume(path, labels() if data is None else data, SIZE, chunks=(16, 16, 16))
    return str(path)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
