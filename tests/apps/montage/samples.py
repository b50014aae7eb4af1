"""Small sections of EM-like texture, cut into tiles whose true offsets are known."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[Any]  # uint8, or uint16 where a test makes it that


@functools.cache
def texture(shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Grey levels about 128: membranes, organelles and fine grain."""
    rng = np.random.default_rng(seed)
    coarse, middle, fine = (ndimage.gaussian_filter(rng.standard_normal(shape), s) for s in (7.0, 3.0, 1.2))
    membranes = np.exp(-((coarse / coarse.std()) ** 2) * 20)
    image = 140 - 70 * membranes + 15 * middle / middle.std() + 8 * fine / fine.std()
    return ndimage.spline_filter(image, order=3, output=np.float32)


@dataclass
class Section:
    """Tiles [n], their true and nominal offsets (y, x) [n, 2]."""

    tiles: list[Image]
    true: NDArray[np.float64]
    nominal: NDArray[np.float64]

    def rms(self, positions: NDArray[np.float64]) -> float:
        """Error of positions [n, 2] in pixels, RMS along an axis, but for one shift of all."""
        error = positions - self.true
        return float(np.sqrt(np.mean((error - error.mean(axis=0)) ** 2)))


def cut(
    extent: int = 128,
    overlap: int = 26,
    grid: tuple[int, int] = (3, 3),
    jitter: float = 6.0,
    noise: float = 10.0,
    shade: float = 0.0,
    drift: float = 0.0,
    seed: int = 0,
) -> Section:
    """Cut tiles of `extent` pixels from a texture; `shade` is lost in the corners, `drift` spreads contrast."""
    rng = np.random.default_rng(seed)
    step = extent - overlap
    nominal = np.array([(step * i, step * j) for i in range(grid[0]) for j in range(grid[1])], float) + jitter + 4
    true = nominal + rng.uniform(-jitter, jitter, nominal.shape)
    size = [int(step * (n - 1) + extent + 2 * jitter + 8) for n in grid]
    spline = texture((size[0], size[1]), seed)
    r = np.linspace(-1, 1, extent)
    light = 1 - shade * (r[:, None] ** 2 + (r - 0.2) ** 2) / 2
    tiles = []
    for y, x in true:
        where = np.meshgrid(y + np.arange(extent), x + np.arange(extent), indexing="ij")
        grey = ndimage.map_coordinates(spline, where, order=3, prefilter=False)
        grey = ((grey - 128) * (1 + drift * rng.standard_normal()) + 128 + 60 * drift * rng.standard_normal()) * light
        tiles.append(np.clip(np.rint(grey + noise * rng.standard_normal(grey.shape)), 0, 255).astype(np.uint8))
    return Section(tiles, true, nominal)


def write(folder: Path, sections: dict[int, Section], name: str = "tiles.csv") -> Path:
    """Write the tiles as TIFF files and their table."""
    (folder / "tiles").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, section in sections.items():
        for index, (tile, (y, x)) in enumerate(zip(section.tiles, section.nominal, strict=True)):
            path = f"tiles/{number:03d}_{index:03d}.tif"
            tifffile.imwrite(folder / path, tile)
            rows.append({"path": path, "section": number, "x": x, "y": y, "magnification": 20000})
    return write_table(folder / name, rows)


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
