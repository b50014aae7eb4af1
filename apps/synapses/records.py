"""What the stage keeps: volumes of probabilities, and a record of every unit of work, written when it is done."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, StateError
from apps.core.files import lock, make_folder
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, new_volume, open_volume_to_write
from apps.ffn.checkpoint import load_arrays
from apps.synapses.model import Output
from apps.unet.training import OutputPaths

_CHUNK = 64  # voxels of a chunk along each axis, at most

Arrays = dict[str, NDArray[Any]]


class Paths(OutputPaths):
    """Where things are in the output folder."""

    @property
    def table(self) -> Path:
        return self.output / "synapses.parquet"

    @property
    def components(self) -> Path:
        return self.output / "work" / "components.npz"

    def volume(self, output: Output) -> Path:
        return self.output / ("clefts.zarr" if output == "cleft" else "vesicles.zarr")

    def tile(self, number: int) -> Path:
        return piece_path(self.output / "work" / "tiles", number).with_suffix(".npz")

    def batch(self, number: int) -> Path:
        return piece_path(self.output / "work" / "partners", number).with_suffix(".npz")


def tiles_of(image: Volume, tile: Triple) -> SubvolumeGrid:
    """The tiles of an image, numbered."""
    return SubvolumeGrid(box=image.box, shape=tile)


def prepare_volume(path: Path, image: Volume, tile: Triple) -> Volume:
    """The volume of probabilities at `path`, to write into; made where it is not there, by one of several that come.

    Its chunks divide a tile, so that two tiles share none.

    Raises StateError where one of another image or tile is there, DataError where it cannot be made.
    """
    size = image.voxel_size_nm or UNKNOWN_VOXEL_SIZE
    chunks = _chunk(tile[0]), _chunk(tile[1]), _chunk(tile[2])
    if not path.is_dir():
        make_folder(path.parent)
        try:
            temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        except OSError as error:
            raise DataError(f"{path}: cannot be made ({error.strerror}); give a writable output folder") from error
        try:
            with new_volume(temporary / path.name, image.shape, np.uint8, size, chunks):
                pass
            with contextlib.suppress(OSError):  # another has been faster
                (temporary / path.name).rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    volume = open_volume_to_write(path)
    if (volume.shape, volume.array.chunks, volume.voxel_size_nm) != (image.shape, chunks, size):
        raise StateError(
            f"{path}: has the shape {volume.shape} in chunks of {volume.array.chunks}; this image and tile need "
            f"{image.shape} in {chunks}, of voxels of {size} nm; give another output folder, or remove it"
        )
    return volume


def _chunk(extent: int) -> int:
    pieces = -(-extent // _CHUNK)
    while extent % pieces:
        pieces += 1
    return extent // pieces


@contextlib.contextmanager
def hold(paths: Paths, alone: bool) -> Iterator[None]:
    """Keep others from the output: jobs that do parts may be many, one that does it all, or completes it, is alone.

    Raises StateError where another process is at work on it.
    """
    make_folder(paths.output)
    file = paths.output / ".synapses.lock"
    with file.open("a+b") as stream:
        lock(stream, paths.output, alone)
        yield


def read_record(path: Path) -> Arrays | None:
    """The arrays of a record; None where there is none that can be read."""
    try:
        return load_arrays(path)
    except DataError:
        return None


def text_of(record: Arrays | None, name: str) -> str:
    """A string that a record holds, empty where it does not."""
    return str(record[name]) if record is not None and name in record else ""
