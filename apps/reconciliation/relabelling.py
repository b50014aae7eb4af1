"""From the ids of a subvolume to those of the objects that its objects became."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import Array


def relabel(labels: Array, local: NDArray[np.uint32], objects: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace the ids `local` [n] by `objects` [n], and 0 by 0, in labels of any shape that have no other ids."""
    table = np.zeros(int(local[-1]) + 1 if len(local) else 1, np.uint64)
    table[local] = objects
    relabelled: NDArray[np.uint64] = table[labels]
    return relabelled
