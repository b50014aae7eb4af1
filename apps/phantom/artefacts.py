"""What goes wrong in preparing and imaging sections, on request: folds, charging, missing and damaged parts.

Artefacts are asked for one by one, each for a section (and a tile), so that a test knows what it will meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from apps.phantom.fields import Floats, smooth_noise

_FOLD_GREY = 40.0  # of the double layer of a fold
_CHARGING = 90.0  # grey levels that a charged place gains at most
_CHARGED_ROWS = 0.18  # of a tile's height: standard deviation of the charged band
_DIRT_GREY, _DIRT_SPREAD = 70.0, 18.0  # of what covers a damaged section
_DIRT_LENGTH = 0.06  # of the section's larger extent: size of the blotches


# fold: a crease across the section hides a strip of tissue.  charging: a bright, streaked band in one tile.
# missing_tile, missing_section: never imaged.  damaged_section: dirt covers most of the section.
ArtefactKind = Literal["fold", "charging", "missing_tile", "missing_section", "damaged_section"]


_OF_A_TILE = ("charging", "missing_tile")


class Artefact(Parameters, frozen=True, kw_only=True):
    """One artefact that is asked for."""

    kind: Annotated[ArtefactKind, Meta(description="what goes wrong")]
    section: Annotated[int, Meta(ge=0, description="section that it happens to")]
    tile: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="tile of the section, row by row from 0, for charging and missing_tile; null draws one"),
    ] = None
    fold_width: Annotated[float, Meta(gt=0.0, le=500.0, description="tissue that a fold hides, pixels")] = 16.0
    covered: Annotated[float, Meta(gt=0.0, le=1.0, description="share of a damaged section that dirt covers")] = 0.8

    def check(self) -> None:
        if self.tile is not None and self.kind not in _OF_A_TILE:
            raise ParameterError(
                f"artefact {self.kind} of section {self.section}: is of the whole section; give no tile"
            )


@dataclass(frozen=True)
class Fold:
    """A straight crease: `point` (y, x) on it, unit `normal` (y, x), and the `width` in pixels of what it hides.

    Beside the crease the section is pulled together: the side that the normal points to shows the block half a width
    further along the normal, the other side half a width less.
    """

    point: tuple[float, float]
    normal: tuple[float, float]
    width: float

    def distance(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Signed distance in pixels of `points` [..., 2] (y, x) from the crease."""
        signed: NDArray[np.float64] = (points - self.point) @ np.asarray(self.normal)
        return signed

    def displacement(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the fold adds to the section's displacement at `points` [..., 2], pixels."""
        side = np.where(self.distance(points) >= 0, 0.5, -0.5) * self.width
        return side[..., None] * np.asarray(self.normal)

    def darken(self, grey: Floats, points: NDArray[np.float64]) -> None:
        """Draw the crease, a dark double layer a quarter of the width wide, into `grey`, in place."""
        weight = np.exp(-((self.distance(points) / (self.width / 4)) ** 2)).astype(np.float32)
        grey += weight * (np.float32(_FOLD_GREY) - grey)


def draw_fold(rng: np.random.Generator, section_shape: tuple[int, int], width: float) -> Fold:
    """A fold in any direction through the middle third of a section."""
    angle = rng.uniform(0, np.pi)
    point = (np.asarray(section_shape) - 1) * rng.uniform(1 / 3, 2 / 3, 2)
    return Fold((float(point[0]), float(point[1])), (float(np.cos(angle)), float(np.sin(angle))), width)


def charge(rng: np.random.Generator, grey: Floats) -> None:
    """Brighten a band of rows of a tile (float32 [y, x]), with streaks along the scan direction x, in place."""
    height, width = grey.shape
    middle, reach = rng.uniform(0.3, 0.7) * height, _CHARGED_ROWS * height
    band = np.exp(-(((np.arange(height) - middle) / reach) ** 2) / 2)
    streaks = 0.6 + 0.4 * rng.random(height)
    along = 0.5 + 0.5 * np.cos(np.linspace(-1, 1, width) * np.pi * rng.uniform(0.3, 0.8))
    grey += (_CHARGING * (band * streaks)[:, None] * along).astype(np.float32)


@dataclass(frozen=True)
class Dirt:
    """What covers a section, on a coarse grid as large as it: `cover` 0 to 1 and `grey`, both float32 [gy, gx]."""

    cover: Floats
    grey: Floats
    spacing: float

    def hide(self, image: Floats, points: NDArray[np.float64]) -> None:
        """Cover `image` (float32 [y, x], of the section's `points` [y, x, 2]) in place."""
        at = np.moveaxis(points, -1, 0) / self.spacing
        cover = ndimage.map_coordinates(self.cover, at, order=1, mode="nearest")
        image += cover * (ndimage.map_coordinates(self.grey, at, order=1, mode="nearest") - image)


def draw_dirt(rng: np.random.Generator, section_shape: tuple[int, int], covered: float) -> Dirt:
    """Blotches that cover the share `covered` of a section of `section_shape` (y, x)."""
    length = _DIRT_LENGTH * max(section_shape)
    spacing = max(1.0, length / 4)
    nodes = (int(section_shape[0] / spacing) + 2, int(section_shape[1] / spacing) + 2)
    blotches = smooth_noise(rng, nodes, length / spacing)
    threshold = np.quantile(blotches, 1 - covered)
    cover = np.clip((blotches - threshold) / 0.1 + 0.5, 0, 1).astype(np.float32)
    grey = _DIRT_GREY + _DIRT_SPREAD * smooth_noise(rng, nodes, length / spacing / 2)
    return Dirt(cover, grey.astype(np.float32), spacing)
