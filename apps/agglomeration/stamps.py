"""Telling without reading it that a part of a volume has not changed: by the sizes and times of the files it is in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import zarr

from apps.core.boxes import Box
from apps.core.parameters import json_hash
from apps.core.volumes import Volume


def stamp(volume: Volume, box: Box) -> str:
    """Hash over size and time of change of every file that holds voxels of `box`; equal as long as nobody writes them.

    A chunk of OME-Zarr that is not there is as good as any other: it is there after a write.
    """
    if not isinstance(volume.array, zarr.Array):
        return json_hash([_state(Path(volume.name.rpartition(":")[0]))])
    array: zarr.Array[Any] = volume.array
    files = array.shards or array.chunks
    first = [a // n for a, n in zip(box.offset, files, strict=True)]
    past = [-(-b // n) for b, n in zip(box.end, files, strict=True)]
    folder = Path(volume.name) / array.path
    places = itertools.product(*(range(a, b) for a, b in zip(first, past, strict=True)))
    keys = [array.metadata.encode_chunk_key(place) for place in places]
    return json_hash([_state(folder / "zarr.json"), [_state(folder / key) for key in keys]])


def made_as(volume: Volume) -> str:
    """What tells a volume from one that was made anew under its name, and stays when it is given coarser levels."""
    if not isinstance(volume.array, zarr.Array):
        return json_hash([_state(Path(volume.name.rpartition(":")[0]))])
    return json_hash([_state(Path(volume.name) / volume.array.path / "zarr.json")])


def _state(path: Path) -> list[int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return []
    return [found.st_size, found.st_mtime_ns, found.st_ino]
