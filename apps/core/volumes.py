"""Volumes on disk: OME-Zarr (zarr v3) to read and write, google/ffn style HDF5 to read.  Axis order is zyx.

A volume is named by a string: the path of an OME-Zarr group (`NAME.zarr`), or `FILE.h5:DATASET`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.files import folder_in_the_making

VoxelSize = tuple[float, float, float]
# What is written of a volume that does not say: one nanometre.
UNKNOWN_VOXEL_SIZE: VoxelSize = (1.0, 1.0, 1.0)
# Two voxel sizes are the same up to the rounding of whoever wrote them.
_SAME_SIZE = 0.01
Array = NDArray[Any]

DEFAULT_CHUNKS: Triple = (64, 64, 64)


def known_voxel_size(size: VoxelSize | None) -> VoxelSize | None:
    """A voxel size (zyx, nm); None where it is what is written of a volume that does not say."""
    return None if size == UNKNOWN_VOXEL_SIZE else size


def same_voxel_size(one: VoxelSize | None, other: VoxelSize | None) -> bool:
    """Whether two voxel sizes (zyx, nm) differ by 1 % at most; one that is not known speaks against nothing."""
    one, other = known_voxel_size(one), known_voxel_size(other)
    if one is None or other is None:
        return True
    return all(math.isclose(a, b, rel_tol=_SAME_SIZE) for a, b in zip(one, other, strict=True))


@dataclass(frozen=True)
class Volume:
    """An open volume.

    Attributes:
        name: how the user named it.
        voxel_size_nm: zyx in nanometres; None where the file does not say (HDF5).
        array: the zarr array or HDF5 dataset, zyx.
    """

    name: str
    voxel_size_nm: VoxelSize | None
    array: Any

    @property
    def shape(self) -> Triple:
        return cast(Triple, tuple(int(n) for n in self.array.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.array.dtype)

    @property
    def box(self) -> Box:
        """All of the volume."""
        return Box.of((0, 0, 0), self.shape)

    def read(self, box: Box | None = None) -> Array:
        """The voxels of `box` (all of the volume by default) as a zyx array of the volume's dtype.

        Raises DataError where the box leaves the volume, or where float voxels are NaN or infinite.
        """
        box = box or self.box
        if not self.box.contains(box):
            raise DataError(f"{self.name}: box {box} leaves the volume, which is {self.box}")
        try:
            data = np.asarray(self.array[box.slices()])
        # Of h5py and of Zarr's codecs, where a chunk is damaged.
        except (OSError, RuntimeError, ValueError, EOFError, zlib.error) as error:
            raise DataError(f"{self.name}: {box} cannot be read ({error}); the file is damaged or gone") from error
        if data.dtype.kind == "f" and not np.isfinite(data).all():
            raise DataError(f"{self.name}: holds NaN or infinite voxels in {box}; expected finite values")
        return data

    def write(self, box: Box, data: Array) -> None:
        """Write `data` (zyx, of the box's shape) into an OME-Zarr volume.  One writer per chunk: see `aligned`."""
        if data.shape != box.shape or not self.box.contains(box):
            raise DataError(f"{self.name}: cannot write an array of shape {data.shape} to {box} of {self.box}")
        self.array[box.slices()] = data

    def aligned(self, box: Box) -> bool:
        """True where `box` covers whole chunks only (up to the volume's end), so that its writer shares none."""
        rows = zip(box.offset, box.end, self.array.chunks, self.shape, strict=True)
        return all(a % c == 0 and (b % c == 0 or b == n) for a, b, c, n in rows)


def open_volume(name: str) -> Volume:
    """Open a volume to read.

    Raises DataError, with the name in it, where file or dataset is missing, or the data is not 3-D or not numeric.
    """
    volume = _open_hdf5(name) if _is_hdf5(name) else _open_zarr(name)
    if len(volume.array.shape) != 3:
        raise DataError(f"{name}: has {len(volume.array.shape)} dimensions {volume.array.shape}; expected 3 (z, y, x)")
    if volume.dtype.kind not in "uif":
        raise DataError(f"{name}: has dtype {volume.dtype}; expected integers or floats")
    if 0 in volume.shape:
        raise DataError(f"{name}: is empty, its shape is {volume.shape}")
    return volume


def open_labels(name: str, image: Volume, what: str = "labels") -> Volume:
    """Open a volume of integers, `what` they are, on the grid of an image.

    Raises DataError where there is none, it is not of integers, or has another shape than the image.
    """
    labels = open_volume(name)
    if labels.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {labels.dtype}; expected {what} of an integer type")
    if labels.shape != image.shape:
        raise DataError(f"{name}: has shape {labels.shape}; expected that of the image {image.name}, {image.shape}")
    return labels


def absolute_volume(name: str) -> str:
    """The same volume named from the root of the file system, as a job that runs elsewhere needs it."""
    file, colon, dataset = name.rpartition(":")
    return f"{Path(file).absolute()}:{dataset}" if colon else str(Path(name).absolute())


@contextlib.contextmanager
def new_volume(
    path: str | Path, shape: Triple, dtype: DTypeLike, voxel_size_nm: VoxelSize, chunks: Triple = DEFAULT_CHUNKS
) -> Iterator[Volume]:
    """Yield a new OME-Zarr volume filled with 0; it appears under `path` only when the block ends well."""
    target = Path(path)
    if target.suffix != ".zarr":
        raise DataError(f"{target}: an OME-Zarr volume's name ends in .zarr")
    with folder_in_the_making(target) as temporary:
        yield _create_zarr(temporary, str(target), shape, dtype, voxel_size_nm, chunks)


def write_volume(path: str | Path, data: Array, voxel_size_nm: VoxelSize, chunks: Triple = DEFAULT_CHUNKS) -> None:
    """Write a whole zyx array as an OME-Zarr volume, atomically."""
    shape = cast(Triple, data.shape)
    with new_volume(path, shape, data.dtype, voxel_size_nm, chunks) as volume:
        volume.write(volume.box, data)


def create_shared_volume(
    path: str | Path, shape: Triple, dtype: DTypeLike, voxel_size_nm: VoxelSize, chunks: Triple = DEFAULT_CHUNKS
) -> Volume:
    """Create an OME-Zarr volume that several tasks will fill, each with chunk-aligned boxes of its own."""
    with new_volume(path, shape, dtype, voxel_size_nm, chunks):
        pass
    return open_volume_to_write(path)


def open_volume_to_write(path: str | Path) -> Volume:
    """Open an existing OME-Zarr volume for chunk-aligned writes."""
    return _open_zarr(str(path), mode="r+")


def content_hash(volume: Volume, box: Box | None = None) -> str:
    """First 16 hex digits of the SHA-256 over shape, dtype and voxels (C order), read slab by slab."""
    box = box or volume.box
    digest = hashlib.sha256(f"{box.shape} {volume.dtype.str}".encode())
    for z in range(box.offset[0], box.end[0], 32):
        slab = Box.between((z, *box.offset[1:]), (min(z + 32, box.end[0]), *box.end[1:]))
        digest.update(np.ascontiguousarray(volume.read(slab)).tobytes())
    return digest.hexdigest()[:16]


def _is_hdf5(name: str) -> bool:
    file = name.rpartition(":")[0] or name
    return file.endswith((".h5", ".hdf5", ".hdf"))


def _open_hdf5(name: str) -> Volume:
    import h5py

    file, _, dataset = name.rpartition(":")
    if not file:
        raise DataError(f"{name}: expected FILE.h5:DATASET, the name of a dataset after a colon")
    if not Path(file).is_file():
        raise DataError(f"{file}: no such file; expected an HDF5 file")
    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file}: is not a readable HDF5 file ({error})") from error
    found: list[str] = []
    handle.visititems(lambda key, item: found.append(key) if isinstance(item, h5py.Dataset) else None)
    if dataset not in found:
        raise DataError(f"{file}: has no dataset {dataset!r}; it has {', '.join(found) or 'none'}")
    return Volume(name, None, handle[dataset])


