"""Unit files: what one subvolume has in common with its neighbours, kept with what it was taken from.

A unit is current as long as its boxes and the pieces it read are the same; a subvolume that is segmented again makes
its own unit and those of its lower neighbours out of date, and no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import DataError, StateError
from apps.core.files import make_folder
from apps.core.volumes import VoxelSize
from apps.reconciliation.columns import Header, read_columns, read_header, write_columns
from apps.reconciliation.comparing import compare_face, join_faces, list_objects
from apps.reconciliation.observations import Objects, Unit, from_columns, objects_of, to_columns
from apps.reconciliation.pieces import Pieces
from apps.reconciliation.surroundings import Surroundings

_FORMAT = 2


def unit_path(work: Path, number: int) -> Path:
    """No folder holds more than a thousand."""
    return work / f"units/{number // 1_000_000:03d}/{number // 1000 % 1000:03d}/{number:09d}.columns"


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
        about = self._origin(number, self.pieces.stamp)
        unit, content = compare_unit(self.pieces, number)
        about |= {"content": content, "voxel_size_nm": self.pieces.voxel_size(number)}
        make_folder(self.path(number).parent)
        write_columns(self.path(number), about, to_columns(unit))

    def current(self, numbers: Iterable[int]) -> Iterator[tuple[int, Header | None]]:
        """(number, header) of each unit, for ascending numbers; None where it is not there, or not of the pieces as
        they are now.

        Every piece is looked at once, and not once for each neighbour.  Raises DataError where one is missing.
        """
        stamps: dict[int, str] = {}

        def stamp(number: int) -> str:
            known = stamps.get(number)
            if known is None:
                known = stamps[number] = self.pieces.stamp(number)
            return known

        for number in numbers:
            origin = self._origin(number, stamp)
            del stamps[number]  # the next ones see subvolumes of higher number only
            try:
                header = read_header(self.path(number))
            except DataError:
                header = None  # a damaged one is made anew
            yield number, header if header is not None and header.about.items() >= origin.items() else None

    def check_current(self) -> Iterator[tuple[str, VoxelSize]]:
        """(digest, voxel size) of every unit, in their order; raises StateError where one is missing or out of date."""
        for number, header in self.current(range(len(self))):
            if header is None:
                what = "has changed since it was compared" if self.path(number).exists() else "is not compared yet"
                raise StateError(f"subvolume {number}: it or a neighbour of it {what}; run the action compare first")
            z, y, x = header.about["voxel_size_nm"]
            yield header.digest, (float(z), float(y), float(x))

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

    @cached_property
    def surroundings(self) -> Surroundings:
        return Surroundings(self.pieces.grid)

    def _origin(self, number: int, stamp: Callable[[int], str]) -> dict[str, Any]:
        """What the unit depends on: the format, the boxes, and the pieces (its own first) by their stamps."""
        pieces = [stamp(which) for which in (number, *self.surroundings.neighbours(number))]
        return {"format": _FORMAT, "boxes": self.surroundings.digest(number), "pieces": pieces}

    def _header(self, number: int) -> Header:
        header = read_header(self.path(number))
        if header is None:
            raise StateError(f"subvolume {number}: it is not compared yet; run the action compare first")
        return header
