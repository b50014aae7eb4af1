"""Reading the coordinates of training examples: the npz of the partition stage, or google/ffn's TFRecord."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError

Zyx = NDArray[np.int32]


@dataclass(frozen=True)
class TrainingCoordinates:
    """Centres of training examples in one volume.

    Attributes:
        zyx: int32 [n, 3], n > 0, in the order of the file.
        box: no example may read a voxel outside of it; None where the file does not say.
    """

    zyx: Zyx
    box: Box | None


@dataclass(frozen=True)
class CoordinatesFile:
    """A file of coordinates, read.

    Attributes:
        path: of the file.
        volumes: coordinates by volume name; an npz is of one volume and holds no name, which is "".
    """

    path: str
    volumes: dict[str, TrainingCoordinates]

    def of(self, name: str | None) -> TrainingCoordinates:
        """Those of the volume `name`; None: of the only one.

        Raises DataError where there are several to choose from, or none of that name.
        """
        if list(self.volumes) == [""]:
            return self.volumes[""]
        known = ", ".join(sorted(self.volumes))
        if name is None:
            if len(self.volumes) > 1:
                raise DataError(f"{self.path}: holds coordinates of several volumes, {known}; give the volume's name")
            return next(iter(self.volumes.values()))
        if name not in self.volumes:
            raise DataError(f"{self.path}: holds no coordinate of a volume named {name!r}; it has {known}")
        return self.volumes[name]


def read_coordinates(path: str) -> CoordinatesFile:
    """Read an npz of the partition stage, or a gzipped TFRecord of google/ffn, which can hold several volumes.

    Raises DataError that names the file where it is missing, unreadable, cut short, empty or of another form.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(
            f"{path}: no such file; expected training coordinates: an npz of the partition stage, or google/ffn's "
            "gzipped TFRecord"
        )
    with file.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    if file.suffix == ".npz" or not is_gzip:
        return CoordinatesFile(path, {"": _read_npz(path)})
    from apps.ffn.google_coordinates import read_tfrecord

    return CoordinatesFile(path, {name: TrainingCoordinates(zyx, None) for name, zyx in read_tfrecord(path).items()})


def _read_npz(path: str) -> TrainingCoordinates:
    try:
        with np.load(path, allow_pickle=False) as file:
            zyx = np.asarray(file["zyx"])
            corners = np.asarray(file["box"]) if "box" in file else None
    except (KeyError, TypeError, ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: is not a readable npz with the array zyx ({error}), nor a gzipped TFRecord; partition again"
        ) from error
    if zyx.ndim != 2 or zyx.shape[1] != 3 or zyx.dtype.kind not in "ui":
        raise DataError(f"{path}: zyx is {zyx.dtype} of shape {zyx.shape}; expected integers of shape (n, 3)")
    if len(zyx) == 0:
        raise DataError(f"{path}: holds no coordinate; label more bodies, or partition a larger box")
    if corners is None:
        return TrainingCoordinates(zyx.astype(np.int32), None)
    if corners.shape != (2, 3) or corners.dtype.kind not in "ui":
        raise DataError(f"{path}: box is {corners.dtype} of shape {corners.shape}; expected integers of shape (2, 3)")
    return TrainingCoordinates(zyx.astype(np.int32), Box.of(tuple(corners[0]), tuple(corners[1])))
