"""Lists of pairs of supervoxels that a user gives: those that must stay apart, and links that are not to be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from apps.core.errors import DataError

_MAX_ID = (1 << 53) - 1


def read_pairs(path: str | None) -> NDArray[np.uint64]:
    """The pairs of a table (CSV with a header, or Parquet) with the columns a and b: uint64 [n, 2], a < b, sorted.

    No path, no pairs.  Raises DataError where the file is missing or unreadable, a column is missing, or something is
    no supervoxel id.
    """
    if path is None:
        return np.empty((0, 2), np.uint64)
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected a table (.csv or .parquet) with the columns a and b")
    try:
        columns = ["a", "b"]
        if path.endswith(".parquet"):
            table = pyarrow.parquet.read_table(path, columns=columns)
        else:
            options = pyarrow.csv.ConvertOptions(include_columns=columns)
            table = pyarrow.csv.read_csv(path, convert_options=options)
        found = [_ids(table.column(name), name, path) for name in columns]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table with the columns a and b ({error})") from error
    pairs = np.sort(np.stack(found, axis=1), axis=1)
    same = pairs[:, 0] == pairs[:, 1]
    if same.any():
        raise DataError(f"{path}: names the pair {pairs[same][0, 0]}, {pairs[same][0, 0]}; expected two supervoxels")
    return np.unique(pairs, axis=0)


def _ids(column: Any, name: str, path: str) -> NDArray[np.uint64]:
    # Floats are refused: a spreadsheet that has turned ids into them may have changed them.
    if len(column) == 0:
        return np.empty(0, np.uint64)
    if not pa.types.is_integer(column.type) or column.null_count:
        raise DataError(f"{path}: column {name} is of type {column.type}; expected supervoxel ids, whole numbers")
    values: NDArray[Any] = column.to_numpy()
    if values.min() < 1 or values.max() > _MAX_ID:
        wrong = values.min() if values.min() < 1 else values.max()
        raise DataError(f"{path}: column {name} holds {wrong}; expected supervoxel ids, 1 to {_MAX_ID}")
    return values.astype(np.uint64)
