"""Tiles whose true offsets are known, for the benchmark of montage: of phantom sections and of real ones."""

from __future__ import annotations

import csv
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.phantom.acquisition import AcquisitionDesign, acquire_section

Image = NDArray[Any]
Points = NDArray[np.float64]

_DEPTH = 16  # planes of the phantom, the fewest it makes


@dataclass(frozen=True)
class Tiles:
    """A tile table on disk.

    true, nominal: section -> float64 [n, 2], (y, x), in the table's order.
    """

    table: Path
    shape: tuple[int, int]
    true: dict[int, Points]
    nominal: dict[int, Points]

    def files(self, section: int) -> list[Path]:
        return [self.table.parent / _path(section, number) for number in range(len(self.true[section]))]

    def error(self, section: int, positions: Points) -> float:
        """RMS error along an axis, pixels, of positions [n, 2] but for one shift of all."""
        wrong = positions - self.true[section]
        return float(np.sqrt(np.mean((wrong - wrong.mean(axis=0)) ** 2)))


def phantom_tiles(folder: Path, sections: int, extent: int, jitter: float, seed: int = 1) -> Tiles:
    """3 x 3 tiles, 10 % overlap, of planes of a phantom; but for the jitter, imaged as by default.

    The phantom's planes are half as large as the sections (`extent` pixels), which are their mirror images.
    """
    block = _phantom(extent // 2, seed)
    design = AcquisitionDesign(jitter=jitter)
    found = {}
    for section in range(sections):
        large = mirrored(block[section * _DEPTH // sections], extent, round(0.48 * extent))
        acquired = acquire_section(large, design, seed, section)
        found[section] = acquired.tiles, acquired.nominal, acquired.true
    return _write(folder, found)


@dataclass(frozen=True)
class Spoiling:
    """How badly a section is imaged: noise (grey levels), jitter (pixels), and what is left of its contrast."""

    noise: float
    jitter: float
    contrast: float


def spoilt_phantom_tiles(folder: Path, extent: int, spoilt: list[Spoiling], seed: int = 1) -> Tiles:
    """3 x 3 tiles, 20 % overlap, of planes of a phantom of `extent` pixels, each imaged as badly as it says."""
    block = _phantom(extent, seed)
    found = {}
    for section, spoiling in enumerate(spoilt):
        plane = block[section % _DEPTH].astype(np.float32)
        faint = np.rint(128 + spoiling.contrast * (plane - 128)).astype(np.uint8)
        design = AcquisitionDesign(overlap=0.2, jitter=spoiling.jitter, noise=spoiling.noise)
        acquired = acquire_section(faint, design, seed, section)
        found[section] = acquired.tiles, acquired.nominal, acquired.true
    return _write(folder, found)


@cache
def _phantom(extent: int, seed: int) -> NDArray[np.uint8]:
    """A phantom's image, uint8 (16, extent, extent); made once, as growing one takes seconds."""
    from apps.phantom.stage import STAGE as PHANTOM

    with tempfile.TemporaryDirectory(prefix="ensemble-phantom-") as folder:
        given = {"output": folder, "shape": [_DEPTH, extent, extent], "seed": seed}
        image: NDArray[np.uint8] = open_volume(PHANTOM.run(PHANTOM.parameters.from_json(given), silent).image).read()
    return image


def fib25() -> NDArray[np.uint8]:
    """The real block, uint8 (250, 250, 250).  Raises DataError where it is not at hand."""
    beside = Path(__file__).parents[1] / "../shared/data/fib25"
    file = Path(os.environ.get("ENSEMBLE_FIB25", beside)) / "training_sample1_raw.h5"
    if not file.is_file():
        raise DataError(f"{file}: no such file; ENSEMBLE_FIB25 names the folder that holds it")
    block: NDArray[np.uint8] = open_volume(f"{file}:raw").read()
    return block


def real_tiles(
    folder: Path, planes: list[Image], extent: int, overlap: int, jitter: float, noise: list[float], seed: int = 0
) -> Tiles:
    """3 x 3 tiles of each plane, interpolated at random offsets, with noise of its own (grey levels, by section)."""
    rng = np.random.default_rng(seed)
    step = extent - overlap
    inset = jitter + 3
    found = {}
    for section, (plane, level) in enumerate(zip(planes, noise, strict=True)):
        nominal = inset + step * np.array([(i, j) for i in range(3) for j in range(3)], float)
        true = nominal + rng.uniform(-jitter, jitter, nominal.shape)
        spline = ndimage.spline_filter(plane.astype(np.float32), order=3, output=np.float32)
        tiles = []
        for y, x in true:
            where = np.meshgrid(y + np.arange(extent), x + np.arange(extent), indexing="ij")
            grey = ndimage.map_coordinates(spline, where, order=3, prefilter=False)
            grey += level * rng.standard_normal(grey.shape)
            tiles.append(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
        found[section] = tiles, nominal, true
    return _write(folder, found)


def mirrored(plane: Image, extent: int, first_line: int) -> Image:
    """A larger plane [extent, extent] of a square one: its mirror images side by side, without a step between them.

    The mirror lines are at `first_line` and every width of the plane from there on: where no overlap is, so that all
    that an overlap shows is as it was imaged.
    """
    before = plane.shape[0] - first_line
    return np.pad(plane, [(0, extent)] * 2, mode="symmetric")[before : before + extent, before : before + extent]


def many_tiles(folder: Path, plane: Image, grid: int, extent: int, sections: int = 1, overlap: float = 0.1) -> Tiles:
    """grid x grid large tiles at whole-pixel offsets of an endless mirrored plane: for time and memory."""
    rng = np.random.default_rng(0)
    step = round(extent * (1 - overlap))
    period = np.concatenate([np.arange(plane.shape[0]), np.arange(plane.shape[0])[::-1]])
    found = {}
    for section in range(sections):
        nominal = 30 + step * np.array([(i, j) for i in range(grid) for j in range(grid)], float)
        true = nominal + rng.integers(-20, 21, nominal.shape).astype(float)
        tiles: list[Image] = []
        for y, x in true.astype(int):
            rows, columns = (period[(start + np.arange(extent)) % len(period)] for start in (y, x))
            noise = rng.integers(-15, 16, (extent, extent), dtype=np.int16)
            tiles.append(np.clip(plane[np.ix_(rows, columns)] + noise, 0, 255).astype(np.uint8))
        found[section] = tiles, nominal, true
    return _write(folder, found)


def _write(folder: Path, sections: dict[int, tuple[list[Image], Points, Points]]) -> Tiles:
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    table = folder / "tiles.csv"
    shape = (0, 0)
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "section", "x", "y"])
        for section, (tiles, nominal, _) in sections.items():
            for number, (tile, (y, x)) in enumerate(zip(tiles, nominal, strict=True)):
                shape = tile.shape
                tifffile.imwrite(folder / _path(section, number), tile)
                writer.writerow([_path(section, number), section, x, y])
    return Tiles(
        table,
        shape,
        {section: true for section, (_, _, true) in sections.items()},
        {section: nominal for section, (_, nominal, _) in sections.items()},
    )


def _path(section: int, number: int) -> str:
    return f"tiles/{section:03d}_{number:03d}.tif"
