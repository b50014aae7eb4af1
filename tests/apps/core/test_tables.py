"""Tables as files."""

from __future__ import annotations

import io

import pyarrow as pa
from pyarrow import parquet

from apps.core.tables import parquet_bytes


def test_a_table_is_one_run_of_bytes_that_reads_back() -> None:
    table = pa.table({"id": pa.array([1, 2**63], pa.uint64()), "name": ["a", None]}, metadata={"made": "now"})
    data = parquet_bytes(table)
    assert parquet_bytes(table.slice(0)) == data
    back = parquet.read_table(io.BytesIO(data))
    assert back.equals(table) and back.schema.metadata == {b"made": b"now"}
