"""Writing what the partition stage gives, each file under a temporary name that is renamed when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.files import file_in_the_making
from apps.partition.balance import Coordinates


def check_folder(path: str) -> None:
    """Raise DataError unless the folder that `path` is to be written into is there and writable."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one to write {Path(path).name} into")
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder}: is not writable; {Path(path).name} is to be written into it")


def save_coordinates(path: str, coordinates: Coordinates, classes: NDArray[np.uint8], box: Box, name: str) -> None:
    """Write coordinates [n, 3] zyx: as google/ffn's TFRecord of the volume `name`, or, where `path` ends in .npz, as
    `zyx` int32 [n, 3], `fraction_class` uint8 [n] and `box` int64 (offset, shape) that no example leaves."""
    with file_in_the_making(path) as temporary:
        if path.endswith(".npz"):
            with temporary.open("wb") as stream:
                corners = np.array([box.offset, box.shape], np.int64)
                np.savez(stream, zyx=coordinates, fraction_class=classes, box=corners)
        else:
            from apps.ffn.google_coordinates import write_tfrecord

            write_tfrecord(temporary, coordinates, name)
