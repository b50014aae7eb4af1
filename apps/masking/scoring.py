"""How good masks are, told without ground truth: how sure the network is, and how sharply its answer changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.masking.classes import NEUROPIL
from apps.masking.sections import Floats

_TINY = 1e-12
_LEAST = 1e-3  # share of the places that has to be masked, or in doubt, for masks to be judged


class Certainty:
    """Expected Dice, entropy and boundary sharpness of a section, added up tile by tile.

    All are taken where the network gives its answers, before they are interpolated to single pixels, and of places
    where the section shows something.
    """

    def __init__(self) -> None:
        self._entropy = self._masked = self._agreed = self._sharpness = 0.0
        self._places = self._found = self._boundaries = 0

    def add(self, probabilities: Floats, tissue: NDArray[np.bool_], height: int, width: int) -> None:
        """Add a tile's own places, the first `height` x `width`.

        Args:
            probabilities: [y, x, class], with a row below and a column to the right of these where the section has
                them: each pair of neighbours is counted once, by the tile that owns its first place.
            tissue: bool [y, x], where the image shows something.
        """
        shown = tissue[:height, :width]
        p = probabilities[:height, :width][shown].astype(np.float64)
        masked = 1 - p[:, NEUROPIL]
        found = p.argmax(axis=1) != NEUROPIL
        self._entropy += float((masked * -(p * np.log2(np.maximum(p, _TINY))).sum(axis=1)).sum())
        self._masked += float(masked.sum())
        self._agreed += float(p.max(axis=1)[found].sum())
        self._found += int(found.sum())
        self._places += len(p)
        below, right = probabilities[1 : height + 1, :width], probabilities[:height, 1 : width + 1]
        rows, columns = len(below), right.shape[1]
        self._pairs(probabilities[:rows, :width], below, tissue[:rows, :width], tissue[1 : height + 1, :width])
        self._pairs(probabilities[:height, :columns], right, tissue[:height, :columns], tissue[:height, 1 : width + 1])

    def _pairs(self, a: Floats, b: Floats, in_a: NDArray[np.bool_], in_b: NDArray[np.bool_]) -> None:
        differ = (a.argmax(-1) != b.argmax(-1)) & in_a & in_b
        # Half of the sum of the differences: 1 where both are sure of their class, near 0 where neither is.
        self._sharpness += float(np.abs(a[differ].astype(np.float64) - b[differ]).sum() / 2)
        self._boundaries += int(differ.sum())

    @property
    def expected_dice(self) -> float | None:
        """Dice of what is masked, were the network's probabilities true; None where nothing is, or could be.

        Classes other than neuropil count together: twice the probability of what was found, over the number of places
        found and expected (after Li et al. 2022, who estimate performance from class-wise confidence).
        """
        return round(2 * self._agreed / (self._found + self._masked), 6) if self._judged else None

    @property
    def entropy(self) -> float | None:
        """Bits a place, 0 (sure) to 2 (no idea), weighted by the probability of being no neuropil.

        Neuropil is most of a section, and what is sure there hides what is not elsewhere.  None as `expected_dice`.
        """
        return round(self._entropy / self._masked, 6) if self._judged else None

    @property
    def sharpness(self) -> float | None:
        """Total variation distance of the probabilities of two neighbours of different classes, mean; None: no such."""
        return round(self._sharpness / self._boundaries, 6) if self._boundaries else None

    @property
    def _judged(self) -> bool:
        return max(self._found, self._masked) > _LEAST * self._places
