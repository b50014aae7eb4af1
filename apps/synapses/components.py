"""Clefts as connected components of voxels that are probable enough, found tile by tile.

Two voxels are connected where they share a face.  A tile tells the components it holds by itself, and which of them are
at its six faces; `join` puts those of all tiles together, so that what comes out is that of the whole volume at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from apps.core.boxes import Box, Triple
from apps.core.files import file_in_the_making
from apps.synapses.detector import Probabilities

CONNECTIVITY = 6

Ints = NDArray[np.int64]
Labels = NDArray[np.uint32]


@dataclass(frozen=True)
class Components:
    """n components, told by arrays; places are voxels of the volume, zyx.

    Attributes:
        first: int64 [n], the first voxel of each in C order, as its number in the volume.
        voxels: int64 [n].
        places: int64 [n, 3], the sum of the places of its voxels.
        probability: int64 [n], the sum of its voxels' probabilities, 255 being 1.
        low, high: int64 [n, 3], its first and last place along each axis, both in.
    """

    first: Ints
    voxels: Ints
    places: Ints
    probability: Ints
    low: Ints
    high: Ints

    def __len__(self) -> int:
        return len(self.first)

    def arrays(self) -> dict[str, Ints]:
        return {name: getattr(self, name) for name in NAMES}

    def take(self, chosen: NDArray[Any]) -> Components:
        return Components(**{name: array[chosen] for name, array in self.arrays().items()})

    def centres(self) -> NDArray[np.float64]:
        """Their middles [n, 3]."""
        centres: NDArray[np.float64] = self.places / np.maximum(self.voxels, 1)[:, None]
        return centres

    @classmethod
    def concatenate(cls, parts: list[Components]) -> Components:
        if not parts:
            none, places = np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
            return cls(none, none, places, none, places, places)
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in NAMES})


NAMES = ("first", "voxels", "places", "probability", "low", "high")


@dataclass(frozen=True)
class TileComponents:
    """The components of one tile, numbered from 1; `faces`: those on its first and last plane along z, y and x."""

    components: Components
    faces: tuple[Labels, ...]

    def save(self, path: Path, **besides: str) -> None:
        """Write as .npz, atomically, with strings that `read_strings` reads."""
        arrays: dict[str, NDArray[Any]] = {**self.components.arrays()}
        arrays |= {f"face{number}": face for number, face in enumerate(self.faces)}
        arrays |= {name: np.array(text) for name, text in besides.items()}
        with file_in_the_making(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)


def find_components(probabilities: Probabilities, threshold: int, box: Box, volume: Triple) -> TileComponents:
    """Components of the voxels of `probabilities` that are `threshold` or more.

    `box` is where they lie, in a volume with the extents `volume`.
    """
    labels: Labels = cc3d.connected_components(
        (probabilities >= threshold).astype(np.uint8), connectivity=CONNECTIVITY, out_dtype=np.uint32
    )
    faces = tuple(np.ascontiguousarray(np.take(labels, end, axis)) for axis in range(3) for end in (0, -1))
    where = np.flatnonzero(labels)
    number = labels.ravel()[where].astype(np.int64) - 1
    count = int(number.max()) + 1 if len(number) else 0
    places = np.stack(np.unravel_index(where, labels.shape), axis=1) + np.array(box.offset)
    low, high = np.full((count, 3), np.iinfo(np.int64).max), np.full((count, 3), -1)
    np.minimum.at(low, number, places)
    np.maximum.at(high, number, places)
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, number, np.ravel_multi_index(tuple(places.T), volume))
    sums = [np.zeros(count, np.int64) for _ in range(5)]
    for total, values in zip(sums, (np.ones_like(number), probabilities.ravel()[where], *places.T), strict=True):
        np.add.at(total, number, values.astype(np.int64))
    components = Components(first, sums[0], np.stack(sums[2:], axis=1), sums[1], low, high)
    return TileComponents(components, faces)


def join(
    grid: Triple, load: Callable[[int], Components], face: Callable[[int, int], Labels], report: Callable[[int], None]
) -> Components:
    """The components of a volume, in the order of their first voxels.

    Args:
        grid: tiles along z, y and x; they are numbered in that order.
        load: the components of a tile.
        face: of a tile, one of `TileComponents.faces` by number.
        report: told of every tile.
    """
    parts: list[Components] = []
    starts = np.zeros(int(np.prod(grid)) + 1, np.int64)
    for number in range(len(starts) - 1):
        parts.append(load(number))
        starts[number + 1] = starts[number] + len(parts[-1])
        report(number)
    pairs = [
        _touching(face(a, 2 * axis + 1), face(b, 2 * axis)) + np.array([starts[a] - 1, starts[b] - 1])
        for axis in range(3)
        for a, b in _neighbours(grid, axis)
        if starts[a] < starts[a + 1] and starts[b] < starts[b + 1]
    ]
    whole = Components.concatenate(parts)
    joined = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    graph = sparse.coo_matrix((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(whole),) * 2)
    count, group = csgraph.connected_components(graph, directed=False) if len(whole) else (0, np.zeros(0, np.int64))
    merged = _merge(whole, group, count)
    return merged.take(np.argsort(merged.first))


def _merge(parts: Components, group: NDArray[Any], count: int) -> Components:
    found = {name: np.zeros((count, *array.shape[1:]), np.int64) for name, array in parts.arrays().items()}
    for name, array in parts.arrays().items():
        if name in ("first", "low"):
            found[name][:] = np.iinfo(np.int64).max
            np.minimum.at(found[name], group, array)
        elif name == "high":
            np.maximum.at(found[name], group, array)
        else:
            np.add.at(found[name], group, array)
    return Components(**found)


def _neighbours(grid: Triple, axis: int) -> Iterator[tuple[int, int]]:
    """The numbers of all pairs of tiles that follow each other along `axis`."""
    numbers = np.arange(int(np.prod(grid))).reshape(grid)
    before = np.take(numbers, range(grid[axis] - 1), axis).ravel()
    after = np.take(numbers, range(1, grid[axis]), axis).ravel()
    return zip(before.tolist(), after.tolist(), strict=True)


def _touching(last: Labels, first: Labels) -> Ints:
    """Pairs [n, 2] of components that touch across the face between two tiles."""
    both = (last > 0) & (first > 0)
    return np.unique(np.stack([last[both], first[both]], axis=1).astype(np.int64), axis=0)
