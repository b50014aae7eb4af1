"""Small tables of synapses for the tests of the connectome."""

from __future__ import annotations

import numpy as np

from apps.synapses.table import SynapseTable


def synapses(*pairs: tuple[int, int], confidence: tuple[float, ...] = (), first: int = 1) -> SynapseTable:
    """A synapse for every (pre, post), ids from `first` on, ten voxels apart along x."""
    count = len(pairs)
    centre = np.stack([np.full(count, 4.0), np.full(count, 5.0), 2.0 + 10.0 * np.arange(count)], axis=1)
    return SynapseTable(
        id=np.arange(first, first + count),
        centre=centre,
        partners=np.array(pairs, np.uint64).reshape(-1, 2),
        points=np.stack([centre - 1, centre + 1], axis=1),
        direction=np.tile([0.0, 0.0, 1.0], (count, 1)),
        confidence=np.array(confidence or [1.0] * count),
        voxels=np.full(count, 9),
    )
