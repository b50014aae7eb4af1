"""google/ffn's partition volume: an HDF5 dataset, uint8 zyx, with the class of every voxel that can be a centre.

0 is background, 255 excluded, the others are classes of the object fraction (google/ffn's compute_partitions).  It
holds only the voxels with a whole box of the object fraction around them.  Attributes: `corner`, where its first voxel
lies in the labels (zyx); `bounding_boxes`, the boxes of its voxels in the labels, each (start xyz, size xyz);
`partition_counts` [2, k], the classes and how many voxels each has.  Of our own: `lom_radius` zyx, of that box.
google/ffn's build_coordinates leaves `corner` out of account; here coordinates are always those of the labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple, tiles
from apps.core.errors import DataError
from apps.core.files import file_in_the_making
from apps.core.volumes import Volume, open_volume
from apps.partition.classes import BLOCK
from apps.partition.outputs import check_folder

Classes = NDArray[np.uint8]

EXCLUDED = 255

# What google/ffn writes is compressed at this level; whole chunks are written at once, each by one block.
_LEVEL = 5
_CHUNKS: Triple = (64, 64, 64)


@dataclass(frozen=True)
class PartitionVolume:
    """An open partition volume.

    Attributes:
        classes: the dataset, uint8.
        region: its voxels, in coordinates of the labels.
        box: the labels that it was made of; no example leaves it.
    """

    classes: Volume
    region: Box
    box: Box

    def blocks(self) -> Iterator[tuple[Box, Classes]]:
        """All classes as (block in coordinates of the labels, uint8 array of its shape)."""
        z, y, x = self.region.offset
        for block in tiles(self.region, BLOCK):
            yield block, self.classes.read(block.translate((-z, -y, -x)))


def open_partition_volume(name: str) -> PartitionVolume:
    """Open FILE.h5:DATASET.

    Without `corner` the volume is taken to have the voxels of the labels; without `lom_radius` that is the corner, as
    compute_partitions makes it of a whole volume.

    Raises DataError that names the file where it is missing, unreadable, no partition volume, or its attributes are
    of another form.
    """
    classes = open_volume(name)
    if classes.dtype != np.uint8:
        raise DataError(f"{name}: has dtype {classes.dtype}; expected a partition volume of uint8 classes")
    corner = _triple(classes, "corner", (0, 0, 0))
    radius = _triple(classes, "lom_radius", corner)
    region = Box.of(corner, classes.shape)
    return PartitionVolume(classes, region, region.grow(radius))


def _triple(classes: Volume, name: str, otherwise: Triple) -> Triple:
    found = classes.array.attrs.get(name)
    if found is None:
        return otherwise
    value = np.asarray(found)
    if value.shape != (3,) or value.dtype.kind not in "ui" or value.min() < 0:
        raise DataError(f"{classes.name}: its attribute {name} is {found!r}; expected three voxels zyx, none negative")
    z, y, x = value.tolist()
    return z, y, x


class PartitionWriter:
    """Fills a partition volume in the making, block by block."""

    def __init__(self, dataset: Any, region: Box) -> None:
        self._dataset, self._region = dataset, region
        self.counts = np.zeros(256, np.int64)

    def write(self, block: Box, classes: Classes) -> None:
        """`classes` of `block`, which is in coordinates of the labels."""
        self._dataset[block.slices(self._region.offset)] = classes
        self.counts += np.bincount(classes.ravel(), minlength=256)


@contextlib.contextmanager
def new_partition_volume(name: str, region: Box, radius: Triple) -> Iterator[PartitionWriter]:
    """Yield a writer of FILE.h5:DATASET, a volume of the voxels `region` of the labels; it appears on success."""
    import h5py

    path, dataset = split_name(name)
    with file_in_the_making(path) as temporary, h5py.File(temporary, "w") as file:
        chunks = tuple(min(chunk, n) for chunk, n in zip(_CHUNKS, region.shape, strict=True))
        written = file.create_dataset(
            dataset, region.shape, np.uint8, chunks=chunks, compression="gzip", compression_opts=_LEVEL
        )
        writer = PartitionWriter(written, region)
        yield writer
        present = np.flatnonzero(writer.counts)
        written.attrs["bounding_boxes"] = np.array([(region.offset[::-1], region.shape[::-1])], np.int64)
        written.attrs["corner"] = np.array(region.offset, np.int64)
        written.attrs["lom_radius"] = np.array(radius, np.int64)
        written.attrs["partition_counts"] = np.array([present, writer.counts[present]])


def check_new_partition_volume(name: str) -> None:
    """Raise DataError where FILE.h5:DATASET cannot be written without losing something else.

    A partition volume is a file of its own; one of the same dataset is written over.
    """
    import h5py

    path, dataset = split_name(name)
    check_folder(path)
    if not Path(path).exists():
        return
    try:
        with h5py.File(path, "r") as file:
            held: list[str] = []
            file.visititems(lambda key, item: held.append(key) if isinstance(item, h5py.Dataset) else None)
    except OSError as error:
        raise DataError(f"{path}: is there and no HDF5 file ({error}); give another name") from error
    if others := [key for key in held if key != dataset.strip("/")]:
        raise DataError(f"{path}: holds {', '.join(others)}, which would be lost; give a file of its own")


def split_name(name: str) -> tuple[str, str]:
    """File and dataset of FILE.h5:DATASET."""
    path, _, dataset = name.rpartition(":")
    return path, dataset
