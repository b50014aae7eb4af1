"""The acquisition on disk: tiles, their table as a microscope writes it, and the truth, section by section.

A section's folder of tiles appears when all of them are in it, so that a run that was killed goes on with the next
section, and ends with the same bytes.  Memory is that of a slab of at most a quarter of a gigabyte, and of one section
as 32-bit numbers.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import msgspec
import numpy as np
from PIL import Image as Picture

from apps.core.boxes import Box
from apps.core.files import file_in_the_making, folder_in_the_making, write_atomically
from apps.core.progress import Reporter
from apps.core.volumes import Volume
from apps.phantom.acquisition import (
    AcquisitionDesign,
    Image,
    SectionTruth,
    acquire_section,
    place_tiles,
    section_truth,
)

TileFormat = Literal["tif", "png"]

TILES, TABLE, TRUTH, WARPS = "tiles", "tiles.csv", "truth.json", "warps.npz"

_SLAB_BYTES = 2**28


def acquire_volume(
    folder: Path, volume: Volume, design: AcquisitionDesign, seed: int, tile_format: TileFormat, report: Reporter
) -> int:
    """Acquire every section (plane) of a uint8 `volume` into `folder`: TILES, TABLE, TRUTH, WARPS.

    Goes on where a run was killed; what is there is taken for the same acquisition's.  Returns the number of tiles.
    """
    sections, shape = volume.shape[0], (volume.shape[1], volume.shape[2])
    (folder / TILES).mkdir(exist_ok=True)
    waiting = [section for section in range(sections) if not _tiles_of(folder, section).is_dir()]
    for section, image in _planes(volume, waiting):
        report(section, sections, "acquiring sections")
        acquired = acquire_section(image, design, seed, section)
        with folder_in_the_making(_tiles_of(folder, section)) as making:
            for number, tile in zip(acquired.numbers, acquired.tiles, strict=True):
                Picture.fromarray(tile).save(making / _tile_name(number, design, tile_format))
    return _write_tables(folder, sections, shape, design, seed, tile_format)


def _tiles_of(folder: Path, section: int) -> Path:
    return folder / TILES / f"{section:05d}"


def _tile_name(number: int, design: AcquisitionDesign, tile_format: TileFormat) -> str:
    row, column = divmod(number, design.grid[1])
    return f"r{row}c{column}.{tile_format}"


def _planes(volume: Volume, wanted: list[int]) -> Iterator[tuple[int, Image]]:
    """The planes of `wanted` numbers, in ascending order; every chunk is read as seldom as the slab's size allows."""
    _, height, width = volume.shape
    deep = max(1, min(int(volume.array.chunks[0]), _SLAB_BYTES // (height * width)))
    first, slab = -deep, np.zeros((0, height, width), np.uint8)
    for section in wanted:
        if section >= first + deep:
            first = section // deep * deep
            depth = min(deep, volume.shape[0] - first)
            slab = volume.read(Box.of((first, 0, 0), (depth, height, width)))
        yield section, cast(Image, slab[section - first])


def _write_tables(
    folder: Path, sections: int, shape: tuple[int, int], design: AcquisitionDesign, seed: int, tile_format: TileFormat
) -> int:
    """Table, truth and warps of all sections, which follow from design and seed alone; the number of tiles."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["path", "section", "x", "y"])
    placed, told = [], []
    warps: np.memmap[tuple[int, ...], np.dtype[np.float32]] | None = None
    unpacked = folder / ".warps.npy"
    for section in range(sections):
        truth = section_truth(shape, design, seed, section)
        if warps is None:
            warps = np.lib.format.open_memmap(unpacked, "w+", np.float32, (sections, *truth.warp.shape))
        warps[section] = truth.warp
        told.append(_told(truth))
        numbers, nominal, true = place_tiles(truth, design, seed)
        for number, (stage_y, stage_x), (y, x) in zip(numbers, nominal, true, strict=True):
            path = f"{TILES}/{section:05d}/{_tile_name(number, design, tile_format)}"
            table.writerow([path, section, float(stage_x), float(stage_y)])
            placed.append({"path": path, "section": section, "y": float(y), "x": float(x)})
    with file_in_the_making(folder / WARPS) as partial, partial.open("wb") as stream:
        np.savez(stream, warps=cast(np.ndarray, warps), warp_spacing=np.int64(design.warp_spacing))
    del warps
    unpacked.unlink()
    truth_file = {
        "shape": shape,
        "tile_shape": design.tile_shape(shape),
        "warp_spacing": design.warp_spacing,
        "tiles": placed,
        "sections": told,
    }
    write_atomically(folder / TRUTH, (json.dumps(truth_file, indent=1) + "\n").encode())
    write_atomically(folder / TABLE, text.getvalue().encode())
    return len(placed)


def _told(truth: SectionTruth) -> dict[str, object]:
    """What truth.json says of a section."""
    said: dict[str, object] = {
        "section": truth.section,
        "translation": truth.translation,
        "rotation_deg": truth.rotation_deg,
        "artefacts": [msgspec.to_builtins(artefact) for artefact in truth.artefacts],
    }
    if truth.fold is not None:
        said["fold"] = {"point": truth.fold.point, "normal": truth.fold.normal, "width": truth.fold.width}
    return said
