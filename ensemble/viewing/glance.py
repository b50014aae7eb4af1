"""What a look at a few voxels tells a viewer: the image's range of grey levels, and objects to show at once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from ensemble.viewing.stores import MESHES, OpenStores, ShownVolume

# Side of the box that is looked at, on the coarsest level.
SAMPLE = 128
SEGMENTS = 12
# Of the grey levels, so much may lie outside of the range that is shown, in percent at either end.
CLIPPED = 0.5
Reader = Callable[[Box | None], NDArray[Any]]


@dataclass(frozen=True)
class Glance:
    """Attributes:
    grey: grey levels that are to be black and white; None where the look found but one.
    segments: the largest objects it found, largest first, at most SEGMENTS.
    """

    grey: tuple[float, float] | None = None
    segments: tuple[int, ...] = ()


def glance_at(stores: OpenStores) -> Glance:
    """Look at the middle of the coarsest levels: some millions of voxels, however large the volumes are.

    Where there are meshes, only objects that have one are named.  Raises DataError where a volume cannot be read.
    """
    grey = grey_range(sample(stores.image)) if stores.image is not None else None
    if stores.segmentation is None:
        return Glance(grey)
    return Glance(grey, largest(sample(stores.segmentation), stores))


def grey_range(voxels: NDArray[Any]) -> tuple[float, float] | None:
    """Percentiles of the voxels that are not 0, nor NaN or infinite (that is what is missing); None where they are all
    equal."""
    known = voxels[(voxels != 0) & np.isfinite(voxels)]
    if not known.size:
        return None
    low, high = (float(v) for v in np.percentile(known, (CLIPPED, 100 - CLIPPED)))
    return (low, high) if high > low else None


def largest(voxels: NDArray[Any], stores: OpenStores) -> tuple[int, ...]:
    """Ids of the largest objects among the voxels, largest first, equal ones by id."""
    ids, counts = np.unique(voxels[voxels != 0], return_counts=True)
    ranked = (int(ids[i]) for i in np.lexsort((ids, -counts)))
    found = []
    for number in ranked:
        if _has_mesh(stores, number):
            found.append(number)
        if len(found) == SEGMENTS:
            break
    return tuple(found)


def sample(volume: ShownVolume) -> NDArray[Any]:
    """The middle SAMPLE^3 voxels of the coarsest level, zyx.  Raises DataError where it cannot be read."""
    return open_reader(volume, -1)(None)


def open_reader(volume: ShownVolume, level: int = 0) -> Reader:
    """Open a level once, to read boxes of it, zyx, in voxels from its first one; None is its middle SAMPLE^3 voxels.

    It and what it returns raise DataError where the volume cannot be read.
    """
    with _damage_named(volume):
        return _open_zarr(volume, level) if volume.format == "zarr3" else _open_precomputed(volume, level)


def _open_zarr(volume: ShownVolume, level: int) -> Reader:
    import zarr

    group = zarr.open_group(volume.path, mode="r")
    attributes: Any = group.attrs["ome"]
    array: Any = group[attributes["multiscales"][0]["datasets"][level]["path"]]

    def read(box: Box | None) -> NDArray[Any]:
        with _damage_named(volume):
            return np.asarray(array[_middle(array.shape) if box is None else box.slices()])

    return read


def _open_precomputed(volume: ShownVolume, level: int) -> Reader:
    """cloud-volume counts from its origin, x, y, z."""
    from cloudvolume import CloudVolume

    source = CloudVolume(
        f"file://{volume.path}", mip=level % volume.levels, fill_missing=True, bounded=False, progress=False
    )
    low = [int(n) for n in source.bounds.minpt]
    extent = tuple(int(n) for n in source.bounds.size3())

    def read(box: Box | None) -> NDArray[Any]:
        part = _middle(extent) if box is None else box.slices()[::-1]
        cut = tuple(slice(axis.start + first, axis.stop + first) for axis, first in zip(part, low, strict=True))
        with _damage_named(volume):
            return np.asarray(source[cut])[..., 0].T

    return read


@contextlib.contextmanager
def _damage_named(volume: ShownVolume) -> Iterator[None]:
    """What the block raises as DataError: Zarr and cloud-volume raise whatever their codecs do."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{volume.path}: cannot be read ({error}); the store is damaged or gone") from error


def _middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = (max(0, (n - SAMPLE) // 2) for n in shape)
    return tuple(slice(start, min(n, start + SAMPLE)) for start, n in zip(starts, shape, strict=True))


def _has_mesh(stores: OpenStores, number: int) -> bool:
    """Whether an object has a mesh, as far as a look at one file tells; True where there are no meshes at all."""
    if stores.meshes is None or json.loads((stores.meshes / "info").read_bytes())["@type"] != MESHES[0]:
        return True
    return any((stores.meshes / f"{number}:0{suffix}").is_file() for suffix in ("", ".gz"))
