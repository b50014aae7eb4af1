"""Unit files: what one subvolume has in common with its neighbours, kept with what it was taken from.

A unit is current as long as its boxes and the pieces it read are the same; a subvolume that is segmented again makes
its own unit and those of its lower neighbours out of date, and no other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import DataError, StateError
from apps.core.parameters import json_hash
from apps.core.volumes import VoxelSize
from apps.reconciliation.columns import Header, read_columns, read_header, write_columns
from apps.reconciliation.comparing import compare_face, join_faces, list_objects
from apps.reconciliation.observations import Objects, Unit, from_columns, objects_of, to_columns
from apps.reconciliation.pieces import Pieces

_FORMAT = 1


def unit_path(work: Path, number: int) -> Path:
    """No folder holds more than a thousand."""
    return work / "units" / f"{number // 1_000_000:03d}" / f"{number // 1000 % 1000:03d}" / f"{number:09d}.columns"


def compare_unit(pieces: Pieces, number: int) -> tuple[Unit, str]:
    """What a subvolume says of itself and of its faces with those of higher number, and the hash of its labels.

    Memory: the subvolume's labels, and those of one face at a time.
    """
    subvolume = pieces.grid.subvolume(number)
    labels = pieces.read(number)
    pieces.check_labels(number, labels)
    origin = subvolume.read_box.offset
    objects = list_objects(labels, labels[subvolume.write_box.slices(origin)])
    neighbours, faces = [], []
    for other, common in pieces.grid.neighbours(number):
        theirs = pieces.read(other, common)
        pieces.check_labels(other, theirs)
        neighbours.append(other)
        faces.append(compare_face(labels[common.slices(origin)], theirs))
    content = hashlib.sha256(np.ascontiguousarray(labels, np.uint32).data).hexdigest()
    return Unit(objects, *join_faces(neighbours, faces)), content


@dataclass(frozen=True)
class UnitFiles:
    """The unit files of a grid in a work folder; the solver's Observations."""

    work: Path
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.pieces.grid)

    def path(self, number: int) -> Path:
        return unit_path(self.work, number)

    def make(self, number: int) -> None:
        """Compare subvolume `number` with its neighbours and keep what is found."""
        # Taken before the labels are read: a piece that is replaced meanwhile then makes this unit out of date.
        about = self._origin(number)
        unit, content = compare_unit(self.pieces, number)
        about |= {"content": content, "voxel_size_nm": self.pieces.voxel_size(number)}
        self.path(number).parent.mkdir(parents=True, exist_ok=True)
        write_columns(self.path(number), about, to_columns(unit))

    def is_current(self, number: int) -> bool:
        """Whether the unit is there, and of the pieces as they are now; raises DataError where a piece is missing."""
        origin = self._origin(number)
        try:
            header = read_header(self.path(number))
        except DataError:
            return False  # a damaged one is made anew
        return header is not None and header.about.items() >= origin.items()

    def check_current(self, number: int) -> tuple[str, VoxelSize]:
        """(digest, voxel size) of a unit; raises StateError where it is missing or out of date."""
        if not self.is_current(number):
            what = "has changed since it was compared" if self.path(number).exists() else "is not compared yet"
            raise StateError(f"subvolume {number}: it or a neighbour of it {what}; run the action compare first")
        header = self._header(number)
        z, y, x = header.about["voxel_size_nm"]
        return header.digest, (float(z), float(y), float(x))

    def digest(self, number: int) -> str:
        return self._header(number).digest

    def content(self, number: int) -> str:
        """SHA-256 of the labels that were compared (of the read box, uint32)."""
        return str(self._header(number).about["content"])

    def objects(self, number: int) -> Objects:
        return objects_of(read_columns(self.path(number), ["objects."])[1])

    def unit(self, number: int) -> Unit:
        return from_columns(read_columns(self.path(number))[1])

    def check_piece(self, number: int) -> None:
        """Raise StateError where the piece itself is not the one that was compared."""
        if self._header(number).about["pieces"][0] != self.pieces.stamp(number):
            raise StateError(
                f"subvolume {number}: {self.pieces.path(number)} has changed since it was compared; run compare and "
                "solve again"
            )

    def _origin(self, number: int) -> dict[str, Any]:
        """What the unit depends on: the format, the boxes, and the pieces (its own first) by their stamps."""
        grid = self.pieces.grid
        subvolume, neighbours = grid.subvolume(number), grid.neighbours(number)
        boxes = [subvolume.to_dict(), *([other, common.to_dict()] for other, common in neighbours)]
        stamps = [self.pieces.stamp(which) for which in (number, *(other for other, _ in neighbours))]
        return {"format": _FORMAT, "boxes": json_hash(boxes), "pieces": stamps}

    def _header(self, number: int) -> Header:
        header = read_header(self.path(number))
        if header is None:
            raise StateError(f"subvolume {number}: it is not compared yet; run the action compare first")
        return header
