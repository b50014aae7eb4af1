"""The tables of an agglomeration, as Parquet: what a block was found to hold, and lists of pairs that users give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.agglomeration.contacts import DecisionPoints
from apps.agglomeration.reflooding import PairScore, Side
from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.files import make_folder, write_atomically
from apps.core.tables import parquet_bytes

if TYPE_CHECKING:
    import pyarrow as pa

Ids = NDArray[np.uint64]


def unit_path(folder: Path, number: int, suffix: str) -> Path:
    """Where the record of a block is; no folder holds more than a few thousand files."""
    return folder / f"{number // 1_000_000:03d}" / f"{number // 1000 % 1000:03d}" / f"{number:09d}{suffix}"


def edge_table(points: DecisionPoints, windows: Sequence[Box], scores: Sequence[PairScore]) -> pa.Table:
    """A row for each decision point: the pair, where, the window, and the scores; null where there is none.

    a, b uint64, a < b; z, y, x the point in voxels of the segmentation; low_*, high_* the window's first and last
    voxel; voxels_a, voxels_b in the window; of each flood (from_a_, from_b_) seed, voxels, recovers_a, recovers_b,
    deleted, steps; iou; and verdict, what became of the floods (see PairScore).
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"a": pa.array(points.a, pa.uint64()), "b": pa.array(points.b, pa.uint64())}
    for axis, letter in enumerate("zyx"):
        columns[letter] = pa.array(points.point[:, axis], pa.int64())
    columns["distance"] = pa.array(points.distance, pa.float64())
    columns["contacts"] = pa.array(points.contacts, pa.int64())
    for axis, letter in enumerate("zyx"):
        columns[f"low_{letter}"] = pa.array([window.offset[axis] for window in windows], pa.int64())
        columns[f"high_{letter}"] = pa.array([window.end[axis] - 1 for window in windows], pa.int64())
    columns["voxels_a"] = pa.array([score.voxels_a for score in scores], pa.int64())
    columns["voxels_b"] = pa.array([score.voxels_b for score in scores], pa.int64())
    for name in ("from_a", "from_b"):
        columns |= _side_columns(name, [getattr(score, name) for score in scores])
    columns["iou"] = pa.array([score.iou for score in scores], pa.float64())
    columns["verdict"] = pa.array([score.verdict for score in scores], pa.string())
    return pa.table(columns)


def _side_columns(name: str, sides: Sequence[Side | None]) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for axis, letter in enumerate("zyx"):
        seeds = [side.seed[axis] if side is not None and side.seed is not None else None for side in sides]
        columns[f"{name}_{letter}"] = pa.array(seeds, pa.int64())
    for field, kind in (
        ("voxels", pa.int64()),
        ("recovers_a", pa.float64()),
        ("recovers_b", pa.float64()),
        ("deleted", pa.float64()),
        ("steps", pa.int64()),
    ):
        columns[f"{name}_{field}"] = pa.array([getattr(side, field) if side else None for side in sides], kind)
    return columns


def write_table(path: Path, table: pa.Table, marks: Mapping[str, str] | None = None) -> None:
    """Write a Parquet file atomically; `marks` are kept in its metadata."""
    if marks:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **marks})
    make_folder(path.parent)
    write_atomically(path, parquet_bytes(table))


def read_table(path: Path) -> pa.Table:
    """A Parquet file.  Raises DataError that names it where it is missing or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such table") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: is a damaged Parquet table ({error}); remove it, and run the stage again") from error


def read_marks(path: Path) -> dict[str, str]:
    """What `write_table` kept in a file's metadata; nothing where the file is missing or damaged."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        found = parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return {}
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in found.items()}
