"""The table of objects that the stages of morphology leave beside their files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.core.files import file_in_the_making

OBJECTS = "objects.parquet"


def write_objects(folder: Path, objects: Iterator[list[dict[str, Any]]], measures: dict[str, str]) -> None:
    """Write `objects.parquet`: `id` uint64, `voxels` int64, and measures by name with their pyarrow type.

    Bucket by bucket, in no order of ids; none is held for longer than its bucket.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"id": "uint64", "voxels": "int64", **measures}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in types.items()])
    with file_in_the_making(folder / OBJECTS) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for some in objects:
            columns = {name: [row[name] for row in some] for name in types}
            writer.write_table(pa.table(columns, schema=schema))
