"""The index of a large table of synapses, kept in a file beside it: made when the table is looked at first.

The file is mapped into memory, so that a viewer starts at once and reads what is asked for.  It is of one table: of its
size, time and file number; another one makes it anew.  Where nothing can be written, the index is in memory alone.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from apps.core.errors import DataError
from apps.core.files import try_lock
from apps.synapses.table import read_synapses
from ensemble.viewing.synapse_index import SynapseIndex, build_index

# Smaller tables are indexed in no time, and need no file.
LEAST_KEPT = 50_000
# To be counted up when what `build_index` makes, or the order of its arrays, changes.
FORMAT = 1
MAGIC = b"synapses"
LONGEST_HEADER = 4096

Stamp = list[int]


def open_index(table: Path) -> SynapseIndex:
    """The index of a table: the one that is kept, or a new one.  Raises what `read_synapses` does."""
    stamp = _stamp(table)
    kept = _read(index_file(table), stamp) if stamp else None
    if kept is not None:
        return kept
    index = build_index(read_synapses(table))
    if len(index) < LEAST_KEPT or stamp is None or _stamp(table) != stamp:  # the last: it was replaced meanwhile
        return index
    _keep(index_file(table), stamp, index)
    return _read(index_file(table), stamp) or index


def index_file(table: Path) -> Path:
    """Where the index of a table is kept."""
    return table.with_name(f".{table.name}.view-index")


def _stamp(table: Path) -> Stamp | None:
    """What changes with the table; None where there is none."""
    try:
        found = table.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _shapes(synapses: int, cells: int, levels: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Array -> dtype and shape, in the order of the file."""
    return {
        "bounds": ("<f8", (2, 3)),
        "ends": ("<i8", (levels,)),
        "cells": ("<i8", (cells,)),
        "starts": ("<i8", (cells + 1,)),
        "orders": ("<i8", (3, synapses)),
        "ids": ("<u8", (synapses,)),
        "partners": ("<u8", (synapses, 2)),
        "lines": ("<f4", (synapses, 2, 3)),
        "confidence": ("<f4", (synapses,)),
    }


def _read(file: Path, stamp: Stamp) -> SynapseIndex | None:
    """The kept index; None where there is none, or it is of another table, of another format, or damaged."""
    try:
        with file.open("rb") as stream:
            magic, length = struct.unpack("<8sQ", stream.read(16))
            if magic != MAGIC or length > LONGEST_HEADER:
                return None
            header = json.loads(stream.read(length))
            if [header[name] for name in ("format", "table")] != [FORMAT, stamp]:
                return None
            shapes = _shapes(header["synapses"], header["cells"], header["levels"])
            content, place = np.memmap(stream, np.uint8, "r", stream.tell()), 0
        arrays: dict[str, Any] = {}
        for name, (kind, shape) in shapes.items():
            size = math.prod(shape) * np.dtype(kind).itemsize
            arrays[name] = content[place : place + size].view(kind).reshape(shape)
            place += size
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    index = SynapseIndex(**arrays)
    whole = place == len(content) and index.starts[-1] == len(index) and index.ends[-1] == len(index.cells)
    return index if whole else None


def _keep(file: Path, stamp: Stamp, index: SynapseIndex) -> None:
    """Write the index, unless another viewer is about it, or it cannot be written: then it is not kept."""
    temporary = file.with_name(f"{file.name}.partial")
    try:
        # The name is fixed and the lock ends with the process: what a killed viewer left is written over.
        with temporary.open("a+b") as stream:
            if not try_lock(stream) or os.fstat(stream.fileno()).st_ino != temporary.stat().st_ino:
                return
            try:
                _write(stream, stamp, index)
                temporary.replace(file)
            except OSError:
                temporary.unlink(missing_ok=True)
    except (OSError, DataError):
        return


def _write(stream: IO[bytes], stamp: Stamp, index: SynapseIndex) -> None:
    shapes = _shapes(len(index), len(index.cells), index.levels)
    assert set(shapes) == {field.name for field in fields(index)}
    counts = {"synapses": len(index), "cells": len(index.cells), "levels": index.levels}
    header = json.dumps({"format": FORMAT, "table": stamp, **counts}).encode()
    header += b" " * (-len(header) % 8)  # arrays of 8 bytes begin at multiples of 8
    stream.truncate(0)
    stream.write(struct.pack("<8sQ", MAGIC, len(header)) + header)
    for name, (kind, shape) in shapes.items():
        array = np.ascontiguousarray(getattr(index, name), kind)
        assert array.shape == shape
        stream.write(array.data)
    stream.flush()
    os.fsync(stream.fileno())
