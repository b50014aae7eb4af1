"""Rotation and translation between two sections, from nothing: cross-correlation at a small scale, over angles.

For each angle the turned image is correlated with the other at all translations at once (Fourier); the highest peak
wins.  Then the angle is refined between its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import affine_transform

from apps.alignment.images import Piece, flatten
from apps.alignment.transforms import Rigid

_REFINEMENTS = 3


@dataclass(frozen=True)
class Coarse:
    """What the coarse search found.

    Attributes:
        rigid: brings a point of the first image to where the second shows it, pixels of the images.
        correlation: of the two at that place, -1 to 1, where all of both counts.
    """

    rigid: Rigid
    correlation: float


def find_rigid(first: Piece, second: Piece, max_rotation_deg: float) -> Coarse:
    """Rotation (at most so large) and translation from `first` to `second`, whole sections at one small scale."""
    return _Search(first, second).run(math.radians(max_rotation_deg))


class _Search:
    def __init__(self, first: Piece, second: Piece) -> None:
        width = max(5, max(first.pixels.shape) // 8)
        self._a = flatten(first, width)
        self._b = flatten(second, width)
        self._shape = tuple(
            fft.next_fast_len(m + n, real=True) for m, n in zip(first.pixels.shape, second.pixels.shape, strict=True)
        )
        self._spectrum = fft.rfft2(self._a, self._shape)
        self._norm = float(np.linalg.norm(self._a))
        self._centre = (np.array(second.pixels.shape) - 1) / 2
        self._step = 3.0 / max(second.pixels.shape)  # radians: a pixel and a half at the edge

    def run(self, limit: float) -> Coarse:
        count = math.ceil(limit / self._step)
        angles = [limit * k / max(count, 1) for k in range(-count, count + 1)]
        if limit > math.pi - self._step / 2:
            angles = angles[1:]  # a half turn to the left is one to the right
        tried = [self._correlate(angle) for angle in angles]
        best = int(np.argmax([peak for peak, _ in tried]))
        angle, (peak, shift), step = angles[best], tried[best], self._step
        for _ in range(_REFINEMENTS):
            step /= 2
            for candidate in (angle - step, angle + step):
                found = self._correlate(candidate)
                if found[0] > peak:
                    (peak, shift), angle = found, candidate
        return Coarse(self._rigid(angle, shift), peak)

    def _correlate(self, angle: float) -> tuple[float, NDArray[np.int64]]:
        """The highest correlation of the first image with the second turned back by `angle`, and where it is."""
        turn = Rigid(angle, (0.0, 0.0))
        turned = affine_transform(self._b, turn.matrix, self._centre - turn(self._centre), order=1, mode="constant")
        surface = fft.irfft2(self._spectrum * np.conj(fft.rfft2(turned, self._shape)), self._shape)
        place = np.unravel_index(int(np.argmax(surface)), surface.shape)
        norm = self._norm * float(np.linalg.norm(turned))
        shift = np.array([p if p < m else p - n for p, m, n in zip(place, self._a.shape, self._shape, strict=True)])
        return (float(surface[place]) / norm if norm else 0.0), shift

    def _rigid(self, angle: float, shift: NDArray[np.int64]) -> Rigid:
        # first(p) ~ turned(p - shift) = second(R (p - shift - centre) + centre)
        turn = Rigid(angle, (0.0, 0.0))
        offset = self._centre - turn(shift + self._centre)
        return Rigid(angle, (float(offset[0]), float(offset[1])))
