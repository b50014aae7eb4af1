"""Grey values as the network takes them: less the image's mean, over its standard deviation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import Volume, open_volume

Floats = NDArray[np.float32]

NOTHING = 0  # grey value of what an aligned volume has no image of
_SAMPLES, _SAMPLE = 64, 48  # so many cubes of so many voxels a side tell the statistics of an image


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of an image's voxels that are not 0."""

    mean: float
    std: float

    def normalise(self, voxels: NDArray[Any]) -> Floats:
        """Voxels that show nothing become 0, which is the mean."""
        grey = np.subtract(voxels, self.mean, dtype=np.float32) / np.float32(self.std)
        return np.where(voxels != NOTHING, grey, np.float32(0))


def open_image(name: str) -> Volume:
    """Open an image.  Raises DataError where it is none."""
    image = open_volume(name)
    if image.dtype.kind == "i" or image.dtype.itemsize > 4:
        raise DataError(f"{name}: has dtype {image.dtype}; expected an image of uint8, uint16, uint32 or float32")
    return image


def measure(image: Volume) -> Statistics:
    """Statistics of up to 64 cubes spread evenly over the image: the same ones whoever asks.

    Raises DataError where they show nothing, or one grey value only.
    """
    cubes = [_SAMPLE] * 3
    counts = [-(-n // c) for n, c in zip(image.shape, cubes, strict=True)]
    total = math.prod(counts)
    chosen = {index * total // min(total, _SAMPLES) for index in range(min(total, _SAMPLES))}
    values, squares, number = 0.0, 0.0, 0
    for index in sorted(chosen):
        z, y, x = np.unravel_index(index, counts)
        cube = Box.of((int(z) * _SAMPLE, int(y) * _SAMPLE, int(x) * _SAMPLE), (_SAMPLE,) * 3).intersection(image.box)
        shown = image.read(cube)
        shown = shown[shown != NOTHING].astype(np.float64)
        values, squares, number = values + shown.sum(), squares + (shown**2).sum(), number + shown.size
    mean = values / number if number else 0.0
    variance = squares / number - mean**2 if number else 0.0
    if variance <= 1e-9 * max(1.0, mean**2):
        raise DataError(f"{image.name}: shows nothing, its voxels are 0 or of one grey value; expected an image")
    return Statistics(float(mean), math.sqrt(variance))
