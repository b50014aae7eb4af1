"""Ids that hold in the whole of a segmentation: 64-bit numbers made of a subvolume's number and an id within it.

They stay under 2^53, so that tools that count in floating point (JSON, spreadsheets, JavaScript) keep them exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LOCAL_BITS = 24
# What is larger has no id: whoever reads a piece or plans a grid refuses it.
MAX_LOCAL = (1 << LOCAL_BITS) - 1
MAX_SUBVOLUMES = 1 << (53 - LOCAL_BITS)


def supervoxel_ids(subvolumes: NDArray[np.int64] | int, local: NDArray[Any]) -> NDArray[np.uint64]:
    """The ids of objects: of their subvolumes' numbers (under MAX_SUBVOLUMES) and their ids there (1 to MAX_LOCAL)."""
    high = np.asarray(subvolumes).astype(np.uint64) << np.uint64(LOCAL_BITS)
    ids: NDArray[np.uint64] = high | local.astype(np.uint64)
    return ids


def split_ids(ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(subvolume, local id) of supervoxel ids of any shape."""
    return (ids >> np.uint64(LOCAL_BITS)).astype(np.int64), (ids & np.uint64(MAX_LOCAL)).astype(np.int64)
