"""The classes of a pixel, and how well a segmentation into them agrees with the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError

NEUROPIL, VESSEL, SOMA, OUTSIDE = range(4)
CLASSES = ("neuropil", "vessel", "soma", "out_of_tissue")
NOT_ANNOTATED = 255  # in labels: nobody has said what it is

Scores = dict[str, float | None]


def check_classes(labels: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Labels as uint8.  Raises DataError that tells the values where there are others than those of classes."""
    found = np.unique(labels)
    strange = [int(value) for value in found if value not in (*range(len(CLASSES)), NOT_ANNOTATED)]
    if strange:
        known = ", ".join(f"{number} {word}" for number, word in enumerate(CLASSES))
        raise DataError(
            f"{name}: holds the values {strange[:5]}; expected classes: {known}, {NOT_ANNOTATED} not annotated"
        )
    return labels.astype(np.uint8)


class Confusion:
    """Counts of pixels by true and found class, from which Dice coefficients follow; parts can be added up."""

    def __init__(self) -> None:
        self.counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)

    def add(self, truth: NDArray[np.uint8], found: NDArray[np.uint8]) -> None:
        """Count pixels of two arrays of one shape; those that nobody annotated are left out."""
        known = truth != NOT_ANNOTATED
        pairs = truth[known].astype(np.intp) * len(CLASSES) + found[known]
        self.counts += np.bincount(pairs, minlength=self.counts.size).reshape(self.counts.shape)

    def wrong(self) -> float:
        """Share of the pixels whose class is not the true one; 0 where there are none."""
        total = int(self.counts.sum())
        return 1 - int(np.trace(self.counts)) / total if total else 0.0

    def dice(self) -> Scores:
        """Class -> 2 |truth and found| / (|truth| + |found|) (Dice 1945), 0 to 1; null where neither has the class."""
        scores: Scores = {}
        for number, name in enumerate(CLASSES):
            size = int(self.counts[number].sum() + self.counts[:, number].sum())
            scores[name] = 2 * int(self.counts[number, number]) / size if size else None
        return scores
