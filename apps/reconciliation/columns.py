"""A file of named columns, each with a digest: a few hundred microseconds to read, and never taken for whole if not.

Layout: 8 bytes of magic, 4 of the header's length and 4 of its CRC-32 (little-endian), the header (JSON: `about`, a
dictionary of the writer's; `columns`, for each its name, dtype, length and digest; `digest` of all columns), then the
columns, one by one.
Parquet would do, but opening one takes longer than reading what a subvolume has to say, and there are millions of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.files import write_atomically

Columns = dict[str, NDArray[Any]]

_MAGIC = b"ENSCOL02"
_START = struct.Struct("<8sII")
_DIGEST_BYTES = 16
# Read at once: the start and the header of most files.
_FIRST_BYTES = 4096


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        about: the writer's dictionary.
        columns: (name, dtype, length, digest) of each, in their order.
        digest: of all columns, whatever `about` says: equal content, equal digest.
        begin: where the first column begins, in bytes.
    """

    about: dict[str, Any]
    columns: tuple[tuple[str, str, int, str], ...]
    digest: str
    begin: int


class _Text(msgspec.Struct, frozen=True):
    """The JSON of a header."""

    about: dict[str, Any]
    columns: tuple[tuple[str, str, int, str], ...]
    digest: str


_decode = msgspec.json.Decoder(_Text).decode


def write_columns(path: Path, about: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> Header:
    """Write 1-D arrays, atomically.  Raises DataError where the place cannot be written."""
    data = {name: np.ascontiguousarray(column).tobytes() for name, column in columns.items()}
    described = tuple((name, columns[name].dtype.str, len(columns[name]), _digest(data[name])) for name in columns)
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]
    text = json.dumps({"about": about, "columns": described, "digest": digest}).encode()
    head = _START.pack(_MAGIC, len(text), zlib.crc32(text)) + text
    write_atomically(path, b"".join([head, *data.values()]))
    return Header(dict(about), described, digest, len(head))


def read_header(path: Path) -> Header | None:
    """The header of a file; None where there is none.  Raises DataError where it is something else, or unreadable."""
    try:
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 (a million times)
            return _header(stream, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_columns(path: Path, prefixes: Collection[str] = ("",)) -> tuple[Header, Columns]:
    """The header, and the columns whose names begin with one of the prefixes.

    Raises DataError where the file is missing, no such file, cut short, or does not hold what was written.
    """
    try:
        with path.open("rb") as stream:
            header = _header(stream, path)
            return header, dict(_columns(stream, header, path, tuple(prefixes)))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); run the action compare again") from error


def _header(stream: BinaryIO, path: Path) -> Header:
    data = stream.read(_FIRST_BYTES)
    magic, length, checksum = _START.unpack_from(data) if len(data) >= _START.size else (b"", 0, 0)
    if magic != _MAGIC:
        raise damaged(path)
    begin = _START.size + length
    while len(data) < begin:
        more = stream.read(min(begin - len(data), os.fstat(stream.fileno()).st_size))
        if not more:
            raise damaged(path)
        data += more
    text = data[_START.size : begin]
    if zlib.crc32(text) != checksum:
        raise damaged(path)
    said = _decode(text)
    return Header(said.about, said.columns, said.digest, begin)


def _columns(stream: BinaryIO, header: Header, path: Path, prefixes: tuple[str, ...]) -> list[tuple[str, NDArray[Any]]]:
    found, place = [], header.begin
    for name, dtype, length, digest in header.columns:
        size = np.dtype(dtype).itemsize * length
        if name.startswith(prefixes):
            stream.seek(place)
            data = stream.read(size)
            if _digest(data) != digest:
                raise damaged(path)
            found.append((name, np.frombuffer(data, dtype)))
        place += size
    return found


def damaged(path: Path) -> DataError:
    return DataError(f"{path}: is damaged; remove it and run the action compare again")


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
