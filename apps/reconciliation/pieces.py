"""The segmented subvolumes on disk: opened, checked and read, each error with the subvolume's number in it."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import fastremap

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.supervoxels import MAX_LOCAL
from apps.core.volumes import Array, Volume, VoxelSize, open_volume

# A subvolume has up to 26 neighbours, which are wanted again by the next ones, up to a layer of the grid later.
_OPEN = 2048


@dataclass(frozen=True)
class Pieces:
    """The label volumes of a grid's subvolumes, each of its read box, in the folder that inference wrote them to."""

    grid: SubvolumeGrid
    folder: Path
    _opened: OrderedDict[int, tuple[str, Volume]] = field(default_factory=OrderedDict, compare=False)

    def path(self, number: int) -> Path:
        return piece_path(self.folder, number)

    def stamp(self, number: int) -> str:
        """What changes whenever the piece is written anew: pieces are made aside and renamed, so one file tells.

        Raises DataError where the piece is missing.
        """
        try:
            status = os.stat(f"{self.path(number)}/zarr.json")  # noqa: PTH116 (a million times)
        except OSError as error:
            raise _missing(number, self.path(number)) from error
        return f"{status.st_mtime_ns}-{status.st_size}"

    def voxel_size(self, number: int) -> VoxelSize:
        size = self._open(number).voxel_size_nm
        assert size is not None, "an OME-Zarr volume says its voxel size"
        return size

    def read(self, number: int, box: Box | None = None) -> Array:
        """The voxels of `box` (in the grid's coordinates; the read box by default), zyx, of an integer dtype.

        Raises DataError where the piece is missing or damaged, is not of its read box's shape, or holds no labels.
        """
        volume, read_box = self._open(number), self.grid.subvolume(number).read_box
        oz, oy, ox = read_box.offset
        try:
            return volume.read((box or read_box).translate((-oz, -oy, -ox)))
        except Exception as error:  # zarr and its codecs raise what they like where a chunk is broken
            raise DataError(
                f"subvolume {number}: {self.path(number)} cannot be read ({type(error).__name__}: {error}); "
                f"segment {read_box} again"
            ) from error

    def check_labels(self, number: int, labels: Array) -> None:
        """Raise DataError where an id does not fit into a supervoxel id."""
        low, high = fastremap.minmax(labels)
        if low < 0 or high > MAX_LOCAL:
            raise DataError(
                f"subvolume {number}: {self.path(number)} holds the id {low if low < 0 else high}, which overflows; "
                f"expected 0 to {MAX_LOCAL}"
            )

    def _open(self, number: int) -> Volume:
        stamp = self.stamp(number)
        known = self._opened.get(number)
        if known is not None and known[0] == stamp:
            self._opened.move_to_end(number)
            return known[1]
        path, read_box = self.path(number), self.grid.subvolume(number).read_box
        try:
            volume = open_volume(str(path))
        except Exception as error:  # of metadata that are cut short or not JSON, too
            raise DataError(
                f"subvolume {number}: {path} cannot be opened ({type(error).__name__}: {error}); segment {read_box} "
                "again"
            ) from error
        if volume.dtype.kind not in "ui":
            raise DataError(f"subvolume {number}: {path} has dtype {volume.dtype}; expected integer labels")
        if volume.shape != read_box.shape:
            raise DataError(
                f"subvolume {number}: {path} has the shape {volume.shape}; expected {read_box.shape}, that of its "
                f"read box {read_box}: is the grid (box, shape, overlap, bounds) the one that it was segmented with?"
            )
        self._opened[number] = stamp, volume
        if len(self._opened) > _OPEN:
            self._opened.popitem(last=False)
        return volume


def _missing(number: int, path: Path) -> DataError:
    return DataError(f"subvolume {number}: {path} is missing; segment it first")
