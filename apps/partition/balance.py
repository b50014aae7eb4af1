"""Drawing coordinates so that every class is equally frequent, in bounded memory and in any order of the blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Coordinates = NDArray[np.int32]


class ClassSample:
    """A uniform random sample of the coordinates of one class, without replacement.

    Every coordinate that is offered comes with a random key; the `size` smallest keys are kept (all, where `size` is
    None).  What is kept, in the order of the keys, is a random sample in random order that does not depend on the order
    of the offers.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._keys = np.zeros(0, np.float64)
        self._coordinates = np.zeros((0, 3), np.int32)
        self.offered = 0

    def offer(self, keys: NDArray[np.float64], coordinates: Coordinates) -> None:
        """Offer coordinates [n, 3] with their keys [n]."""
        self.offered += len(keys)
        if self._size is not None and len(self._keys) == self._size:
            better = keys < self._keys.max()
            keys, coordinates = keys[better], coordinates[better]
        self._keys = np.concatenate([self._keys, keys])
        self._coordinates = np.concatenate([self._coordinates, coordinates])
        if self._size is not None and len(self._keys) > self._size:
            best = np.argpartition(self._keys, self._size)[: self._size]
            self._keys, self._coordinates = self._keys[best], self._coordinates[best]

    def draw(self, count: int) -> Coordinates:
        """`count` coordinates; where there are fewer, each is repeated equally often, give or take one."""
        # Equal keys are as good as impossible, yet the order must not hang on the order of the offers even then.
        z, y, x = self._coordinates.T
        order = np.lexsort((x, y, z, self._keys))
        return self._coordinates[np.resize(order, count)]


def balanced(
    classes: dict[int, ClassSample], most: int | None, rng: np.random.Generator
) -> tuple[Coordinates, NDArray[np.uint8]]:
    """Coordinates [n, 3] and their classes [n], every class equally often (to one), shuffled.

    Every class is brought to the size of the largest (as google/ffn does), or to its share of `most` if that is less.
    """
    count = max(sample.offered for sample in classes.values())
    if most is not None:
        count = min(count, -(-most // len(classes)))
    coordinates = np.concatenate([sample.draw(count) for sample in classes.values()])
    numbers = np.repeat(np.array(list(classes), np.uint8), count)
    order = rng.permutation(len(numbers))[:most]
    return coordinates[order], numbers[order]
