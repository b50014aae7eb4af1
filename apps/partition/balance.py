"""Drawing coordinates so that every class is equally frequent, in bounded memory and in any order of the blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box

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

    def shrink(self, size: int) -> None:
        """Keep no more than `size` from now on."""
        self._size = size
        self._cut()

    def offer(self, keys: NDArray[np.float64], coordinates: Coordinates) -> None:
        """Offer coordinates [n, 3] with their keys [n]."""
        self.offered += len(keys)
        if self._size is not None and len(self._keys) == self._size:
            better = keys < self._keys.max()
            keys, coordinates = keys[better], coordinates[better]
        self._keys = np.concatenate([self._keys, keys])
        self._coordinates = np.concatenate([self._coordinates, coordinates])
        self._cut()

    def _cut(self) -> None:
        if self._size is not None and len(self._keys) > self._size:
            best = np.argpartition(self._keys, self._size)[: self._size]
            self._keys, self._coordinates = self._keys[best], self._coordinates[best]

    def draw(self, count: int) -> Coordinates:
        """`count` coordinates; where there are fewer, each is repeated equally often, give or take one."""
        # Equal keys are as good as impossible, yet the order must not hang on the order of the offers even then.
        z, y, x = self._coordinates.T
        order = np.lexsort((x, y, z, self._keys))
        return self._coordinates[np.resize(order, count)]


class Sampler:
    """Samples of all classes, offered block by block.

    Attributes:
        samples: by class; those of which something was offered.
    """

    def __init__(self, most: int | None, seed: int, skipped: frozenset[int]) -> None:
        """`most`: how many coordinates all classes share (None: no bound); nothing of the classes `skipped`."""
        self._most, self._seed, self._skipped = most, seed, skipped
        self.samples: dict[int, ClassSample] = {}

    def offer(self, block: Box, classes: NDArray[np.uint8], candidates: Box) -> None:
        """Offer the voxels of `block`, which has the `classes`, that lie in `candidates`."""
        wanted = block.intersection(candidates)
        if wanted.empty:
            return
        classes = classes[wanted.slices(block.offset)]
        # The keys hang on the seed and on where the block lies, not on which block came first.
        rng = np.random.default_rng((self._seed, *block.offset))
        for number in np.flatnonzero(np.bincount(classes.ravel())).tolist():
            if number in self._skipped:
                continue
            coordinates = (np.argwhere(classes == number) + wanted.offset).astype(np.int32)
            if number not in self.samples:
                self._add(number)
            self.samples[number].offer(rng.random(len(coordinates)), coordinates)

    def _add(self, number: int) -> None:
        """One more class to share with: each keeps its part, so that memory does not grow with their number."""
        self.samples[number] = ClassSample(self._most)
        if self._most is not None:
            for sample in self.samples.values():
                sample.shrink(share(self._most, len(self.samples)))


def share(most: int, classes: int) -> int:
    """How many of `most` coordinates one of so many classes can give, rounded up."""
    return -(-most // classes)


def balanced(
    classes: dict[int, ClassSample], most: int | None, rng: np.random.Generator
) -> tuple[Coordinates, NDArray[np.uint8]]:
    """Coordinates [n, 3] and their classes [n], every class equally often (to one), shuffled.

    Every class is brought to the size of the largest (as google/ffn does), or to its share of `most` if that is less.
    """
    count = max(sample.offered for sample in classes.values())
    if most is not None:
        count = min(count, share(most, len(classes)))
    coordinates = np.concatenate([sample.draw(count) for sample in classes.values()])
    numbers = np.repeat(np.array(list(classes), np.uint8), count)
    order = rng.permutation(len(numbers))[:most]
    return coordinates[order], numbers[order]
