"""Tables of synapses made by hand, and tissue that a small network learns in a second."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.volumes import VoxelSize, write_volume
from apps.synapses.table import SynapseTable


def table(
    centres: Sequence[tuple[float, float, float]], partners: Sequence[tuple[int, int]] | None = None
) -> SynapseTable:
    """Synapses at `centres`, each from one plane before (along z) to one behind."""
    centre = np.array(centres, np.float64).reshape(-1, 3)
    count = len(centre)
    along = np.tile([1.0, 0.0, 0.0], (count, 1))
    return SynapseTable(
        id=np.arange(1, count + 1),
        centre=centre,
        partners=np.array(partners or [(0, 0)] * count, np.uint64).reshape(-1, 2),
        points=np.stack([centre - along, centre + along], axis=1),
        direction=along,
        confidence=np.ones(count),
        voxels=np.full(count, 9),
    )


SHAPE: Triple = (32, 32, 64)
VOXEL: VoxelSize = (10.0, 10.0, 10.0)
_WALLS = (16, 32, 48)  # along x, between the segments 1, 2, 3 and 4
_RADIUS = 4


@dataclass(frozen=True)
class Tissue:
    """Segments that meet at walls along x, with bright clefts in the walls and dark vesicles on one side of them."""

    image: NDArray[np.uint8]
    clefts: NDArray[np.uint32]
    vesicles: NDArray[np.uint32]
    labels: NDArray[np.uint64]
    synapses: SynapseTable


def tissue(seed: int = 0) -> Tissue:
    """Eight synapses; some lie across the faces of tiles of 16 voxels."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(SHAPE)
    labels = np.searchsorted(_WALLS, x, side="right").astype(np.uint64) + 1
    for wall in _WALLS:
        labels[abs(x - wall) <= 1] = 0
    clefts, vesicles = (np.zeros(SHAPE, np.uint32) for _ in range(2))
    centres: list[tuple[float, float, float]] = []
    partners = []
    for number, (wall, cz, cy) in enumerate(itertools.product(_WALLS, (8, 23), (8, 23))):
        if number % 3 == 2:
            continue
        disc = (z - cz) ** 2 + (y - cy) ** 2 <= _RADIUS**2
        to_right = number % 2 == 0
        before = (x >= wall - 6) & (x <= wall - 2) if to_right else (x >= wall + 2) & (x <= wall + 6)
        centres.append((cz, cy, wall))
        left = _WALLS.index(wall) + 1
        partners.append((left, left + 1) if to_right else (left + 1, left))
        clefts[disc & (abs(x - wall) <= 1)] = len(centres)
        vesicles[disc & before] = len(centres)
    image = np.where(clefts > 0, 220, np.where(vesicles > 0, 60, 130)) + rng.integers(-8, 9, SHAPE)
    return Tissue(image.astype(np.uint8), clefts, vesicles, labels, table(centres, partners))


def save(folder: Path, seed: int = 0) -> Tissue:
    """The tissue as image.zarr, clefts.zarr, vesicles.zarr and labels.zarr."""
    made = tissue(seed)
    for name in ("image", "clefts", "vesicles", "labels"):
        write_volume(folder / f"{name}.zarr", getattr(made, name), VOXEL, chunks=(16, 16, 16))
    return made
