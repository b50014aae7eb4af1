"""Uneven illumination: one smooth factor for all tiles of a group, from what they have in common; and grey levels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.montage.filters import Floats
from apps.montage.images import Tile
from apps.montage.offsets import Extent, Strip
from apps.montage.survey import SurveyedTile

_FEWEST_TILES = 6  # of fewer, half would be one or two tiles
_LEAST_AGREEMENT = 0.4  # two halves without illumination agree by more now and then
_DARKEST = 0.1  # a corner that gets less light than this part of the mean holds no image


@dataclass(frozen=True)
class FlatField:
    """A polynomial in y and x, -1 to 1 over a tile, with mean 1: the light that a pixel gets.

    coefficients: of y^i x^j, in the order of `_powers(degree)`.
    """

    degree: int
    coefficients: tuple[float, ...]

    def at(self, shape: Extent, part: Strip) -> Floats:
        """float32 of the part's shape: the factor at pixels `part` of a tile of `shape`.

        Every value is computed for itself, so that parts give the same bytes as the whole.
        """
        y, x = (
            (2 * (np.arange(a, b) + 0.5) / n - 1).astype(np.float32)
            for a, b, n in zip(part.first, part.end, shape, strict=True)
        )
        field = np.zeros(part.shape, np.float32)
        for j in range(self.degree, -1, -1):  # Horner's rule in x
            rows = np.zeros(len(y), np.float32)
            for (i, k), value in zip(_powers(self.degree), self.coefficients, strict=True):
                if k == j:
                    rows += np.float32(value) * y**i
            field *= x
            field += rows[:, None]
        return np.maximum(field, np.float32(_DARKEST), out=field)


@dataclass(frozen=True)
class Exposure:
    """How a tile's values become grey levels of 0 to 255, evenly lit.

    grey_range: 16-bit values that become 0 and 255.
    """

    grey_range: tuple[float, float] | None
    flat_field: FlatField | None

    def correct(self, image: Tile, part: Strip) -> Floats:
        """float32: the pixels `part` of a tile."""
        grey = image[part.slices()].astype(np.float32)
        if image.dtype == np.uint16 and self.grey_range is not None:
            low, high = self.grey_range
            grey = (grey - np.float32(low)) * np.float32(255 / (high - low))
        if self.flat_field is not None:
            grey /= self.flat_field.at((image.shape[0], image.shape[1]), part)
        return grey


def estimate_flat_field(tiles: list[SurveyedTile], degree: int, dark: float) -> FlatField | None:
    """The illumination that `tiles` (of one shape) share: a polynomial through the median of their normalised means.

    Few tiles do not average their content out.  What is no illumination differs between the tiles' two halves: by as
    much as the halves agree (their correlation, stepped up to all tiles by Spearman and Brown's formula) the field is
    taken, and where they hardly do it is not.

    dark: the value of 16-bit tiles that is black.  Returns None where there is nothing to correct.
    """
    grids = []
    for tile in tiles:
        grid = tile.grid.astype(np.float64) - (dark if tile.depth == 16 else 0.0)
        if grid.mean() > 0:
            grids.append(grid / grid.mean())
    if len(grids) < _FEWEST_TILES:
        return None
    y, x = (2 * (np.arange(n) + 0.5) / n - 1 for n in grids[0].shape)
    columns = [np.multiply.outer(y**i, x**j).ravel() for i, j in _powers(degree)]
    design: NDArray[np.float64] = np.stack(columns, axis=1)
    fits = [
        np.linalg.lstsq(design, np.median(part, axis=0).ravel(), rcond=None)[0]
        for part in (grids, grids[::2], grids[1::2])
    ]
    fields = [design @ fit for fit in fits]
    if min(field.std() for field in fields) == 0:
        return None
    agreement = float(np.corrcoef(fields[1], fields[2])[0, 1])
    if agreement < _LEAST_AGREEMENT:
        return None
    solution = fits[0] / fields[0].mean() * (2 * agreement / (1 + agreement))
    solution[0] += 1 - (2 * agreement / (1 + agreement))
    return FlatField(degree, tuple(float(np.float32(value)) for value in solution))


def _powers(degree: int) -> list[tuple[int, int]]:
    return [(i, total - i) for total in range(degree + 1) for i in range(total + 1)]
