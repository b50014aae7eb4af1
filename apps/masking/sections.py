"""Grey values of sections as a network takes them: statistics of a section, normalised, averaged over blocks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import Volume, open_volume

NO_TISSUE = 0  # grey value of what an aligned volume has no image of
SEEN = 2  # numbers that the network sees of a block: mean, standard deviation
_STRIP = 256  # rows read at once
_FLATTEST = 1.0  # grey levels: a section of one grey value is not divided by nothing

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SectionStatistics:
    """What a section is normalised by, and its content.

    Attributes:
        mean, std: grey level of the pixels that are not NO_TISSUE, and its standard deviation (at least 1).
        tissue: number of these pixels.
        digest: first 32 hex digits of the SHA-256 over all pixels, row by row.
    """

    mean: float
    std: float
    tissue: int
    digest: str


def open_image(name: str) -> Volume:
    """A volume of uint8 grey values.  Raises DataError where it is none."""
    volume = open_volume(name)
    if volume.dtype != np.uint8:
        raise DataError(f"{name}: has dtype {volume.dtype}; expected grey values of uint8 (0 to 255): convert it")
    return volume


def read_statistics(image: Volume, plane: int) -> SectionStatistics:
    """Statistics of one plane, read in strips."""
    histogram = np.zeros(256, np.int64)
    digest = hashlib.sha256(f"{image.shape[1:]}".encode())
    chunk = int((image.array.chunks or (1, _STRIP, 1))[1])
    strip = -(-_STRIP // chunk) * chunk  # whole chunks, or each would be read several times
    for row in range(0, image.shape[1], strip):
        pixels = image.read(Box.between((plane, row, 0), (plane + 1, min(row + strip, image.shape[1]), image.shape[2])))
        histogram += np.bincount(pixels.ravel(), minlength=256)
        digest.update(np.ascontiguousarray(pixels).tobytes())
    histogram[NO_TISSUE] = 0
    tissue = int(histogram.sum())
    grey = np.arange(256)
    mean = float((histogram * grey).sum() / tissue) if tissue else 0.0
    variance = float((histogram * (grey - mean) ** 2).sum() / tissue) if tissue else 0.0
    return SectionStatistics(mean, max(variance**0.5, _FLATTEST), tissue, digest.hexdigest()[:32])


def normalise(pixels: NDArray[np.uint8], statistics: SectionStatistics, factor: int) -> Floats:
    """What the network sees of `pixels` [y, x]: float32 [y / factor, x / factor, SEEN].

    First the mean of (grey - mean) / std over a block of factor x factor pixels, then their standard deviation in the
    block: averaging alone would hide how granular cytoplasm is.  Pixels that show no tissue do not count, and both are
    0 where a block has no others.  Both extents are multiples of `factor`.
    """
    tissue = (pixels != NO_TISSUE).astype(np.float32)
    grey = np.subtract(pixels, statistics.mean, dtype=np.float32) / np.float32(statistics.std) * tissue
    count = np.maximum(_block_sums(tissue, factor), np.float32(1))
    mean = _block_sums(grey, factor) / count
    variance = _block_sums(grey * grey, factor) / count - mean * mean
    return np.stack([mean, np.sqrt(np.maximum(variance, np.float32(0)))], axis=-1)


def class_shares(labels: NDArray[np.uint8], classes: int, factor: int) -> Floats:
    """[y, x] labels as [y/factor, x/factor, class]: the share of a block that is of each class; others are of none."""
    sums = np.stack([_block_sums((labels == number).astype(np.float32), factor) for number in range(classes)], axis=-1)
    return sums / np.float32(factor**2)


def _block_sums(values: Floats, factor: int) -> Floats:
    height, width = values.shape
    sums: Floats = values.reshape(height // factor, factor, width // factor, factor).sum(axis=(1, 3))
    return sums
