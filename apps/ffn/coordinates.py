"""Reading the coordinates of training examples that the partition stage wrote."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError


def read_coordinates(path: str) -> NDArray[np.int32]:
    """Volume coordinates [n, 3] zyx int32, in the order of the file (an npz with `zyx`).

    Raises DataError that names the file where it is missing, unreadable, empty or of another form.
    """
    if not Path(path).is_file():
        raise DataError(
            f"{path}: no such file; expected the npz of training coordinates that the partition stage writes"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            zyx = np.asarray(file["zyx"])
    except (KeyError, ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: is not a readable npz with the array zyx ({error}); partition again") from error
    if zyx.ndim != 2 or zyx.shape[1] != 3 or zyx.dtype.kind not in "ui":
        raise DataError(f"{path}: zyx is {zyx.dtype} of shape {zyx.shape}; expected integers of shape (n, 3)")
    if len(zyx) == 0:
        raise DataError(f"{path}: holds no coordinate; label more bodies, or partition a larger box")
    return zyx.astype(np.int32)
