"""The levels of an OME-Zarr volume, and how each is cut into pieces that are written at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import Volume, VoxelSize, open_volume

# Chunks along each axis of a piece.
_SIDE = 4


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        volume: open to read.
        factor: its voxels are so many of level 0, zyx.
        chunks: in which it is written, zyx.
        pieces: boxes of whole chunks.
    """

    volume: Volume
    factor: Triple
    chunks: Triple
    pieces: SubvolumeGrid

    @property
    def voxel_size_nm(self) -> VoxelSize:
        assert self.volume.voxel_size_nm is not None
        return self.volume.voxel_size_nm


def open_levels(name: str, chunks: Triple | None) -> list[Level]:
    """All levels of the volume, level 0 first, to be written in `chunks` (each level's own by default).

    Raises DataError where it is no OME-Zarr, or a level's voxels are not whole numbers of level 0's, from its corner
    on: neuroglancer's precomputed format could not say where they are.
    """
    base = open_volume(name)
    size = base.voxel_size_nm
    if not isinstance(base.array, zarr.Array) or size is None:
        raise DataError(f"{name}: is not OME-Zarr, so its voxel size is not known; make it one with the stage ingest")
    entries = json.loads((Path(name) / "zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]["datasets"]
    levels = [_level(base, (1, 1, 1), chunks)]
    scale, shift = _place(entries[0])
    for entry in entries[1:]:
        own, start = _place(entry)
        factor = _factor([a / b for a, b in zip(own, scale, strict=True)])
        expected = (
            None if factor is None else [t + s * (f - 1) / 2 for t, s, f in zip(shift, scale, factor, strict=True)]
        )
        if factor is None or any(abs(a - b) > 1e-3 * s for a, b, s in zip(start, expected or [], scale, strict=True)):
            raise DataError(
                f"{name}: level {entry['path']} has voxels of {own} at {start}; expected whole numbers of level 0's "
                f"{scale}, from its first voxel on, as the stage multiscale makes them"
            )
        z, y, x = (a * f for a, f in zip(size, factor, strict=True))
        array = zarr.open_array(Path(name) / entry["path"], mode="r")
        levels.append(_level(Volume(f"{name}/{entry['path']}", (z, y, x), array), factor, chunks))
    return levels


def pieces_of(levels: Sequence[Level]) -> list[tuple[int, Box]]:
    """Every piece of every level: (level, box), in their order."""
    return list(itertools.chain.from_iterable(((n, p.write_box) for p in lv.pieces) for n, lv in enumerate(levels)))


def _level(volume: Volume, factor: Triple, chunks: Triple | None) -> Level:
    of_array: Triple = volume.array.chunks
    z, y, x = (min(a, b) for a, b in zip(chunks or of_array, volume.shape, strict=True))
    grid = SubvolumeGrid(box=volume.box, shape=(z * _SIDE, y * _SIDE, x * _SIDE))
    return Level(volume, factor, (z, y, x), grid)


def _place(entry: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Scale and translation of a level, in the axes' units."""
    found = {transform["type"]: transform for transform in entry["coordinateTransformations"]}
    return found["scale"]["scale"], found.get("translation", {}).get("translation", [0.0, 0.0, 0.0])


def _factor(ratio: list[float]) -> Triple | None:
    z, y, x = (round(r) for r in ratio)
    near = all(abs(r - n) < 1e-3 and n >= 1 for r, n in zip(ratio, (z, y, x), strict=True))
    return (z, y, x) if near else None
