"""The solver's answer on disk: which object each supervoxel is of, the objects, the links and the seams.

One folder, made aside and renamed: `solution.json`, `links.parquet`, `objects.parquet`, `seams.parquet`, and in
`mapping` three arrays of raw little-endian numbers: `starts.i8` (first row of each subvolume, and at last the number of
rows), `local.u4` (id in the subvolume) and `object.u8` (object id) of each row.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize
from apps.reconciliation.nodes import NodeTable

SUMMARY, LINKS, OBJECTS, SEAMS = "solution.json", "links.parquet", "objects.parquet", "seams.parquet"
STARTS, LOCAL, OBJECT = "mapping/starts.i8", "mapping/local.u4", "mapping/object.u8"

_PARQUET_END = b"PAR1"


class Summary(Parameters, frozen=True, kw_only=True):
    """What the solver counted."""

    observations: Annotated[int, Meta(description="pairs of objects that share voxels")]
    links: Annotated[int, Meta(description="of those, the ones that are linked")]
    refused: Annotated[int, Meta(description="links refused, as they would have joined a forbidden pair")]
    supervoxels: Annotated[int, Meta(description="objects of all subvolumes")]
    objects: Annotated[int, Meta(description="objects that they became, of those with voxels in a write box")]
    faces: Annotated[int, Meta(description="faces that were compared")]
    both_voxels: Annotated[int, Meta(description="voxels of overlaps that both subvolumes fill")]
    linked_voxels: Annotated[int, Meta(description="of those, the ones whose two objects are linked")]
    worst_agreement: Annotated[float | None, Meta(description="smallest share of linked voxels of any face")]
    worst_face: Annotated[tuple[int, int] | None, Meta(description="the subvolumes of that face")]
    mean_vi: Annotated[float | None, Meta(description="VI in bits, mean over faces, weighted by voxels filled by both")]

    @property
    def agreement(self) -> float | None:
        """Share of linked voxels among those that both subvolumes fill, over all faces."""
        return self.linked_voxels / self.both_voxels if self.both_voxels else None


class SolutionRecord(Parameters, frozen=True, kw_only=True):
    """`solution.json`, written last."""

    identity: Annotated[str, Meta(description="hash of all that the solution depends on")]
    rules: Annotated[str, Meta(description="of that, hash of the rule and of the lists of pairs")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="of the segmentation, zyx in nanometres")]
    summary: Annotated[Summary, Meta(description="what the solver counted")]


@dataclass(frozen=True)
class Solution:
    """A solution that is there."""

    folder: Path
    record: SolutionRecord

    @classmethod
    def open(cls, folder: Path) -> Solution | None:
        """The solution in a folder; None where there is none, or not all of it."""
        try:
            found = cls(folder, SolutionRecord.load(folder / SUMMARY))
            rows = int(found.starts[-1])
            sizes = [(folder / name).stat().st_size for name in (LOCAL, OBJECT)]
        except (DataError, ParameterError, OSError, IndexError):
            return None
        tables = all(_ends_well(folder / name) for name in (LINKS, OBJECTS, SEAMS))
        return found if tables and sizes == [4 * rows, 8 * rows] else None

    @classmethod
    def expect(cls, folder: Path) -> Solution:
        """The same; raises StateError where there is none."""
        found = cls.open(folder)
        if found is None:
            raise StateError(f"{folder}: has no solution; run the action solve first")
        return found

    @property
    def links_file(self) -> Path:
        return self.folder / LINKS

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First row of each subvolume, and at last the number of rows."""
        return np.fromfile(self.folder / STARTS, np.int64)

    def mapping(self, subvolume: int) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """(ids in the subvolume, ascending; their objects' ids), [n] each."""
        start, end = (int(row) for row in self.starts[subvolume : subvolume + 2])
        return self._local[start:end], self._object[start:end]

    @cached_property
    def _local(self) -> NDArray[np.uint32]:
        return _mapped(self.folder / LOCAL, np.uint32)

    @cached_property
    def _object(self) -> NDArray[np.uint64]:
        return _mapped(self.folder / OBJECT, np.uint64)

    @cached_property
    def nodes(self) -> NodeTable:
        """The numbering of supervoxels by rows of the mapping."""
        sizes = np.diff(self.starts)
        last = self._local
        dense = sizes == 0
        filled = np.flatnonzero(~dense)
        dense[filled] = last[self.starts[filled + 1] - 1] == sizes[filled]
        return NodeTable(self.starts, dense, self.folder / LOCAL)


def _ends_well(table: Path) -> bool:
    """Whether a Parquet file is there and not cut short: its last bytes are those that every one ends with."""
    try:
        with table.open("rb") as stream:
            stream.seek(-len(_PARQUET_END), os.SEEK_END)
            return stream.read() == _PARQUET_END
    except OSError:
        return False


def _mapped(file: Path, dtype: type[Any]) -> NDArray[Any]:
    """A file of numbers, of which what is looked at is read; there may be none in it."""
    return np.asarray(np.memmap(file, dtype, "r")) if file.stat().st_size else np.empty(0, dtype)
