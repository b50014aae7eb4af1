"""The volume in the making: boxes of it are relabelled, or taken over from the output that is to be replaced.

A box has a record when its voxels are written.  The record's identity is that of the labels and of their mapping, so a
box is written again only where one of them has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import NO_ROOM, DataError, ParameterError, StateError
from apps.core.files import make_folder
from apps.core.parameters import json_hash
from apps.core.volumes import Array, Volume, VoxelSize, create_shared_volume, open_volume, open_volume_to_write
from apps.reconciliation.box_records import BoxRecord, EarlierRecords
from apps.reconciliation.filling import Filling
from apps.reconciliation.relabelling import relabel
from apps.reconciliation.settings import IN_THE_MAKING
from apps.reconciliation.solution import Solution
from apps.reconciliation.units import UnitFiles

_FORMAT = 3


@dataclass(frozen=True)
class Making:
    """The volume that a solution is written to.

    Attributes:
        units: what was compared.
        solution: its answer.
        output: the name that the volume gets when it is whole.
        chunks: of the volume, zyx.
        manifest: where the records of the boxes of the volume are that has the output's name now.
        fill: whether voxels that a subvolume leaves empty are its neighbours' (see filling.py).
    """

    units: UnitFiles
    solution: Solution
    output: Path
    chunks: Triple
    manifest: Path
    fill: bool

    @property
    def path(self) -> Path:
        return self.units.work / IN_THE_MAKING

    @cached_property
    def earlier(self) -> EarlierRecords:
        """The manifest's records."""
        return EarlierRecords.read(self.manifest)

    @property
    def voxel_size(self) -> VoxelSize:
        return self.solution.record.voxel_size_nm

    @cached_property
    def volume(self) -> Volume:
        """Opened to write.  Raises StateError where it is not there."""
        if not self.path.is_dir():
            raise StateError(f"{self.path}: is not there; run the action solve first")
        return open_volume_to_write(self.path)

    def corners(self, number: int) -> tuple[Triple, Triple]:
        """First corner and end of the write box of a subvolume, zyx in the volume's coordinates."""
        oz, oy, ox = self.units.pieces.grid.box.offset
        (z0, z1), (y0, y1), (x0, x1) = self.units.surroundings.write_box(number)
        return (z0 - oz, y0 - oy, x0 - ox), (z1 - oz, y1 - oy, x1 - ox)

    def box(self, number: int) -> Box:
        """The write box of a subvolume, in the volume's coordinates."""
        return Box.between(*self.corners(number))

    def identity(self, number: int) -> str:
        """What the voxels of a box depend on."""
        theirs = self._filling.identity(number) if self.fill else None
        return json_hash([_FORMAT, self.corners(number), self._filling.given(number), theirs])

    def is_finished(self) -> bool:
        """Whether the output is there, and of just these boxes."""
        count = len(self.units)
        return (
            not self.path.exists()
            and self.output.is_dir()
            and len(self.earlier) == count
            and self._is_alike(self.output)
            and all(self.earlier.identity(number) == self.identity(number) for number in range(count))
        )

    def prepare(self) -> None:
        """Have a volume to write to; one that is there and fits is kept with its boxes.  For one process alone."""
        if self.path.exists() and self._is_alike(self.path):
            return
        # Records first: without them nothing is taken for written.
        for leftover in (self._records, self.path):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            leftover.unlink(missing_ok=True)
        shape = self.units.pieces.grid.box.shape
        create_shared_volume(self.path, shape, np.uint64, self.voxel_size, self.chunks)

    def record(self, number: int) -> BoxRecord | None:
        """The record of a box as the solution wants it; None where it is not written, or not so."""
        try:
            record = BoxRecord.from_json(self._record(number).read_bytes())
        except (OSError, ParameterError):
            return None
        return record if record.identity == self.identity(number) else None

    def write(self, number: int) -> bool:
        """Have the box of a subvolume written; returns False where it was there."""
        if self.record(number) is not None:
            return False
        try:
            # A kill between chunks must not leave a record of what is no longer there.
            self._record(number).unlink(missing_ok=True)
            record = self._take_over(number) or self._relabel(number)
        except OSError as error:
            where, why = f"{self.path}: {self.box(number)}", error.strerror or error
            if error.errno in NO_ROOM:
                raise DataError(f"{where} cannot be written ({why}); give a place with room") from error
            what = f"{error.filename}: {why}" if error.filename else why
            raise DataError(
                f"{where} cannot be made ({what}); see to what is read and written, and run the same again"
            ) from error
        make_folder(self._record(number).parent)
        record.save(self._record(number))
        return True

    def clear(self) -> None:
        """Remove the records, which a manifest has by now."""
        shutil.rmtree(self._records, ignore_errors=True)

    @property
    def _records(self) -> Path:
        return self.units.work / "boxes"

    def _record(self, number: int) -> Path:
        return self._records / f"{number // 1_000_000:03d}/{number // 1000 % 1000:03d}/{number:09d}.json"

    def _is_alike(self, path: Path) -> bool:
        """Whether a volume has the shape, chunks and voxel size that this one is to have."""
        try:
            volume = open_volume(str(path))
        except DataError:
            return False
        given = volume.shape, volume.dtype, tuple(volume.array.chunks), volume.voxel_size_nm
        shape = self.units.pieces.grid.box.shape
        return given == (shape, np.dtype(np.uint64), self.chunks, self.voxel_size)

    def _relabel(self, number: int) -> BoxRecord:
        """Read the labels of a box, give them their objects' ids, and write them."""
        pieces, units = self.units.pieces, self.units
        units.check_piece(number)
        labels = pieces.read(number, pieces.grid.subvolume(number).write_box)
        units.check_piece(number)  # it was not replaced while it was read
        local, objects = self.solution.mapping(number)
        voxels = relabel(labels, local, objects)
        by_neighbours = self._filling.fill(number, voxels) if self.fill else 0
        self.volume.write(self.box(number), voxels)
        return _describe(number, self.identity(number), voxels, by_neighbours)

    @cached_property
    def _filling(self) -> Filling:
        return Filling(self.units, self.solution)

    def _take_over(self, number: int) -> BoxRecord | None:
        """Give the volume the chunks that the output has of a box, where they are what is wanted; else None."""
        earlier = self.earlier.record(number)
        if earlier is None or earlier.identity != self.identity(number) or not self._fits:
            return None
        box = self.box(number)
        for chunk in _chunks(box, self.chunks):
            source, target = self.output / chunk, self.path / chunk
            target.unlink(missing_ok=True)
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # told by the voxels' hash
                    _link_or_copy(source, target)
        try:
            voxels = self.volume.read(box)
        except DataError:
            return None
        return earlier if sha256(voxels) == earlier.sha256 else None

    @cached_property
    def _fits(self) -> bool:
        return self._is_alike(self.output)


def sha256(voxels: Array) -> str:
    """Of the voxels in C order, as little-endian uint64."""
    return hashlib.sha256(np.ascontiguousarray(voxels, "<u8").data).hexdigest()


def _describe(number: int, identity: str, voxels: NDArray[np.uint64], by_neighbours: int) -> BoxRecord:
    objects = fastremap.unique(voxels)
    return BoxRecord(
        subvolume=number,
        identity=identity,
        sha256=sha256(voxels),
        voxels=voxels.size,
        filled=int(np.count_nonzero(voxels)),
        by_neighbours=by_neighbours,
        objects=int(np.count_nonzero(objects)),
    )


def _chunks(box: Box, chunks: Triple) -> Iterator[Path]:
    """The files of the chunks that a box covers, in an OME-Zarr folder of one level (zarr v3, default keys)."""
    ranges = (range(a // c, -(-b // c)) for a, b, c in zip(box.offset, box.end, chunks, strict=True))
    for z, y, x in itertools.product(*ranges):
        yield Path("0", "c", str(z), str(y), str(x))


def _link_or_copy(source: Path, target: Path) -> None:
    """One file of two names, where the file system can: chunks are replaced as a whole, never written into."""
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        partial.rename(target)
