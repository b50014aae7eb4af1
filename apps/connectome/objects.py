"""How many voxels every object has: from a table, or counted in a segmentation, which need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple, tiles
from apps.core.errors import DataError
from apps.core.volumes import DEFAULT_CHUNKS, Volume

Ids = NDArray[np.uint64]
Counts = NDArray[np.int64]

# A part of the volume that is read at once has about so many voxels; and so many rows of counts wait to be summed.
_PART_VOXELS = 1 << 25
_WAITING = 1 << 22


@dataclass(frozen=True)
class Objects:
    """Objects and their sizes.

    Attributes:
        ids: uint64 [n], ascending, each once, none 0.
        voxels: int64 [n].
    """

    ids: Ids
    voxels: Counts

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The row of each of `ids`, any shape; -1 where there is no such object."""
        if not len(self.ids):
            return np.full(ids.shape, -1, np.int64)
        row = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[row] == ids, row, -1)


def count_voxels(volume: Volume, progress: Callable[[int, int], None] = lambda done, total: None) -> Objects:
    """Count the voxels of every object of a label volume, part by part; `progress` gets the parts done, and all.

    Memory: one part, and some 16 bytes an object several times over.

    Raises DataError where the volume does not hold integers from 0 on.
    """
    if volume.dtype.kind not in "ui":
        raise DataError(f"{volume.name}: has dtype {volume.dtype}; expected integer labels")
    parts = list(tiles(volume.box, _part_shape(volume)))
    ids: list[NDArray[Any]] = []
    counts: list[Counts] = []
    for number, part in enumerate(parts):
        found, voxels = fastremap.unique(volume.read(part), return_counts=True)
        if found.size and int(found[0]) < 0:
            raise DataError(f"{volume.name}: holds the label {int(found[0])} in {part}; expected labels from 0 on")
        ids.append(found.astype(np.uint64))
        counts.append(voxels.astype(np.int64))
        if sum(map(len, ids)) > _WAITING or number == len(parts) - 1:
            summed = _sum(np.concatenate(ids), np.concatenate(counts))
            ids, counts = [summed[0]], [summed[1]]
        progress(number + 1, len(parts))
    objects = ids[0] != 0
    return Objects(ids[0][objects], counts[0][objects])


def read_objects(path: str | Path) -> Objects:
    """Read a Parquet table with the columns `object` (or `id`) and `voxels`.

    A row of the object 0, or of no voxels (an object that lies in the margin of a subvolume alone), is left out.

    Raises DataError where it is missing, damaged, lacks a column, or has empty places, negative numbers or an object
    twice.
    """
    import pyarrow as pa
    from pyarrow import parquet

    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected the Parquet table of a segmentation's objects")
    try:
        names = parquet.read_schema(file).names
        name = next((name for name in ("object", "id") if name in names), None)
        if name is None or "voxels" not in names:
            raise DataError(f"{file}: has the columns {', '.join(names)}; expected object (or id) and voxels")
        table = parquet.read_table(file, columns=[name, "voxels"])
        if any(table.column(column).null_count for column in (name, "voxels")):
            raise DataError(f"{file}: has empty places in {name} or voxels; expected a number in every row")
        ids = table.column(name).cast(pa.uint64()).to_numpy()
        voxels = table.column("voxels").cast(pa.int64()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no table of objects ({error})") from error
    order = np.argsort(ids, kind="stable")
    order = order[(ids[order] != 0) & (voxels[order] != 0)]
    ids, voxels = ids[order], voxels[order]
    if (voxels < 0).any():
        raise DataError(
            f"{file}: object {ids[voxels < 0][0]} has {voxels[voxels < 0][0]} voxels; expected none under 0"
        )
    if (ids[1:] == ids[:-1]).any():
        raise DataError(f"{file}: object {ids[1:][ids[1:] == ids[:-1]][0]} is there twice; expected one row an object")
    return Objects(ids, voxels)


def _part_shape(volume: Volume) -> Triple:
    """Whole chunks, and about as many voxels as a part is to have: along x first, then y, then z."""
    shape = list(volume.array.chunks or DEFAULT_CHUNKS)
    for axis in (2, 1, 0):
        room = max(1, _PART_VOXELS // int(np.prod(shape)))
        shape[axis] *= min(room, -(-volume.shape[axis] // shape[axis]))
    z, y, x = shape
    return z, y, x


def _sum(ids: Ids, counts: Counts) -> tuple[Ids, Counts]:
    """The counts of equal ids together, ids ascending."""
    order = np.argsort(ids, kind="stable")
    ids, counts = ids[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return ids[first], np.add.reduceat(counts, first) if len(first) else counts
