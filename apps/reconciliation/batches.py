"""Units in batches: columns long enough to be worked on as a whole, short enough to be held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from apps.core.supervoxels import supervoxel_ids
from apps.reconciliation.comparing import join_pairs
from apps.reconciliation.observations import Faces, Observations, Pairs, Unit

BATCH_PAIRS = 1 << 18

SupervoxelIds = NDArray[np.uint64]


@dataclass(frozen=True)
class Batch:
    """The faces and pairs of consecutive units.

    Attributes:
        units: how many there are up to the last one of this batch.
        owner: int64 [f], the subvolume of lower number of each face; `faces.neighbour` is the other.
        faces: their columns.
        pairs: the pairs of all faces, `faces.pairs[k]` in a row for face k.
    """

    units: int
    owner: NDArray[np.int64]
    faces: Faces
    pairs: Pairs

    def face(self) -> NDArray[np.int64]:
        """int64 [n], of which face of the batch each pair is."""
        return np.repeat(np.arange(len(self.owner)), self.faces.pairs)

    def supervoxels(self) -> tuple[SupervoxelIds, SupervoxelIds]:
        """The supervoxel ids of the pairs, uint64 [n] each."""
        return self._ids(self.owner, self.pairs.a), self._ids(self.faces.neighbour, self.pairs.b)

    def _ids(self, subvolume: NDArray[np.int64], local: NDArray[np.uint32]) -> SupervoxelIds:
        return supervoxel_ids(np.repeat(subvolume, self.faces.pairs), local)


def read_batches(observations: Observations, pairs: int = BATCH_PAIRS) -> Iterator[Batch]:
    """All units in the order of their numbers, `pairs` or a few more pairs at a time."""
    waiting: list[Unit] = []
    first = count = 0
    for number in range(len(observations)):
        unit = observations.unit(number)
        waiting.append(unit)
        count += len(unit.pairs.a)
        if count >= pairs or number + 1 == len(observations):
            yield _join(first, waiting)
            waiting, first, count = [], number + 1, 0


def _join(first: int, units: Sequence[Unit]) -> Batch:
    owner = np.repeat(np.arange(first, first + len(units)), [len(unit.faces.neighbour) for unit in units])
    columns = (np.concatenate([getattr(unit.faces, field.name) for unit in units]) for field in fields(Faces))
    return Batch(first + len(units), owner, Faces(*columns), join_pairs([unit.pairs for unit in units]))
