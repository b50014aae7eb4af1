"""The solver's tables, written while they are found: links, seams and objects as Parquet, of bounded memory.

The columns of links.parquet, ordered by subvolume_a, subvolume_b, a, b: `a`, `b` (uint64, supervoxel ids), `shared`
(voxels that carry both), `voxels_a`, `voxels_b` (of each in the overlap), `subvolume_a`, `subvolume_b` (the face),
`linked`, and `reason`, why not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from apps.reconciliation.batches import Batch
from apps.reconciliation.linking import LINKED, REASONS, Reasons

_LINKS = pa.schema(
    [
        ("a", pa.uint64()),
        ("b", pa.uint64()),
        ("shared", pa.uint32()),
        ("voxels_a", pa.uint32()),
        ("voxels_b", pa.uint32()),
        ("subvolume_a", pa.int32()),
        ("subvolume_b", pa.int32()),
        ("linked", pa.bool_()),
        ("reason", pa.dictionary(pa.int8(), pa.string())),
    ]
)
_SEAMS = pa.schema(
    [
        ("subvolume_a", pa.int32()),
        ("subvolume_b", pa.int32()),
        ("voxels", pa.int64()),
        ("both", pa.int64()),
        ("one", pa.int64()),
        ("vi", pa.float64()),
        ("pairs", pa.int64()),
        ("links", pa.int64()),
        ("linked_voxels", pa.int64()),
        ("agreement", pa.float64()),
    ]
)
OBJECTS_SCHEMA = pa.schema([("object", pa.uint64()), ("supervoxels", pa.int64()), ("own_voxels", pa.int64())])

_WAITING = 2


class TableWriter:
    """A Parquet file that grows by row groups, encoded in a thread beside the caller; a context manager.

    Tables wait in a short queue, so memory stays bounded where the disk is slower than the caller.
    """

    def __init__(self, path: Path, schema: pa.Schema, few_values: tuple[str, ...] = ()) -> None:
        # Ids and counts are mostly distinct, but near the one before: a dictionary of them would cost time and save
        # nothing, differences save a fifth of the time and half of the space.
        numbers = {field.name for field in schema if pa.types.is_integer(field.type)} - {*few_values}
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="lz4",
            use_dictionary=list(few_values),
            column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
        )
        self._schema = schema
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def write(self, columns: Mapping[str, Any]) -> None:
        """Add rows; columns by name, in any order."""
        arrays = [columns[field.name] for field in self._schema]
        table = pa.table(
            [
                array if isinstance(array, pa.Array) else pa.array(array, type=field.type)
                for array, field in zip(arrays, self._schema, strict=True)
            ],
            schema=self._schema,
        )
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._writer.write_table, table))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting and kind is None:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self._writer.close()


def links_writer(path: Path) -> TableWriter:
    return TableWriter(path, _LINKS, ("subvolume_a", "subvolume_b", "reason"))


def seams_writer(path: Path) -> TableWriter:
    return TableWriter(path, _SEAMS)


def link_rows(batch: Batch, reasons: Reasons) -> dict[str, Any]:
    """The rows of links.parquet of a batch."""
    a, b = batch.supervoxels()
    sizes = batch.faces.pairs
    return {
        "a": a,
        "b": b,
        "shared": batch.pairs.shared,
        "voxels_a": batch.pairs.voxels_a,
        "voxels_b": batch.pairs.voxels_b,
        "subvolume_a": np.repeat(batch.owner.astype(np.int32), sizes),
        "subvolume_b": np.repeat(batch.faces.neighbour.astype(np.int32), sizes),
        "linked": reasons == LINKED,
        "reason": pa.DictionaryArray.from_arrays(pa.array(reasons), pa.array(REASONS)),
    }


def seam_rows(batch: Batch, face: NDArray[np.int64], reasons: Reasons) -> dict[str, Any]:
    """The rows of seams.parquet of a batch: what was compared, and what of it the rule linked.

    face: of which face of the batch each pair is.  agreement: linked voxels of those that both fill; NaN for none.
    """
    linked = reasons == LINKED
    count = len(batch.owner)
    weights = batch.pairs.shared[linked]
    links = np.bincount(face[linked], minlength=count)
    voxels = np.bincount(face[linked], weights, minlength=count).astype(np.int64)
    both = batch.faces.both
    agreement = np.divide(voxels, both, out=np.full(count, math.nan), where=both > 0)
    return {
        "subvolume_a": batch.owner.astype(np.int32),
        "subvolume_b": batch.faces.neighbour.astype(np.int32),
        "voxels": batch.faces.voxels,
        "both": both,
        "one": batch.faces.one,
        "vi": batch.faces.vi,
        "pairs": batch.faces.pairs,
        "links": links,
        "linked_voxels": voxels,
        "agreement": agreement,
    }
