"""Ids that hold in the whole of a segmentation: 64-bit numbers made of a subvolume's number and an id within it.

They stay under 2^53, so that tools that count in floating point (JSON, spreadsheets, JavaScript) keep them exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError

LOCAL_BITS = 24
MAX_LOCAL = (1 << LOCAL_BITS) - 1
MAX_SUBVOLUMES = 1 << (53 - LOCAL_BITS)


def supervoxel_ids(subvolume: int, local: NDArray[Any]) -> NDArray[np.uint64]:
    """The ids of `local` ids (integers from 0 on, any shape) of a subvolume; 0, no object, stays 0.

    Raises DataError where an id or the subvolume's number is out of range.
    """
    if not 0 <= subvolume < MAX_SUBVOLUMES:
        raise DataError(f"subvolume {subvolume}: its number overflows; expected 0 to {MAX_SUBVOLUMES - 1}")
    if local.size and (int(local.min()) < 0 or int(local.max()) > MAX_LOCAL):
        wrong = int(local.min()) if int(local.min()) < 0 else int(local.max())
        raise DataError(f"subvolume {subvolume}: its label id {wrong} overflows; expected 0 to {MAX_LOCAL}")
    ids = local.astype(np.uint64)
    ids[local != 0] |= np.uint64(subvolume << LOCAL_BITS)
    return ids


def split_ids(ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(subvolume, local id) of supervoxel ids of any shape."""
    return (ids >> np.uint64(LOCAL_BITS)).astype(np.int64), (ids & np.uint64(MAX_LOCAL)).astype(np.int64)
