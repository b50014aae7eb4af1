"""Examples that the network is trained on: patches of annotated sections, drawn, turned and changed at random.

A step's examples follow from the seed and the step's number alone, so that a training that goes on after a kill sees
what one without it would have seen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.progress import Reporter
from apps.core.volumes import Volume
from apps.masking.classes import CLASSES, OUTSIDE, check_classes
from apps.masking.sections import Floats, class_shares, normalise, read_statistics
from apps.masking.settings import Augmentation, TrainSettings

_SHADE_NODES = 3  # a smooth shift is given at so many nodes along y and x
_BORDER = 4  # an example's extent over the width of the border around what is annotated
_FULL = 255  # a share of 1 as it is kept


class Examples:
    """What is annotated in a box, as the network sees it, in memory: 12 bytes a block of pixels.

    Attributes:
        shares: of each class in what is annotated, summing up to 1.
        pixels: of the examples of one step, as the section has them.
        digest: of grey values and classes, so that a training goes on with the same data only.
    """

    def __init__(self, image: Volume, labels: Volume, box: Box, settings: TrainSettings, report: Reporter) -> None:
        """Raises DataError where the box is smaller than a unit of the network, holds other values than classes, fewer
        than two classes, or no tissue."""
        network = settings.network
        factor, unit = int(network.downsample), network.unit
        height, width = (extent // unit * unit for extent in box.shape[1:])
        if not height or not width:
            raise DataError(
                f"box {box}: is too small to train on; a network with downsample {factor} and {network.poolings} "
                f"poolings needs {unit} x {unit} pixels"
            )
        self._settings = settings
        self._patch = tuple(min(settings.patch, extent) // factor for extent in (height, width))
        self.pixels = settings.batch_size * self._patch[0] * self._patch[1] * factor**2
        planes, annotated, digests = [], [], []
        for done, plane in enumerate(range(box.offset[0], box.end[0])):
            report(done, box.shape[0], "reading annotated sections")
            part = Box.between((plane, *box.offset[1:]), (plane + 1, box.offset[1] + height, box.offset[2] + width))
            statistics = read_statistics(image, plane)
            classes = check_classes(labels.read(part)[0], labels.name)
            digests.append(f"{statistics.digest} {hash_of(classes)}")
            planes.append(normalise(image.read(part)[0], statistics, factor))
            annotated.append(np.rint(class_shares(classes, len(CLASSES), factor) * _FULL).astype(np.uint8))
        self._images, self._classes = np.stack(planes), np.stack(annotated)
        self.digest = hash_of(np.frombuffer("\n".join(digests).encode(), np.uint8))
        if not self._images.any():
            raise DataError(f"{image.name}: shows nothing in the box {box}; every pixel is 0 (or of one grey value)")
        total = self._classes.sum(axis=(0, 1, 2), dtype=np.int64)
        if np.count_nonzero(total) < 2:
            raise DataError(
                f"{labels.name}: has fewer than two classes in the box {box}; a network learns to tell classes apart"
            )
        self.shares = dict(zip(CLASSES, (total / total.sum()).tolist(), strict=True))
        main = self._classes > _FULL // 2
        self._places = main.sum(axis=(1, 2), dtype=np.int64)  # [plane, class]
        # Examples reach over the border, beyond which nothing is shown, as tiles do when a section is masked.
        self._border = min(self._patch) // _BORDER
        around = ((0, 0), (self._border, self._border), (self._border, self._border))
        beyond = np.zeros(len(CLASSES), np.uint8)
        beyond[OUTSIDE] = _FULL
        inside = np.pad(np.ones(self._images.shape[:3], bool), around)
        self._images = np.pad(self._images, (*around, (0, 0)))
        self._classes = np.where(inside[..., None], np.pad(self._classes, (*around, (0, 0))), beyond)

    def batch(self, step: int) -> tuple[Floats, Floats]:
        """Of step `step`: what the network sees [batch, y, x, SEEN], the share of each class [batch, y, x, class]."""
        settings = self._settings
        rng = np.random.default_rng([settings.seed, step])
        pairs = [self._example(rng) for _ in range(settings.batch_size)]
        images, classes = (np.stack(parts) for parts in zip(*pairs, strict=True))
        return images, classes.astype(np.float32) / np.float32(_FULL)

    def _example(self, rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8]]:
        plane, centre = self._draw(rng)
        how = self._settings.augmentation
        zoom = how.zoom ** rng.uniform(-1, 1)  # over 1: less is looked at, and is enlarged
        spans = []
        for place, extent, size in zip(centre, self._images.shape[1:3], self._patch, strict=True):
            looked_at = min(extent, max(1, round(size / zoom)))
            start = place + self._border - int(rng.integers(looked_at))
            start = min(max(start, 0), extent - looked_at)
            # Middles of `size` equal parts of what is looked at, each as the nearest place.
            spans.append(start + ((np.arange(size) + 0.5) * looked_at / size).astype(np.intp))
        where = np.ix_(*spans)
        return augment(
            self._images[plane][where], self._classes[plane][where], how, int(self._settings.network.downsample), rng
        )

    def _draw(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """A plane and a place in it, the border not counted, that an example is to hold."""
        border = self._border
        depth, height, width = self._images.shape[0], *(extent - 2 * border for extent in self._images.shape[1:3])
        there = np.flatnonzero(self._places.sum(axis=0))
        if rng.random() < self._settings.balanced and len(there):
            chosen = int(rng.choice(there))
            counts = self._places[:, chosen]
            plane = int(rng.choice(depth, p=counts / counts.sum()))
            own = self._classes[plane, border : border + height, border : border + width, chosen]
            places = np.flatnonzero(own > _FULL // 2)
            place = int(rng.choice(places))
        else:
            plane, place = int(rng.integers(depth)), int(rng.integers(height * width))
        return plane, (place // width, place % width)


def augment(
    image: Floats, classes: NDArray[np.uint8], how: Augmentation, downsample: int, rng: np.random.Generator
) -> tuple[Floats, NDArray[np.uint8]]:
    """An example turned and changed at random: image [y, x, SEEN], classes [y, x, class].

    Square ones only are turned by 90 degrees, others by 180.
    """
    if how.rotate:
        turns = int(rng.integers(4))
        turns = turns if image.shape[0] == image.shape[1] else turns // 2 * 2
        image, classes = np.rot90(image, turns), np.rot90(classes, turns)
    if how.flip:
        for axis in (0, 1):
            if rng.random() < 0.5:
                image, classes = np.flip(image, axis), np.flip(classes, axis)
    mean, spread = image[..., 0], image[..., 1]
    tissue = (mean != 0) | (spread != 0)
    nodes = rng.standard_normal((_SHADE_NODES, _SHADE_NODES)) * how.shading
    grid = np.meshgrid(*(np.linspace(0, _SHADE_NODES - 1, extent) for extent in mean.shape), indexing="ij")
    shift = ndimage.map_coordinates(nodes, grid, order=1) + how.brightness * rng.standard_normal()
    contrast, noise = np.exp(how.contrast * rng.standard_normal()), rng.uniform(0, how.noise)
    # Noise of single pixels adds to their spread in a block; that of a block's mean is as much smaller as it is large.
    mean = mean * contrast + shift + noise / downsample * rng.standard_normal(mean.shape)
    spread = np.hypot(spread * contrast, noise) if downsample > 1 else spread
    image = (np.stack([mean, spread], axis=-1) * tissue[..., None]).astype(np.float32)
    if rng.random() < how.blank:
        image, classes = _blank(image, classes, rng)
    return image, np.ascontiguousarray(classes)


def _blank(image: Floats, classes: NDArray[np.uint8], rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8]]:
    """Blank what lies beyond a line at random: it is out of tissue then."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in image.shape[:2]), indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    beyond = y * np.sin(angle) + x * np.cos(angle) > rng.uniform(0.2, 1.0)
    outside = np.zeros(classes.shape[-1], np.uint8)
    outside[OUTSIDE] = _FULL
    return np.where(beyond[..., None], np.float32(0), image), np.where(beyond[..., None], outside, classes)


def hash_of(array: NDArray[np.uint8]) -> str:
    """First 32 hex digits of the SHA-256 of an array's bytes."""
    import hashlib

    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:32]
