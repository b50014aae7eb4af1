"""What is observed where subvolumes overlap: the objects of each, and which share voxels with which.

All columns are 1-D and of one row an object, a face or a pair.  A face is the common box of two subvolumes' read boxes;
it belongs to the lower of the two numbers.  Ids are local to a subvolume, 1 to 2^24 - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Objects:
    """The objects of one subvolume, by ascending id.

    Attributes:
        local: uint32 [n], ids.
        read, written: uint32 [n], voxels in the read box and in the write box.
    """

    local: NDArray[np.uint32]
    read: NDArray[np.uint32]
    written: NDArray[np.uint32]


@dataclass(frozen=True)
class Faces:
    """The faces of a subvolume with those of higher number, by ascending number.

    Attributes:
        neighbour: int64 [f], number of the other subvolume.
        voxels: int64 [f], of the common box.
        both: int64 [f], that carry an object of either.
        one: int64 [f], that carry an object of one of them only.
        vi: float64 [f], variation of information in bits of the two, over the voxels that both fill.
        pairs: int64 [f], how many pairs of objects share voxels.
    """

    neighbour: NDArray[np.int64]
    voxels: NDArray[np.int64]
    both: NDArray[np.int64]
    one: NDArray[np.int64]
    vi: NDArray[np.float64]
    pairs: NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of objects that share voxels, those of one face together and ordered by `a`, then `b`.

    Attributes:
        a, b: uint32 [n], ids in the subvolume of lower and of higher number.
        shared: uint32 [n], voxels that carry both.
        voxels_a, voxels_b: uint32 [n], voxels of each in the common box.
    """

    a: NDArray[np.uint32]
    b: NDArray[np.uint32]
    shared: NDArray[np.uint32]
    voxels_a: NDArray[np.uint32]
    voxels_b: NDArray[np.uint32]


@dataclass(frozen=True)
class Unit:
    """All that is observed from one subvolume."""

    objects: Objects
    faces: Faces
    pairs: Pairs


class Observations(Protocol):
    """Where the solver reads from: files, or whatever else gives units by number.

    They raise DataError where a unit is missing or damaged.
    """

    def __len__(self) -> int: ...

    def objects(self, number: int) -> Objects: ...

    def unit(self, number: int) -> Unit: ...


def to_columns(unit: Unit) -> dict[str, NDArray[Any]]:
    """The unit's columns, named `objects.local` and so on."""
    return {
        f"{part.name}.{field.name}": getattr(getattr(unit, part.name), field.name)
        for part in fields(unit)
        for field in fields(getattr(unit, part.name))
    }


def objects_of(columns: dict[str, NDArray[Any]]) -> Objects:
    return Objects(**_part(columns, "objects."))


def from_columns(columns: dict[str, NDArray[Any]]) -> Unit:
    """The inverse of `to_columns`."""
    return Unit(objects_of(columns), Faces(**_part(columns, "faces.")), Pairs(**_part(columns, "pairs.")))


def _part(columns: dict[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): column for name, column in columns.items() if name.startswith(prefix)}
