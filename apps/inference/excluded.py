"""Which boxes masks exclude wholly: told from tiles of 64 x 64 x 64 voxels, each of which is read once.

Read boxes overlap, and of small ones a tile is part of many.  Where all that a box touches is excluded, so is the box:
it needs no look at its own voxels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import DEFAULT_CHUNKS
from apps.ffn.masks import MaskParameters, read_masks

_UNKNOWN, _FREE, _EXCLUDED = 0, 1, 2


class ExcludedTiles:
    """The tiles of a volume on which masks lie; `within`: all of it.

    Memory: a byte for each tile of the layers (along z) that were looked at, and the mask's voxels of one layer of a
    box while it is read.
    """

    def __init__(self, masks: Sequence[MaskParameters], within: Box) -> None:
        self._masks, self._within = masks, within
        self._layers: dict[int, NDArray[np.uint8]] = {}  # tiles [y, x] by their place along z

    def hold(self, box: Box) -> bool:
        """Whether every tile that the box touches is excluded wholly; False too where that cannot be read.

        Whoever then reads the box itself says what is wrong with it, if anything is.
        """
        if not self._masks or box.empty:
            return False
        (top, *first), (bottom, *last) = (
            [a // size for a, size in zip(corner, DEFAULT_CHUNKS, strict=True)]
            for corner in (box.offset, tuple(end - 1 for end in box.end))
        )
        rows, columns = (slice(a, b + 1) for a, b in zip(first, last, strict=True))
        try:
            return all(self._layer_holds(z, rows, columns) for z in range(top, bottom + 1))
        except DataError:
            return False

    def _layer_holds(self, z: int, rows: slice, columns: slice) -> bool:
        known = self._layer(z)[rows, columns]
        if (known == _FREE).any():
            return False
        unknown = np.argwhere(known == _UNKNOWN)
        if len(unknown):
            low, high = unknown.min(axis=0), unknown.max(axis=0) + 1
            found = self._read(z, rows.start + int(low[0]), columns.start + int(low[1]), high - low)
            known[low[0] : high[0], low[1] : high[1]] = np.where(found, _EXCLUDED, _FREE)
        return bool((known == _EXCLUDED).all())

    def _layer(self, z: int) -> NDArray[np.uint8]:
        if z not in self._layers:
            rows, columns = (-(-n // size) for n, size in zip(self._within.shape[1:], DEFAULT_CHUNKS[1:], strict=True))
            self._layers[z] = np.zeros((rows, columns), np.uint8)
        return self._layers[z]

    def _read(self, z: int, row: int, column: int, count: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether tiles [y, x] of a layer, `count` of them from (row, column) on, are excluded wholly."""
        start = [place * size for place, size in zip((z, row, column), DEFAULT_CHUNKS, strict=True)]
        past = [a + n * size for a, n, size in zip(start, (1, *count.tolist()), DEFAULT_CHUNKS, strict=True)]
        end = [min(b, n) for b, n in zip(past, self._within.shape, strict=True)]
        excluded = read_masks(self._masks, Box.between((start[0], start[1], start[2]), (end[0], end[1], end[2])))
        assert excluded is not None
        found: NDArray[np.bool_] = np.logical_and.reduce(excluded, axis=0)
        for axis, size in enumerate(DEFAULT_CHUNKS[1:]):
            found = np.logical_and.reduceat(found, np.arange(0, found.shape[axis], size), axis=axis)
        return found


def digest(excluded: NDArray[np.bool_]) -> str:
    """SHA-256 of what is excluded of a box, which names it in the identity of a subvolume."""
    return hashlib.sha256(np.packbits(excluded).tobytes()).hexdigest()


@lru_cache(maxsize=64)
def digest_of_all(voxels: int) -> str:
    """The digest of a box of so many voxels that is excluded wholly."""
    return digest(np.ones(voxels, np.bool_))
