"""Synapses as neuroglancer's precomputed annotations, made of the table's index when the viewer asks for them.

The format is neuroglancer's `neuroglancer_annotations_v1` with unsharded indices: a spatial index of several levels (a
viewer that shows much loads the coarse ones, each a random sample of what is left), one entry by id, and for each of
the two partners the synapses of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import VoxelSize
from ensemble.viewing.kept_index import open_index
from ensemble.viewing.synapse_index import SynapseIndex

POINTS = ("pre", "post")

ENTRY = np.dtype([("line", "<f4", (2, 3)), ("confidence", "<f4")])
Rows = NDArray[np.int64] | slice


@dataclass(frozen=True)
class Synapses:
    """The files of a table of synapses, by its index."""

    index: SynapseIndex

    def __len__(self) -> int:
        return len(self.index)

    @property
    def partners(self) -> NDArray[np.uint64]:
        """[n, 2]: segments before and after the cleft; 0 where unknown."""
        return self.index.partners

    @property
    def lines(self) -> NDArray[np.float32]:
        """[n, 2, 3]: the two ends, xyz, in voxels of the image from the corner of its first one."""
        return self.index.lines

    def info(self, voxel_size_nm: VoxelSize) -> dict[str, Any]:
        """The file `info`, for an image of this voxel size (zyx)."""
        low, high = self.index.bounds
        spatial = []
        for level in range(self.index.levels):
            counts = self.index.counts(level)
            spatial.append(
                {
                    "key": f"spatial{level}",
                    "grid_shape": counts.tolist(),
                    "chunk_size": ((high - low) / counts).tolist(),
                    "limit": max(1, self.index.most(level)),
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
            return self._entry(rows[0]) if len(rows := self.index.with_id(int(name))) else None
        if folder in POINTS and name.isdecimal():
            known = int(name) != 0
            return self._entries(self.index.with_partner(POINTS.index(folder), int(name)) if known else slice(0, 0))
        level = folder.removeprefix("spatial")
        cell = tuple(int(part) for part in name.split("_") if part.isdecimal())
        if folder.startswith("spatial") and level.isdecimal() and int(level) < self.index.levels and len(cell) == 3:
            return self._entries(self.index.in_cell(int(level), cell))
        return None

    def _encode(self, rows: Rows) -> bytes:
        lines = self.lines[rows]
        entries = np.empty(len(lines), ENTRY)
        entries["line"], entries["confidence"] = lines, self.index.confidence[rows]
        return entries.tobytes()

    def _entries(self, rows: Rows) -> bytes:
        ids = self.index.ids[rows]
        return b"".join((np.uint64(len(ids)).tobytes(), self._encode(rows), ids.astype("<u8").tobytes()))

    def _entry(self, row: np.int64) -> bytes:
        """One synapse, and for either partner how many segments and which."""
        parts = [self._encode(np.array([row]))]
        for segment in self.partners[row]:
            known = segment != 0
            parts += [np.uint32(known).tobytes(), segment.astype("<u8").tobytes() if known else b""]
        return b"".join(parts)


def load_synapses(path: Path) -> Synapses:
    """Read a table of the stage `synapses`, or a phantom's truth.  Raises what `read_synapses` does."""
    return Synapses(open_index(path))


def dimensions(voxel_size_nm: VoxelSize) -> dict[str, list[Any]]:
    """Neuroglancer's coordinate space of voxels of this size (zyx): axis -> length in metres, in the order x, y, z."""
    return {axis: [size * 1e-9, "m"] for axis, size in zip("xyz", reversed(voxel_size_nm), strict=True)}