def _open_zarr(name: str, mode: str = "r") -> Volume:
    path = Path(name)
    if not path.is_dir():
        raise DataError(f"{name}: no such volume; expected an OME-Zarr folder or FILE.h5:DATASET")
    try:
        group = zarr.open_group(path, mode=cast(Any, mode))
        multiscale = cast(Any, group.attrs["ome"])["multiscales"][0]
        level = multiscale["datasets"][0]
        names = [axis["name"] for axis in multiscale["axes"]]
        if names != ["z", "y", "x"]:
            raise DataError(f"{name}: has the axes {names}; expected z, y, x")
        array = group[level["path"]]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"{level['path']} is no array")
        scale = level["coordinateTransformations"][0]["scale"]
        factor = [_NANOMETRES[axis.get("unit", "nanometer")] for axis in multiscale["axes"]]
        voxel_size = tuple(float(s) * f for s, f in zip(scale, factor, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DataError(f"{name}: is not an OME-Zarr 0.5 image ({type(error).__name__}: {error})") from error
    return Volume(name, cast(VoxelSize, voxel_size), array)


_NANOMETRES = {"angstrom": 0.1, "nanometer": 1.0, "micrometer": 1e3, "millimeter": 1e6}


def _create_zarr(
    path: Path, name: str, shape: Triple, dtype: DTypeLike, voxel_size_nm: VoxelSize, chunks: Triple
) -> Volume:
    group = zarr.create_group(path, zarr_format=3)
    array = group.create_array("0", shape=shape, chunks=chunks, dtype=np.dtype(dtype), dimension_names=("z", "y", "x"))
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "name": Path(name).stem,
                "axes": [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": list(voxel_size_nm)}]}
                ],
            }
        ],
    }
    return Volume(name, voxel_size_nm, array)
