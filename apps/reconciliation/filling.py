"""Voxels that a subvolume leaves empty where it writes, and that a neighbour who sees them too has filled.

A network that comes from another side fills what this one did not reach, or threw away as too small a part of an object
that is large next door.  What a subvolume has filled itself stays as it is, so nothing is joined by this.  How near a
volume in many subvolumes comes to one in one piece, `benchmarks.subvolume_invariance` measures.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apps.reconciliation.relabelling import relabel
from apps.reconciliation.solution import Solution
from apps.reconciliation.units import UnitFiles

Mapping = tuple[NDArray[np.uint32], NDArray[np.uint64]]

# What a subvolume gives is wanted by each of its neighbours, up to a layer of the grid later.
_REMEMBERED = 1 << 16


@dataclass(frozen=True)
class Filling:
    """The neighbours of the subvolumes of a solution, and what these can give.

    An object takes part if it has voxels in the write box of its own subvolume: others are not among the objects.
    """

    units: UnitFiles
    solution: Solution
    _hashes: dict[int, str] = field(default_factory=dict, compare=False)

    def identity(self, number: int) -> list[str]:
        """What the filled voxels of a write box depend on, for each neighbour that reaches into it."""
        return [f"{other}-{self.given(other)}" for other in self.units.surroundings.reaching(number)]

    def fill(self, number: int, voxels: NDArray[np.uint64]) -> int:
        """Fill the empty `voxels` (uint64, zyx) of a write box in place; returns how many have been filled.

        Of several neighbours that fill a voxel the one with the smallest number counts.  Raises StateError where a
        neighbour is not the one that was compared, and DataError where it is missing or damaged.
        """
        pieces, filled = self.units.pieces, 0
        write_box = pieces.grid.subvolume(number).write_box
        for other in self.units.surroundings.reaching(number):
            common = write_box.intersection(pieces.grid.subvolume(other).read_box)
            part = voxels[common.slices(write_box.offset)]
            empty = part == 0
            if not empty.any():
                continue
            self.units.check_piece(other)
            labels = pieces.read(other, common)
            self.units.check_piece(other)  # it was not replaced while it was read
            theirs = relabel(labels, *self._giving(other))
            empty &= theirs != 0
            part[empty] = theirs[empty]
            filled += int(np.count_nonzero(empty))
        return filled

    def _giving(self, number: int) -> Mapping:
        """The mapping of a subvolume, 0 for objects that do not take part."""
        local, objects = self.solution.mapping(number)
        own = self.units.objects(number).written > 0
        return local, np.where(own, objects, np.uint64(0))

    def given(self, number: int) -> str:
        """Hash of what a subvolume has to give: its labels, their mapping, and where it writes."""
        known = self._hashes.get(number)
        if known is None:
            local, objects = self.solution.mapping(number)
            said = f"{self.units.content(number)} {self.units.surroundings.write_box(number)}".encode()
            known = hashlib.sha256(said + local.tobytes() + objects.tobytes()).hexdigest()
            if len(self._hashes) >= _REMEMBERED:
                del self._hashes[next(iter(self._hashes))]
            self._hashes[number] = known
        return known
