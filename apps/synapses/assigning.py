"""The phases `assign` and `finish`: partners of the clefts, batch by batch, then the table of synapses."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, StateError
from apps.core.files import file_in_the_making
from apps.core.parameters import json_hash
from apps.core.parts import Part, share
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume, VoxelSize
from apps.synapses.components import CONNECTIVITY, NAMES, Components
from apps.synapses.detector import FULL
from apps.synapses.partners import Reach, find_partners
from apps.synapses.records import Paths, read_record, text_of
from apps.synapses.table import SynapseTable, write_synapses

_BATCH = 64  # clefts of one unit of work


class PartnerWork:
    """The clefts of a volume, and the segmentation that their partners are looked up in."""

    def __init__(
        self,
        clefts: Volume,
        vesicles: Volume | None,
        segmentation: Volume,
        segmentation_offset: Triple,
        voxel_size_nm: VoxelSize,
        threshold: float,
        reach: Reach,
        paths: Paths,
    ) -> None:
        """`segmentation_offset`: where its first voxel lies in the image.

        Raises StateError where the phase `join` has not been, or had another threshold, DataError where the
        segmentation is no labels.
        """
        if segmentation.dtype.kind not in "ui":
            raise DataError(f"{segmentation.name}: has dtype {segmentation.dtype}; expected a segmentation of integers")
        record = read_record(paths.components)
        if record is None:
            raise StateError(f"{paths.output}: its clefts are not joined; run the action join first")
        self.components = Components(**{name: record[name] for name in NAMES})
        self.too_large = int(record["too_large"])
        self._clefts, self._vesicles, self._segmentation = clefts, vesicles, segmentation
        self._segmentation_box = segmentation.box.translate(segmentation_offset)
        self._size, self._reach, self._paths = voxel_size_nm, reach, paths
        self._threshold = max(1, round(threshold * FULL))
        # A cleft's voxels are read again, from its first one on: with another threshold they would be others.
        if "threshold" not in record or int(record["threshold"]) != self._threshold:
            raise StateError(
                f"{paths.output}: its clefts were joined with another threshold than {threshold:g}; give the same, or "
                "run the actions detect and join again"
            )
        far = max(reach.contact, reach.vesicles)
        z, y, x = (math.ceil(far / size) + 1 for size in voxel_size_nm)
        self._margin: Triple = (z, y, x)
        settings = [segmentation.name, _age(segmentation), segmentation_offset, reach.contact, reach.vesicles]
        made_of = [text_of(record, "identity"), vesicles is not None, voxel_size_nm, _BATCH, code_version()]
        self._identity = json_hash([settings, made_of])

    def __len__(self) -> int:
        """Batches of clefts."""
        return -(-len(self.components) // _BATCH)

    def assign(self, part: Part | None, report: Reporter) -> int:
        """Do the batches of a part that are not done yet; returns how many those were."""
        numbers, made = share(len(self), part), 0
        for done, number in enumerate(numbers):
            report(done, len(numbers), "looking for partners")
            file = self._paths.batch(number)
            if self._known(number) is not None:
                continue
            self._paths.table.unlink(missing_ok=True)
            first = number * _BATCH
            rows = [self._assign(index) for index in range(first, min(first + _BATCH, len(self.components)))]
            arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            file.parent.mkdir(parents=True, exist_ok=True)
            with file_in_the_making(file) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays, identity=np.array(self._identity))
            made += 1
        report(len(numbers), len(numbers), "looking for partners")
        return made

    def finish(self) -> SynapseTable:
        """The table of all synapses, written.  Raises DataError that names clefts without a record of partners."""
        parts = []
        for number in range(len(self)):
            record = self._known(number)
            if record is None:
                raise DataError(
                    f"{self._paths.output}: the partners of clefts {number * _BATCH + 1} to "
                    f"{min((number + 1) * _BATCH, len(self.components))} are missing; run the action assign again"
                )
            parts.append(record)
        names = [field.name for field in fields(SynapseTable)]
        table = (
            SynapseTable(**{name: np.concatenate([part[name] for part in parts]) for name in names})
            if parts
            else SynapseTable.none()
        )
        write_synapses(self._paths.table, table)
        return table

    def _known(self, number: int) -> dict[str, NDArray[Any]] | None:
        record = read_record(self._paths.batch(number))
        return record if text_of(record, "identity") == self._identity else None

    def _assign(self, index: int) -> dict[str, NDArray[Any]]:
        """A row of the table, by the names of SynapseTable."""
        own = self.components
        low, high = own.low[index], own.high[index] + 1
        tight = Box.between((low[0], low[1], low[2]), (high[0], high[1], high[2]))
        window = tight.grow(self._margin).intersection(self._clefts.box)
        cleft = np.zeros(window.shape, bool)
        cleft[tight.slices(window.offset)] = self._component(index, tight)
        vesicles = None if self._vesicles is None else self._vesicles.read(window)
        found = find_partners(cleft, self._segments(window), vesicles, self._size, self._reach)
        probability = int(own.probability[index]) / int(own.voxels[index]) / FULL
        return {
            "id": np.int64(index + 1),
            "centre": own.centres()[index],
            "partners": np.array(found.segments, np.uint64),
            "points": found.points + window.offset,
            "direction": found.direction,
            "confidence": np.float64(probability * found.certainty),
            "voxels": own.voxels[index],
        }

    def _component(self, index: int, box: Box) -> NDArray[np.bool_]:
        """The voxels of a component in the box that just holds it, in which it is connected as it is in the volume."""
        import cc3d

        labels = cc3d.connected_components(
            (self._clefts.read(box) >= self._threshold).astype(np.uint8), connectivity=CONNECTIVITY
        )
        first = np.unravel_index(int(self.components.first[index]), self._clefts.shape)
        place = tuple(int(a) - o for a, o in zip(first, box.offset, strict=True))
        mask: NDArray[np.bool_] = labels == labels[place]
        return mask

    def _segments(self, window: Box) -> NDArray[Any]:
        there = window.intersection(self._segmentation_box)
        segments = np.zeros(window.shape, self._segmentation.dtype)
        if not there.empty:
            oz, oy, ox = self._segmentation_box.offset
            segments[there.slices(window.offset)] = self._segmentation.read(there.translate((-oz, -oy, -ox)))
        return segments


def _age(volume: Volume) -> int:
    """When a volume was made: stages make them as a whole, under another name first.  0 where a file does not tell."""
    path = Path(volume.name)
    # Level 0's own metadata, which stay as they are when a volume gets coarser levels.
    file = path / volume.array.path / "zarr.json" if path.is_dir() else Path(volume.name.rpartition(":")[0])
    return file.stat().st_mtime_ns if file.is_file() else 0
