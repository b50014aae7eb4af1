"""What one unit has made of its objects, in one file: an index of the objects, and a run of bytes for each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.files import file_in_the_making, make_folder

_ROW = np.dtype([("id", "<u8"), ("voxels", "<i8"), ("start", "<i8"), ("length", "<i8")])


@dataclass(frozen=True)
class Fragment:
    """An object's part in a unit.

    Attributes:
        id: the object's.
        voxels: how many of its voxels the unit owns.
        data: what was made of it; may be empty.
    """

    id: int
    voxels: int
    data: bytes


def write_fragments(path: Path, fragments: Iterable[Fragment]) -> None:
    """Write the file of a unit, in the order of ids, whole or not at all; each id once."""
    rows = sorted(fragments, key=lambda fragment: fragment.id)
    index = np.zeros(len(rows), _ROW)
    index["id"] = [row.id for row in rows]
    index["voxels"] = [row.voxels for row in rows]
    index["length"] = [len(row.data) for row in rows]
    index["start"] = np.cumsum(index["length"]) - index["length"]
    make_folder(path.parent)
    with file_in_the_making(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, index)
        for row in rows:
            stream.write(row.data)


class FragmentFile:
    """The file of a unit, to read.

    Attributes:
        ids, voxels: uint64 and int64, of every object in it, ascending by id.
    """

    def __init__(self, path: Path) -> None:
        """Read the index.  Raises DataError, with the file's name, where the file is missing or damaged."""
        try:
            with path.open("rb") as stream:
                index = np.load(stream, allow_pickle=False)
                self._first = stream.tell()
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); remove it and run the action forge again") from error
        length = int(index["length"].sum()) if index.dtype == _ROW else -1
        if path.stat().st_size != self._first + length:
            raise DataError(f"{path}: is damaged; remove it and run the action forge again")
        self._index = index
        self.ids: NDArray[np.uint64] = index["id"].copy()
        self.voxels: NDArray[np.int64] = index["voxels"].copy()

    def extent(self, row: int) -> tuple[int, int]:
        """Where the bytes of the object in that row are: (first, how many)."""
        return self._first + int(self._index["start"][row]), int(self._index["length"][row])


def read_extent(path: Path, extent: tuple[int, int]) -> bytes:
    """The bytes of an object, at the place that `FragmentFile.extent` gave."""
    with path.open("rb") as stream:
        stream.seek(extent[0])
        return stream.read(extent[1])
