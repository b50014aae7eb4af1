"""Examples that the network is trained on: boxes of an annotated image, drawn, turned and changed at random.

A step's examples follow from the seed and the step's number alone, so that a training that goes on after a kill sees
what one without it would have seen.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.progress import Reporter
from apps.core.volumes import Volume
from apps.synapses.images import Floats, Statistics
from apps.synapses.settings import Augmentation, TrainSettings

_SHADE_NODES = 3  # a smooth shift is given at so many nodes along each axis

Mask = NDArray[np.bool_]


class Examples:
    """What is annotated in some boxes, in memory.

    Attributes:
        digest: of grey values and annotations, so that a training goes on with the same data only.
        shares: of the voxels that each output is to find.
        voxels: of the examples of one step.
    """

    def __init__(
        self,
        image: Volume,
        targets: tuple[Volume, ...],
        boxes: tuple[Box, ...],
        statistics: Statistics,
        settings: TrainSettings,
        report: Reporter,
    ) -> None:
        """`targets`: for each output a volume that is not 0 where it is to be found.

        Raises DataError where there is no cleft in the boxes.
        """
        self._settings, self._statistics = settings, statistics
        size = image.voxel_size_nm
        self._alike = tuple(
            (a, b)
            for a in range(3)
            for b in range(a + 1, 3)
            if settings.patch[a] == settings.patch[b] and (size is None or abs(size[a] / size[b] - 1) < 0.05)
        )
        self._images: list[NDArray[Any]] = []
        self._targets: list[Mask] = []
        digest = hashlib.sha256()
        for done, box in enumerate(boxes):
            report(done, len(boxes), "reading annotations")
            grey = image.read(box)
            target = np.stack([volume.read(box) != 0 for volume in targets], axis=-1)
            digest.update(f"{box} {grey.dtype}".encode() + np.ascontiguousarray(grey).tobytes())
            digest.update(np.packbits(target).tobytes())
            self._images.append(grey)
            self._targets.append(target)
        self.digest = digest.hexdigest()[:32]
        total = sum(array[..., 0].size for array in self._targets)
        self.shares = [float(sum(array[..., k].sum() for array in self._targets)) / total for k in range(len(targets))]
        if not self.shares[0]:
            raise DataError(
                f"{targets[0].name}: has no cleft in the boxes that are trained on, {', '.join(map(str, boxes))}"
            )
        self._clefts = [np.flatnonzero(array[..., 0]) for array in self._targets]
        self.voxels = settings.batch_size * int(np.prod(settings.patch))

    def batch(self, step: int) -> tuple[Floats, Floats]:
        """Of step `step`: what the network sees [batch, z, y, x, 1], what it is to find [batch, z, y, x, output]."""
        rng = np.random.default_rng([self._settings.seed, step])
        pairs = [self._example(rng) for _ in range(self._settings.batch_size)]
        images, targets = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return images[..., None], targets.astype(np.float32)

    def _example(self, rng: np.random.Generator) -> tuple[Floats, Mask]:
        number, start = self._draw(rng)
        where = Box.of(start, self._settings.patch).slices()
        seen = self._statistics.normalise(self._images[number][where])
        return augment(seen, self._targets[number][where], self._settings.augmentation, self._alike, rng)

    def _draw(self, rng: np.random.Generator) -> tuple[int, Triple]:
        """A box, and the first voxel of an example in it."""
        on_cleft = rng.random() < self._settings.balanced
        weights = np.array([len(c) for c in self._clefts] if on_cleft else [i.size for i in self._images], np.float64)
        number = int(rng.choice(len(weights), p=weights / weights.sum()))
        shape, patch = self._images[number].shape, self._settings.patch
        if on_cleft:
            place = np.unravel_index(int(rng.choice(self._clefts[number])), shape)
            first = [int(p) - int(rng.integers(n)) for p, n in zip(place, patch, strict=True)]
        else:
            first = [int(rng.integers(n - p + 1)) for n, p in zip(shape, patch, strict=True)]
        z, y, x = (min(max(a, 0), n - p) for a, n, p in zip(first, shape, patch, strict=True))
        return number, (z, y, x)


def augment(
    image: Floats, target: Mask, how: Augmentation, alike: tuple[tuple[int, int], ...], rng: np.random.Generator
) -> tuple[Floats, Mask]:
    """An example turned and changed at random: image [z, y, x], target [z, y, x, output].

    `alike`: pairs of axes that may be exchanged.
    """
    if how.rotate:
        for a, b in alike:
            if rng.random() < 0.5:
                image, target = np.swapaxes(image, a, b), np.swapaxes(target, a, b)
    if how.flip:
        for axis in range(3):
            if rng.random() < 0.5:
                image, target = np.flip(image, axis), np.flip(target, axis)
    shown = image != 0
    nodes = rng.standard_normal((_SHADE_NODES,) * 3) * how.shading + how.brightness * rng.standard_normal()
    shift = ndimage.zoom(nodes, [n / _SHADE_NODES for n in image.shape], order=1, grid_mode=True, mode="nearest")
    contrast, noise = np.exp(how.contrast * rng.standard_normal()), rng.uniform(0, how.noise)
    changed = image * contrast + shift + noise * rng.standard_normal(image.shape)
    return (changed * shown).astype(np.float32), target
