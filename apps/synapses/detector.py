"""Tiled detection: probabilities of a tile, which is read with a margin that is cut off afterwards.

Tiles start at multiples of the network's unit, so that each is pooled as the whole image would be, and lie on one grid
whatever is asked for: a voxel's probability does not depend on who works it out.  Memory is that of one tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.volumes import Volume
from apps.synapses.images import NOTHING, Statistics
from apps.synapses.network import NetworkParameters, build
from apps.unet.network import ready_to_predict
from apps.unet.weights import Weights

FULL = 255  # a probability of 1 as it is kept

Probabilities = NDArray[np.uint8]


class Detector:
    """A network, ready for tiles."""

    def __init__(self, network: NetworkParameters, outputs: int, weights: Weights, margin: Triple) -> None:
        """`margin`: voxels read around a tile, a multiple of the network's unit (see `margin_of`)."""
        self._outputs, self._margin = outputs, margin
        self._predict = ready_to_predict(build(network, outputs), weights, "sigmoid")

    def detect(self, window: NDArray[Any], tile: Box, statistics: Statistics) -> Probabilities:
        """Probabilities [output, z, y, x] of a tile, of what `read_window` gives, in steps of 1/255.

        They are 0 where the image shows nothing.
        """
        inner = tuple(slice(m, m + n) for m, n in zip(self._margin, tile.shape, strict=True))
        shown = window[inner] != NOTHING
        if not shown.any():
            return np.zeros((self._outputs, *tile.shape), np.uint8)
        found = self._predict(statistics.normalise(window)[..., None])[inner]
        kept = np.rint(found * np.float32(FULL)).astype(np.uint8) * shown[..., None]
        return np.ascontiguousarray(np.moveaxis(kept, -1, 0))


def read_window(image: Volume, tile: Box, unit: Triple, margin: Triple) -> NDArray[Any]:
    """The tile's voxels up to whole units, with the margin around them; 0 where the image has ended."""
    z, y, x = (-(-n // u) * u for n, u in zip(tile.shape, unit, strict=True))
    wanted = Box.of(tile.offset, (z, y, x)).grow(margin)
    there = wanted.intersection(image.box)
    window = np.full(wanted.shape, NOTHING, image.dtype)
    window[there.slices(wanted.offset)] = image.read(there)
    return window


def margin_of(network: NetworkParameters, overlap: int | None) -> Triple:
    """Voxels read around a tile, zyx: `overlap` rounded up to the network's unit, at most, and for None, its margin."""
    most = network.margin
    if overlap is None:
        return most
    z, y, x = (min(-(-overlap // unit) * unit, m) for unit, m in zip(network.unit, most, strict=True))
    return z, y, x
