"""Synapses as neuroglancer's precomputed annotations, made of the table when the viewer asks for them.

The format is neuroglancer's `neuroglancer_annotations_v1` with unsharded indices: a spatial index of several levels (a
viewer that shows much loads the coarse ones, each a random sample of what is left), one entry by id, and for each of
the two partners the synapses of a segment.  Nothing is written; a synapse takes about 100 bytes of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import VoxelSize
from apps.synapses.table import read_synapses

POINTS = ("pre", "post")
# Synapses in a cell of the spatial index, except on its last level, which has all that is left.
PER_CELL = 1000
MOST_LEVELS = 12
# The centre of voxel i is at i in the table, and at i + 1/2 in neuroglancer, which counts from a voxel's corner.
CENTRE = 0.5

ENTRY = np.dtype([("line", "<f4", (2, 3)), ("confidence", "<f4")])
NO_ROWS = np.empty(0, np.int64)
Cell = tuple[int, int, int]


@dataclass(frozen=True)
class Synapses:
    """A table of synapses, in the order of its rows.

    Attributes:
        ids: uint64, (n,), each once.
        partners: uint64, (n, 2): segments before and after the cleft; 0 where unknown.
        lines: float32, (n, 2, 3): from a point in the first to one in the second, xyz, in voxels of the image from the
            corner of its first one.
        confidence: float32, (n,).
    """

    ids: NDArray[np.uint64]
    partners: NDArray[np.uint64]
    lines: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper corner of a box around all lines, xyz; not empty along any axis."""
        if not len(self):
            return np.zeros(3), np.ones(3)
        points = self.lines.reshape(-1, 3).astype(np.float64)
        low = np.floor(points.min(axis=0))
        return low, np.maximum(np.floor(points.max(axis=0)) + 1, low + 1)

    @cached_property
    def levels(self) -> list[dict[Cell, NDArray[np.int64]]]:
        """Spatial index: for each level, from coarse to fine, cell xyz -> rows.  Deterministic."""
        low, high = self.bounds
        centres = self.lines.mean(axis=1, dtype=np.float64)
        left = np.random.default_rng(0).permutation(len(self))
        found: list[dict[Cell, NDArray[np.int64]]] = []
        while len(left) or not found:
            counts = self._counts(len(found))
            last = len(found) == MOST_LEVELS - 1
            place = ((centres[left] - low) / (high - low) * counts).astype(np.int64)
            flat = np.ravel_multi_index(tuple(np.clip(place, 0, counts - 1).T), tuple(counts))
            order = np.argsort(flat, kind="stable")
            keys, first, sizes = np.unique(flat[order], return_index=True, return_counts=True)
            rank = np.arange(len(left)) - np.repeat(first, sizes)
            chosen = rank < (len(left) + 1 if last else PER_CELL)
            cells: dict[Cell, NDArray[np.int64]] = {}
            for key, start, size in zip(keys, first, sizes, strict=True):
                x, y, z = np.unravel_index(key, tuple(counts))
                span = slice(start, start + size)
                cells[int(x), int(y), int(z)] = left[order[span][chosen[span]]]
            found.append(cells)
            left = left[np.sort(order[~chosen])]
        return found

    def _counts(self, level: int) -> NDArray[np.int64]:
        """Cells of a level along xyz: the longest sides are halved first, so that cells become about cubic."""
        low, high = self.bounds
        side = (high - low).max() / 2**level
        return np.maximum(1, np.round((high - low) / side)).astype(np.int64)

    @cached_property
    def _orders(self) -> tuple[tuple[NDArray[np.int64], NDArray[np.uint64]], ...]:
        """Rows in the order of id, of segment before and of segment after; and these, sorted."""
        keys = self.ids, self.partners[:, 0], self.partners[:, 1]
        orders = [np.argsort(key, kind="stable") for key in keys]
        return tuple((order, key[order]) for order, key in zip(orders, keys, strict=True))

    def _rows(self, which: int, number: int) -> NDArray[np.int64]:
        """Rows with this id (which = 0), with this segment before (1) or after (2) the cleft."""
        order, known = self._orders[which]
        if number >= 2**64:
            return order[:0]
        first, last = (np.searchsorted(known, np.uint64(number), side) for side in ("left", "right"))
        return order[first:last]

    def info(self, voxel_size_nm: VoxelSize) -> dict[str, Any]:
        """The file `info`, for an image of this voxel size (zyx)."""
        low, high = self.bounds
        spatial = []
        for number, cells in enumerate(self.levels):
            counts = self._counts(number)
            spatial.append(
                {
                    "key": f"spatial{number}",
                    "grid_shape": counts.tolist(),
                    "chunk_size": ((high - low) / counts).tolist(),
                    "limit": max([1, *map(len, cells.values())]),
                }
            )
        return {
            "@type": "neuroglancer_annotations_v1",
            "dimensions": dimensions(voxel_size_nm),
            "lower_bound": low.tolist(),
            "upper_bound": high.tolist(),
            "annotation_type": "LINE",
            "properties": [{"id": "confidence", "type": "float32", "description": "of the synapse, 0 to 1"}],
            "relationships": [{"id": end, "key": end} for end in POINTS],
            "by_id": {"key": "by_id"},
            "spatial": spatial,
        }

    def file(self, path: str) -> bytes | None:
        """The content of a file of the folder other than `info`; None where there is none.

        A cell or a segment without synapses has a file that says so.
        """
        folder, _, name = path.partition("/")
        if folder == "by_id" and name.isdecimal():
            return self._entry(rows[0]) if len(rows := self._rows(0, int(name))) else None
        if folder in POINTS and name.isdecimal():
            return self._entries(self._rows(1 + POINTS.index(folder), int(name)) if int(name) else NO_ROWS)
        number = folder.removeprefix("spatial")
        cell = tuple(int(part) for part in name.split("_") if part.isdecimal())
        if folder.startswith("spatial") and number.isdecimal() and int(number) < len(self.levels) and len(cell) == 3:
            return self._entries(self.levels[int(number)].get(cell, NO_ROWS))
        return None

    def _encode(self, rows: NDArray[np.int64]) -> bytes:
        entries = np.empty(len(rows), ENTRY)
        entries["line"], entries["confidence"] = self.lines[rows], self.confidence[rows]
        return entries.tobytes()

    def _entries(self, rows: NDArray[np.int64]) -> bytes:
        return b"".join((np.uint64(len(rows)).tobytes(), self._encode(rows), self.ids[rows].astype("<u8").tobytes()))

    def _entry(self, row: np.int64) -> bytes:
        """One synapse, and for either partner how many segments and which."""
        parts = [self._encode(np.array([row]))]
        for segment in self.partners[row]:
            known = segment != 0
            parts += [np.uint32(known).tobytes(), segment.astype("<u8").tobytes() if known else b""]
        return b"".join(parts)


def load_synapses(path: Path) -> Synapses:
    """Read a table of the stage `synapses`, or a phantom's truth.  Raises what `read_synapses` does."""
    table = read_synapses(path)
    lines = table.points[..., ::-1] + CENTRE
    return Synapses(
        table.id.astype(np.uint64), table.partners, lines.astype(np.float32), table.confidence.astype(np.float32)
    )


def dimensions(voxel_size_nm: VoxelSize) -> dict[str, list[Any]]:
    """Neuroglancer's coordinate space of voxels of this size (zyx): axis -> length in metres, in the order x, y, z."""
    return {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", reversed(voxel_size_nm), strict=True)}
