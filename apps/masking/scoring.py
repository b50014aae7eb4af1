"""How good masks are, told without ground truth: how sure the network is, and how sharply its answer changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.masking.sections import Floats

_TINY = 1e-12


class Certainty:
    """Entropy and boundary sharpness of a section, added up tile by tile.

    Both are taken where the network gives its answers, before they are interpolated to single pixels.
    """

    def __init__(self) -> None:
        self._entropy = self._sharpness = 0.0
        self._places = self._boundaries = 0

    def add(self, probabilities: Floats, tissue: NDArray[np.bool_], height: int, width: int) -> None:
        """Add a tile's own places, the first `height` x `width`.

        Args:
            probabilities: [y, x, class], with a row below and a column to the right of these where the section has
                them: each pair of neighbours is counted once, by the tile that owns its first place.
            tissue: bool [y, x], where the image shows something.
        """
        p, shown = probabilities[:height, :width].astype(np.float64), tissue[:height, :width]
        bits = -(p * np.log2(np.maximum(p, _TINY))).sum(axis=-1)
        self._entropy += float(bits[shown].sum())
        self._places += int(shown.sum())
        below, right = probabilities[1 : height + 1, :width], probabilities[:height, 1 : width + 1]
        self._pairs(
            probabilities[: len(below), :width], below, tissue[: len(below), :width], tissue[1 : height + 1, :width]
        )
        columns = right.shape[1]
        self._pairs(probabilities[:height, :columns], right, tissue[:height, :columns], tissue[:height, 1 : width + 1])

    def _pairs(self, a: Floats, b: Floats, in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]) -> None:
        differ = (a.argmax(-1) != b.argmax(-1)) & in_a & in_b
        # Half of the sum of the differences: 1 where both are sure of their class, near 0 where neither is.
        self._sharpness += float(np.abs(a[differ].astype(np.float64) - b[differ]).sum() / 2)
        self._boundaries += int(differ.sum())

    @property
    def entropy(self) -> float | None:
        """Bits a place, 0 (sure) to 2 (no idea), mean over what is shown; None where nothing is."""
        return round(self._entropy / self._places, 6) if self._places else None

    @property
    def sharpness(self) -> float | None:
        """Total variation distance of the probabilities of two neighbours of different classes, mean; None: no such."""
        return round(self._sharpness / self._boundaries, 6) if self._boundaries else None
