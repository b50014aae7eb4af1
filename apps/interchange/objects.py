"""The table of objects beside a segmentation, as the inference stage writes it: NAME.parquet beside NAME.zarr."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from apps.core.boxes import Triple
from apps.core.errors import DataError
from apps.core.tables import parquet_bytes


@dataclass(frozen=True)
class ObjectRow:
    """One object: its id, seed, first and last corner zyx in the volume's coordinates, voxels and FOV steps."""

    id: int
    seed: Triple
    low: Triple
    high: Triple
    voxels: int
    steps: int


def table_of(segmentation: str | Path) -> Path:
    """Where the table of a segmentation is."""
    return Path(segmentation).with_suffix(".parquet")


def objects_table(rows: Sequence[ObjectRow], id_dtype: DTypeLike) -> bytes:
    """Parquet: id, z, y, x (seed), low_z to high_x (the object's corners, both in), voxels, steps."""
    import pyarrow as pa

    columns = {"id": pa.array([row.id for row in rows], pa.from_numpy_dtype(np.dtype(id_dtype)))}
    places = {"": [row.seed for row in rows], "low_": [row.low for row in rows], "high_": [row.high for row in rows]}
    for prefix, points in places.items():
        for axis, name in enumerate("zyx"):
            columns[prefix + name] = pa.array([point[axis] for point in points], pa.int64())
    columns["voxels"] = pa.array([row.voxels for row in rows], pa.int64())
    columns["steps"] = pa.array([row.steps for row in rows], pa.int64())
    return parquet_bytes(pa.table(columns))


def read_seeds(path: str | Path) -> dict[int, tuple[Triple, int]]:
    """Seed zyx (volume coordinates) and FOV steps by id.

    Raises DataError where the table is missing, damaged or lacks a column.
    """
    import pyarrow as pa
    from pyarrow import parquet

    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected the Parquet table of a segmentation's objects")
    names = ["id", "z", "y", "x", "steps"]
    try:
        table = parquet.read_table(file, columns=names)
        columns = [table.column(name).to_pylist() for name in names]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file}: is not a table with the columns {', '.join(names)} ({error})") from error
    return {id: ((z, y, x), steps) for id, z, y, x, steps in zip(*columns, strict=True)}
