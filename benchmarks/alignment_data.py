"""Sections with a known truth for `benchmarks.alignment`: blocks, their acquisition, and the error of an alignment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator

from apps.alignment.storage import load_mesh, mesh_path
from apps.alignment.transforms import fit_rigid
from apps.core.boxes import Box
from apps.core.volumes import Volume, open_volume, write_volume
from apps.phantom.acquisition import AcquisitionDesign, section_truth, true_section_image

VOXEL = (40.0, 8.0, 8.0)
_STEP = 16  # pixels between the points at which the error is taken
_EDGE = 24  # pixels at the border of a section that are left out


@dataclass(frozen=True)
class Acquired:
    """A block of sections as it was acquired.

    Attributes:
        montage: folder with sections/NNNNN.zarr.
        block: the block, zyx; section z shows it at p + displacement(p).
        designs, seed: of the acquisition, a design a section; None where they were written as they are.
    """

    montage: Path
    block: NDArray[np.uint8]
    designs: Sequence[AcquisitionDesign] | None
    seed: int

    def on_block(self, section: int, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where on the block's section the points [n, 2] of the acquired one are."""
        if self.designs is None:
            return points
        return points + section_truth(self.shape, self.designs[section], self.seed, section).displacement(points)

    @property
    def shape(self) -> tuple[int, int]:
        return self.block.shape[1], self.block.shape[2]


def acquire(
    block: NDArray[np.uint8], folder: Path, designs: Sequence[AcquisitionDesign] | None, seed: int = 0
) -> Acquired:
    """Write the sections of a block, warped as their `designs` say, as a faultless montage would."""
    for number, plane in enumerate(block):
        image = plane if designs is None else true_section_image(plane, designs[number], seed, number)
        save_section(folder, number, image)
    return Acquired(folder, block, designs, seed)


def save_section(folder: Path, number: int, image: NDArray[np.uint8]) -> None:
    write_volume(folder / "sections" / f"{number:05d}.zarr", np.maximum(image, 1)[None], VOXEL, (1, 512, 512))


def tissue_points(acquired: Acquired, section: int) -> NDArray[np.float64]:
    """[n, 2]: points of the acquired section, on a grid, that show the block and not what is beyond it."""
    height, width = acquired.shape
    y, x = np.mgrid[_EDGE : height - _EDGE : _STEP, _EDGE : width - _EDGE : _STEP]
    points = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float64)
    there = acquired.on_block(section, points)
    inside = ((there >= _EDGE) & (there <= np.array([height, width]) - 1 - _EDGE)).all(axis=1)
    return points[inside]


def error(
    acquired: Acquired, output: Path, sections: Sequence[int], reference: Path | None = None
) -> NDArray[np.float64]:
    """Root mean square error of each section, pixels, after removing one rigid motion common to all of them.

    The truth is the block, or with `reference` where the alignment in that folder puts the block's own sections.
    """
    placed, truth = [], []
    for section in sections:
        points = tissue_points(acquired, section)
        there = acquired.on_block(section, points)
        placed.append(_mesh(output, section)(points))
        truth.append(there if reference is None else _mesh(reference, section)(there))
    rigid = fit_rigid(np.concatenate(placed), np.concatenate(truth), np.ones(sum(map(len, placed))))
    squares = [np.mean(np.sum((rigid(a) - b) ** 2, axis=1)) for a, b in zip(placed, truth, strict=True)]
    return np.sqrt(np.array(squares))


def error_beside_neighbours(acquired: Acquired, output: Path, sections: Sequence[int]) -> NDArray[np.float64]:
    """The same of each section against the one before and the one after: what a slow drift of the stack is not in.

    It is what can be told from images at all: neighbours that are wrong together look as if they were right.
    """
    places, wrong = [], []
    for section in sections:
        points = tissue_points(acquired, section)
        places.append(acquired.on_block(section, points))
        wrong.append(_mesh(output, section)(points) - places[-1])
    found = []
    for number, (place, error) in enumerate(zip(places, wrong, strict=True)):
        others = [n for n in (number - 1, number + 1) if 0 <= n < len(places)]
        beside = np.mean([LinearNDInterpolator(places[n], wrong[n])(place) for n in others], axis=0)
        found.append(np.sqrt(np.nanmean(np.sum((error - beside) ** 2, axis=1))))
    return np.array(found)


def rms(errors: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def enlarge(plane: NDArray[np.uint8], extent: int) -> NDArray[np.uint8]:
    """A plane of extent x extent pixels: mirror images of `plane` side by side."""
    return np.pad(plane, [(0, extent - n) for n in plane.shape], mode="symmetric")


def read_planes(name: str, count: int) -> NDArray[np.uint8]:
    volume: Volume = open_volume(name)
    _, height, width = volume.shape
    planes: NDArray[np.uint8] = volume.read(Box.of((0, 0, 0), (count, height, width)))
    return planes


def _mesh(output: Path, section: int):  # type: ignore[no-untyped-def]
    stored = load_mesh(mesh_path(output, section))
    assert stored is not None, f"section {section} has no mesh"
    return stored.mesh
