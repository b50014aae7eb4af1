"""Small stacks with a known truth: tissue-like texture that changes slowly along z, turned, shifted and bent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from apps.alignment.transforms import Mesh, Points, Rigid, fit_rigid
from apps.core.volumes import Volume, write_volume

EXTENT = 144
VOXEL = (40.0, 8.0, 8.0)


@dataclass(frozen=True)
class Section:
    """An image uint8 [y, x], and where on the block its pixels are, [y, x, 2]."""

    image: NDArray[np.uint8]
    places: Points

    @property
    def volume(self) -> Volume:
        return in_memory(self.image)

    def on_block(self, points: Points) -> Points:
        return np.stack([map_coordinates(self.places[..., k], points.T, order=1) for k in (0, 1)], axis=1)


def in_memory(image: NDArray[np.uint8]) -> Volume:
    return Volume("in memory", VOXEL, image[None])


def texture(depth: int, seed: int = 0, extent: int = EXTENT) -> NDArray[np.float64]:
    """[depth, extent, extent]: blobs of a few pixels that last for many sections, grey levels about 128."""
    noise = np.random.default_rng(seed).standard_normal((depth + 24, extent, extent))
    smooth = gaussian_filter(noise, (8.0, 3.0, 3.0))[12 : 12 + depth]
    grey: NDArray[np.float64] = 128 + 40 * smooth / smooth.std()
    return grey


def acquire(
    plane: NDArray[np.float64], seed: int, shift: float = 6.0, turn_deg: float = 3.0, bend: float = 1.5
) -> Section:
    """Image a plane of the block through a random rigid motion and a smooth bend; 0 beyond the block."""
    rng = np.random.default_rng(seed)
    extent = plane.shape[0]
    middle = (extent - 1) / 2
    rigid = Rigid(float(np.deg2rad(rng.uniform(-turn_deg, turn_deg))), (0.0, 0.0))
    y, x = np.mgrid[:extent, :extent].astype(np.float64)
    smooth = gaussian_filter(rng.standard_normal((2, extent, extent)), (0, 40, 40), mode="reflect")
    places = rigid(np.stack([y, x], axis=-1) - middle) + middle + rng.uniform(-shift, shift, 2)
    places = places + np.moveaxis(bend * smooth / smooth.std(), 0, -1)
    grey = map_coordinates(plane, np.moveaxis(places, -1, 0), order=3, mode="nearest")
    grey += 6 * rng.standard_normal(grey.shape)
    inside = ((places >= 0) & (places <= extent - 1)).all(axis=-1)
    return Section(np.where(inside, np.clip(np.rint(grey), 1, 255), 0).astype(np.uint8), places)


def stack(depth: int, seed: int = 0) -> list[Section]:
    return [acquire(plane, 100 + seed + z) for z, plane in enumerate(texture(depth, seed))]


def save(folder: Path, number: int, image: NDArray[np.generic]) -> None:
    write_volume(folder / "sections" / f"{number:05d}.zarr", image[None], VOXEL, (1, 128, 128))


def error(sections: dict[int, Section], meshes: dict[int, Mesh]) -> float:
    """Root mean square error of the meshes, pixels, but for one rigid motion of the whole stack."""
    truth, placed = [], []
    for number, section in sections.items():
        points = 8 * np.argwhere(section.image[8:-8:8, 8:-8:8] > 0).astype(np.float64) + 8
        truth.append(section.on_block(points))
        placed.append(meshes[number](points))
    a, b = np.concatenate(placed), np.concatenate(truth)
    return float(np.sqrt(np.mean(np.sum((fit_rigid(a, b, np.ones(len(a)))(a) - b) ** 2, axis=1))))
