"""The table of synapses: a row for each, as Parquet; and how it, or a truth of the same columns in CSV, is read.

Places are zyx in voxels of the image, voxel (0, 0, 0) having its middle at 0: what a phantom's `synapses.csv` says.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.files import write_atomically
from apps.core.tables import parquet_bytes
from apps.core.volumes import Volume

Floats = NDArray[np.float64]

_PLACES = (("", "centre"), ("pre_", "pre"), ("post_", "post"), ("direction_", "direction"))
_GIVEN = tuple(f"{prefix}{axis}" for prefix, _ in _PLACES for axis in "zyx")
REQUIRED = ("id", "pre", "post", *_GIVEN)
COLUMNS = ("id", "z", "y", "x", "pre", "post", *_GIVEN[3:], "confidence", "voxels")


@dataclass(frozen=True)
class SynapseTable:
    """n synapses, told by arrays.

    Attributes:
        id: int64 [n].
        centre: float64 [n, 3], the middle of the cleft.
        partners: uint64 [n, 2], the segments before and after the cleft (pre, post); 0: not known.
        points: float64 [n, 2, 3], a place inside either; the cleft's middle where it is not known.
        direction: float64 [n, 3], of length 1, from pre to post, its parts along the axes in nm (not voxels).
        confidence: float64 [n], 0 to 1.
        voxels: int64 [n], of the cleft; 0 where nobody has counted.
    """

    id: NDArray[np.int64]
    centre: Floats
    partners: NDArray[np.uint64]
    points: Floats
    direction: Floats
    confidence: Floats
    voxels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.id)

    def take(self, chosen: NDArray[Any]) -> Self:
        """The rows `chosen`, by number or by truth."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))

    def within(self, box: Box) -> Self:
        """Those whose cleft has its middle in a voxel of `box`."""
        voxel = np.rint(self.centre)
        return self.take(np.all((voxel >= box.offset) & (voxel < box.end), axis=1))

    @classmethod
    def none(cls) -> Self:
        """No synapses."""
        return cls(
            np.zeros(0, np.int64),
            np.zeros((0, 3)),
            np.zeros((0, 2), np.uint64),
            np.zeros((0, 2, 3)),
            np.zeros((0, 3)),
            np.zeros(0),
            np.zeros(0, np.int64),
        )


def write_synapses(path: str | Path, table: SynapseTable) -> None:
    """Write the table as Parquet with `COLUMNS`, atomically.  Raises DataError where it cannot be written."""
    import pyarrow as pa

    places = {"": table.centre, "pre_": table.points[:, 0], "post_": table.points[:, 1], "direction_": table.direction}
    columns: dict[str, NDArray[Any]] = {"id": table.id, "confidence": table.confidence, "voxels": table.voxels}
    columns |= {"pre": table.partners[:, 0], "post": table.partners[:, 1]}
    for prefix, values in places.items():
        columns |= {f"{prefix}{axis}": values[:, number] for number, axis in enumerate("zyx")}
    write_atomically(path, parquet_bytes(pa.table({name: pa.array(columns[name]) for name in COLUMNS})))


def read_synapses(path: str | Path) -> SynapseTable:
    """Read NAME.parquet, or NAME.csv with the columns `REQUIRED`; without `confidence` it is 1, without `voxels` 0.

    Raises DataError where the file is missing, damaged, lacks a column, or holds what is no number.
    """
    import pyarrow as pa

    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a table of synapses, Parquet or CSV")
    try:
        table = _read(file)
        missing = [name for name in REQUIRED if name not in table.column_names]
        if missing:
            raise DataError(f"{file}: lacks the columns {', '.join(missing)}; a table of synapses has {REQUIRED}")
        twice = [name for name in COLUMNS if table.column_names.count(name) > 1]
        if twice:
            raise DataError(f"{file}: has the columns {', '.join(twice)} more than once; expected each once")
        rows = table.num_rows

        def column(name: str, kind: pa.DataType, default: float = 0) -> NDArray[Any]:
            if name not in table.column_names:
                return np.full(rows, default, kind.to_pandas_dtype())
            values = table.column(name)
            if values.null_count:
                raise DataError(f"{file}: the column {name} has empty places; expected a number in every row")
            array: NDArray[Any] = values.cast(kind).to_numpy()
            return array

        found = {
            what: np.stack([column(f"{prefix}{axis}", pa.float64()) for axis in "zyx"], axis=1)
            for prefix, what in _PLACES
        }
        result = SynapseTable(
            id=column("id", pa.int64()),
            centre=found["centre"],
            partners=np.stack([column(name, pa.uint64()) for name in ("pre", "post")], axis=1),
            points=np.stack([found["pre"], found["post"]], axis=1),
            direction=found["direction"],
            confidence=column("confidence", pa.float64(), 1),
            voxels=column("voxels", pa.int64()),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: is no table of synapses ({error})") from error
    for name in ("centre", "points", "direction", "confidence"):
        if not np.isfinite(getattr(result, name)).all():
            raise DataError(f"{file}: {name} holds NaN or infinite numbers; expected finite ones")
    if not np.diff(np.sort(result.id)).all():
        raise DataError(f"{file}: some rows have the same id; expected one of its own for every synapse")
    return result


def _read(file: Path) -> Any:
    if file.suffix != ".csv":
        from pyarrow import parquet

        return parquet.read_table(file)
    import pyarrow as pa
    from pyarrow import csv

    # By themselves, ids over 2^63 would be read as floating point numbers, which do not keep them.
    kinds = {name: pa.uint64() for name in ("pre", "post")} | {"id": pa.int64()}
    kinds |= {name: pa.float64() for name in _GIVEN}
    return csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=kinds))


def sample_labels(labels: Volume, points: Floats, offset: Triple = (0, 0, 0)) -> NDArray[np.uint64]:
    """The labels at the voxels nearest to `points` [..., 3], zyx; 0 outside of the volume.

    `offset` is where the first voxel of the volume lies.  Read chunk by chunk, each chunk once.
    """
    voxels = np.rint(points.reshape(-1, 3)).astype(np.int64) - offset
    found = np.zeros(len(voxels), np.uint64)
    inside = np.flatnonzero(np.all((voxels >= 0) & (voxels < labels.shape), axis=1))
    # HDF5 need not be chunked; then any division will do.
    chunks = np.array(labels.array.chunks or (64, 64, 64))
    _, group = np.unique(voxels[inside] // chunks, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for members in np.split(inside[order], np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        if not len(members):
            continue
        low, high = voxels[members].min(axis=0), voxels[members].max(axis=0) + 1
        part = labels.read(Box.between((low[0], low[1], low[2]), (high[0], high[1], high[2])))
        found[members] = part[tuple((voxels[members] - low).T)]
    return found.reshape(points.shape[:-1])
