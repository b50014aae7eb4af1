"""Plan: a segmentation cut into units, each with what its neighbours need to join it; and reading a unit.

A unit owns its write box and also sees one plane of voxels past it, on the sides where the volume goes on: so two
neighbours share a plane, in which surfaces meet exactly and centre lines end in the same voxel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
import zarr
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.progress import Reporter
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import Volume, VoxelSize, open_volume


@dataclass(frozen=True)
class Cut:
    """What a unit sees of the segmentation.

    Attributes:
        labels: zyx, unsigned, read box; small numbers that stand for ids, 0 for no object.
        ids: uint64, the id of each of these numbers but 0, from number 1 on.
        voxels: int64, how many voxels of each are in the write box.
        box, own: read box and write box.
    """

    labels: NDArray[Any]
    ids: NDArray[np.uint64]
    voxels: NDArray[np.int64]
    box: Box
    own: Box


def unknown_objects(segmentation: str, ids: Collection[int], count: int | None = None) -> DataError:
    """The error that names objects which were asked for and are not there; `count`: how many are, where it is known."""
    some = ", ".join(map(str, sorted(ids)[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")
    among = "" if count is None else f" among its {count:,}"
    return DataError(f"objects {some}: {segmentation} has no such objects{among}; give ids of objects that it has")


@dataclass(frozen=True)
class Segmentation:
    """A segmentation and how it is cut.

    Attributes:
        volume: of integers from 0 on.
        voxel_size_nm: zyx.
        grid: the units; their write boxes tile the volume.
        objects: the ids that are wanted; None for all but 0.
    """

    volume: Volume
    voxel_size_nm: VoxelSize
    grid: SubvolumeGrid
    objects: tuple[int, ...] | None

    def identity(self) -> dict[str, Any]:
        """What the work on it depends on; a volume made anew under its name is another."""
        store = Path(str(self.volume.name)).absolute()
        made = store / str(self.volume.array.path) / "zarr.json"
        return {
            "segmentation": str(store),
            "made": made.stat().st_mtime_ns,
            "voxel_size_nm": list(self.voxel_size_nm),
            "shape": list(self.volume.shape),
            "unit": list(self.grid.shape),
            "objects": None if self.objects is None else sorted(set(self.objects)),
        }

    @cached_property
    def _wanted(self) -> NDArray[np.uint64] | None:
        return None if self.objects is None else np.array(sorted({0, *self.objects}), np.uint64)

    def check_named(self, report: Reporter) -> None:
        """Look for the objects that are named, until all are seen; of all objects nothing has to be known.

        Raises DataError that names those which are not there.
        """
        left = set(self.objects or ())
        seen: NDArray[np.uint64] = np.empty(0, np.uint64)
        units = len(self.grid) if left else 0
        for unit in range(units):
            report(unit, units, "looking for the objects")
            found = fastremap.unique(self.volume.read(self.grid.subvolume(unit).write_box))
            found = found[found > 0].astype(np.uint64)
            left.difference_update(found.tolist())
            if not left:
                return
            seen = np.union1d(seen, found)
        if left:
            raise unknown_objects(str(self.volume.name), left, len(seen))

    def read_box(self, unit: int) -> Box:
        """A unit's write box, and a plane past each of its ends where the volume goes on."""
        own = self.grid.subvolume(unit).write_box
        z, y, x = own.shape
        return Box.of(own.offset, (z + 1, y + 1, x + 1)).intersection(self.volume.box)

    def cut(self, unit: int) -> Cut:
        """Read a unit.  Raises DataError where an id is negative or the volume cannot be read."""
        box, own = self.read_box(unit), self.grid.subvolume(unit).write_box
        labels = self.volume.read(box)
        if labels.dtype.kind == "i":
            if int(labels.min()) < 0:
                raise DataError(f"{self.volume.name}: has the label {labels.min()} in {box}; expected ids from 0 on")
            labels = labels.view(np.dtype(f"u{labels.dtype.itemsize}"))
        if self._wanted is not None:
            fits = self._wanted[self._wanted <= np.uint64(np.iinfo(labels.dtype).max)].tolist()
            labels = fastremap.mask_except(labels, fits, in_place=True)
        # preserve_zero keeps no object as 0, whatever comes first.
        small, table = fastremap.renumber(labels, preserve_zero=True, in_place=True)
        ids = np.zeros(max(table.values(), default=0) + 1, np.uint64)
        for identifier, number in table.items():
            ids[number] = identifier
        inside = small[own.slices(box.offset)]
        voxels = np.bincount(inside.reshape(-1), minlength=len(ids)) if len(ids) > 1 else np.zeros(1, np.int64)
        return Cut(small, ids[1:], voxels[1:].astype(np.int64), box, own)


def open_segmentation(name: str, shape: Triple, objects: tuple[int, ...] | None) -> Segmentation:
    """Open a segmentation and cut it into units of `shape` (zyx voxels).

    Raises DataError where it is missing, no OME-Zarr (whose voxel size is known), or not of integers.
    """
    volume = open_volume(name)
    if not isinstance(volume.array, zarr.Array) or volume.voxel_size_nm is None:
        raise DataError(f"{name}: is not OME-Zarr, so its voxel size is not known; make it one with the stage ingest")
    if volume.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {volume.dtype}; expected a segmentation, of integers")
    z, y, x = (_unit_extent(a, b) for a, b in zip(shape, volume.shape, strict=True))
    return Segmentation(volume, volume.voxel_size_nm, SubvolumeGrid(box=volume.box, shape=(z, y, x)), objects)


def _unit_extent(wanted: int, whole: int) -> int:
    """The extent of units along an axis: that wanted, or the next larger one that leaves no last unit of one plane.

    That plane is the one that its neighbour sees too.  By itself it would get lines of its own, across the object's
    section; and kimimaro (5.8.5) cannot trace what is one voxel thick along two axes.
    """
    extent = min(wanted, whole)
    while extent > 1 and whole % extent == 1:
        extent += 1
    return extent
