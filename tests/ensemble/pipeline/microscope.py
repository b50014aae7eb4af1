"""Tiles of a few small sections, as a microscope would have written them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import tifffile

from apps.core.progress import silent
from apps.core.stage import load_stage

MONTAGE = {"voxel_size_nm": [40, 8, 8], "search": 12, "chunk": 64, "blend": 4}
ALIGNMENT = {
    "matching": {"spacing": 16, "block": 32, "reach": 2},
    "rendering": {"chunks": [2, 64, 64], "group": [1, 8, 8]},
}


def acquire(folder: Path) -> Path:
    """Sixteen sections of 1 x 2 tiles under `folder`; returns their table."""
    stage = load_stage("phantom")
    motion = {"translation": 2, "rotation_deg": 0.5, "deformation": 0.5, "margin": 8}
    parameters = {
        "output": str(folder),
        "shape": [16, 128, 192],
        "seed": 3,
        "design": {"noise": 0},
        "acquisition": {"grid": [1, 2], "overlap": 0.3, "jitter": 3, **motion},
    }
    stage.run(stage.parameters.from_json(parameters), silent)
    return folder / "tiles.csv"


def list_sections(source: Path, table: Path, sections: int) -> None:
    """Write a table of the first `sections` sections of `source`; the tiles lie beside it."""
    with source.open() as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["section"]) < sections]
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def tiles_of(table: Path, section: int) -> list[Path]:
    return sorted((table.parent / "tiles" / f"{section:05d}").glob("*.tif"))


def spoil(table: Path, section: int) -> None:
    """Make the section's tiles fit each other badly: noise over the image."""
    rng = np.random.default_rng(5)
    for file in tiles_of(table, section):
        image = tifffile.imread(file)
        noisy = image.astype(float) * 0.4 + rng.normal(60, 40, image.shape)
        tifffile.imwrite(file, np.clip(noisy, 1, 255).astype(np.uint8))
