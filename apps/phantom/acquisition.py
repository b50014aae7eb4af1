"""Acquisition of a block's sections: what a microscope makes of them, with the truth about where everything lies.

`acquire_section` is a pure function of the section's image, the design, the seed and the section's number: sections can
be acquired in any order, in any process, and are the same.

The true section image S shows the block B as S(p) = B(p + D(p)) (warps.py).  A tile whose true offset is t shows S at
t + q in its pixel q; offsets are no whole numbers, so a tile is interpolated (cubic splines) straight from the block's
section.  All points are (y, x) in pixels, and S has the shape of the block's section.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.phantom.artefacts import Artefact, ArtefactKind, Dirt, Fold, charge, draw_dirt, draw_fold
from apps.phantom.fields import Floats
from apps.phantom.warps import displacement, section_warp

Image = NDArray[np.uint8]
Offsets = NDArray[np.float64]

_RESIN = 190.0  # grey level beyond the block
_SMALLEST_TILE = 16
_ROWS = 256  # of a section interpolated at a time, so that coordinates need little memory

# What the random numbers of a section are for: each has a stream of its own.
_PLACEMENT, _DEFORMATION, _STAGE, _ARTEFACT, _TILE, _MICROSCOPE, _CAMERA = range(7)


class AcquisitionDesign(Parameters, frozen=True, kw_only=True):
    """Lengths are in pixels, intensities in grey levels of 0 to 255."""

    grid: Annotated[
        tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]],
        Meta(description="tiles a section: rows, columns"),
    ] = (3, 3)
    overlap: Annotated[
        float, Meta(gt=0.0, le=0.5, description="nominal overlap of two neighbouring tiles, as a fraction of a tile")
    ] = 0.1
    jitter: Annotated[
        float, Meta(ge=0.0, le=200.0, description="most that the stage misses a tile's nominal place by, along y and x")
    ] = 8.0
    translation: Annotated[
        float, Meta(ge=0.0, le=1000.0, description="most that a section is shifted, along y and x")
    ] = 10.0
    rotation_deg: Annotated[float, Meta(ge=0.0, le=45.0, description="most that a section is turned, in degrees")] = 1.0
    deformation: Annotated[
        float, Meta(ge=0.0, le=50.0, description="standard deviation of the smooth deformation, along y and x")
    ] = 2.0
    deformation_length: Annotated[
        float, Meta(ge=32.0, le=5000.0, description="length over which the deformation comes and goes")
    ] = 100.0
    margin: Annotated[
        int, Meta(ge=0, description="border of the section that is not imaged; beyond the block there is empty resin")
    ] = 0
    illumination: Annotated[
        float,
        Meta(ge=0.0, le=0.9, description="brightness that a tile loses towards its darkest corner, as a fraction"),
    ] = 0.2
    contrast_drift: Annotated[
        float, Meta(ge=0.0, le=0.5, description="standard deviation of a tile's contrast about 1")
    ] = 0.05
    brightness_drift: Annotated[
        float, Meta(ge=0.0, le=50.0, description="standard deviation of a tile's brightness")
    ] = 5.0
    noise: Annotated[
        float, Meta(ge=0.0, le=100.0, description="standard deviation of the camera's noise, new in every tile")
    ] = 12.0
    artefacts: Annotated[tuple[Artefact, ...], Meta(description="what goes wrong, one by one")] = ()

    def check(self) -> None:
        tiles = self.grid[0] * self.grid[1]
        for artefact in self.artefacts:
            if artefact.tile is not None and artefact.tile >= tiles:
                raise ParameterError(
                    f"artefact {artefact.kind} of section {artefact.section}: tile {artefact.tile} of {tiles}; "
                    "tiles are counted row by row from 0"
                )

    @property
    def warp_spacing(self) -> int:
        """Pixels between two nodes of the grid on which a section's warp is given."""
        return max(8, round(self.deformation_length / 4))

    def tile_shape(self, section_shape: tuple[int, int]) -> tuple[int, int]:
        """Extent (y, x) of a tile: the largest with which the grid stays in a section of `section_shape`.

        Raises ParameterError where the section is too small, or where jitter could part two neighbours.
        """
        extents = []
        for extent, count, axis in zip(section_shape, self.grid, "yx", strict=True):
            tile = int((extent - 2 * self._inset) / (count - (count - 1) * self.overlap))
            if tile < _SMALLEST_TILE:
                raise ParameterError(
                    f"grid {self.grid}: tiles of {tile} pixels along {axis} in a section of {section_shape}; "
                    f"expected {_SMALLEST_TILE} or more: give a larger section, or less margin, jitter or tiles"
                )
            if count > 1 and 2 * self.jitter >= self.overlap * tile:
                raise ParameterError(
                    f"jitter {self.jitter:g}: two neighbours can miss each other, as they overlap by "
                    f"{self.overlap * tile:.1f} pixels along {axis}; expected less than half of that"
                )
            extents.append(tile)
        return extents[0], extents[1]

    def nominal(self, section_shape: tuple[int, int]) -> Offsets:
        """Nominal offsets (y, x) of all tiles, row by row, float64 [n, 2] (whole numbers); see `tile_shape`."""
        steps = [tile - round(self.overlap * tile) for tile in self.tile_shape(section_shape)]
        rows, columns = (self._inset + step * np.arange(n) for step, n in zip(steps, self.grid, strict=True))
        return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float64)

    @property
    def _inset(self) -> int:
        return self.margin + int(np.ceil(self.jitter))


@dataclass(frozen=True)
class SectionTruth:
    """Where a section lies, in pixels (y, x).

    Attributes:
        section: its number.
        shape: extent of the true section image, which is that of the block's section.
        translation, rotation_deg: the rigid part of the warp; the rotation is about the section's middle.
        warp: float32 [2, gy, gx], all of the displacement (rigid, smooth, fold) on a grid, whose node (i, j) is at
            warp_spacing * (i, j).  Where there is a fold it is exact but in the cells that the crease crosses.
        warp_spacing: pixels between two nodes.
        smooth_warp: the same without the fold.
        fold: the fold, where there is one.
        dirt: what covers a damaged section.
        artefacts: all of the section, as asked for, tiles drawn.
    """

    section: int
    shape: tuple[int, int]
    translation: tuple[float, float]
    rotation_deg: float
    warp: Floats
    warp_spacing: int
    smooth_warp: Floats
    fold: Fold | None
    dirt: Dirt | None
    artefacts: tuple[Artefact, ...]

    def displacement(self, points: Offsets) -> Offsets:
        """D at `points` [..., 2] of the true section image, exact everywhere: it shows the block at p + D(p)."""
        found = displacement(self.smooth_warp, self.warp_spacing, points)
        return found if self.fold is None else found + self.fold.displacement(points)

    def has(self, kind: ArtefactKind) -> bool:
        return any(artefact.kind == kind for artefact in self.artefacts)

    def tiles_with(self, kind: ArtefactKind) -> frozenset[int]:
        """Numbers of the tiles that have an artefact of `kind`."""
        return frozenset(a.tile for a in self.artefacts if a.kind == kind and a.tile is not None)


@dataclass(frozen=True)
class AcquiredSection:
    """What the microscope delivers of one section; without tiles where the section is missing.

    Attributes:
        truth: where the section lies.
        numbers: which tiles there are, counted row by row from 0; a missing tile's number is left out.
        tiles: uint8 [y, x] each, all of one shape.
        nominal, true: float64 [n, 2], offsets (y, x) of the tiles' first pixels in the true section image: where the
            stage says they are, and where they are.
    """

    truth: SectionTruth
    numbers: tuple[int, ...]
    tiles: list[Image]
    nominal: Offsets
    true: Offsets

    @property
    def section(self) -> int:
        return self.truth.section

    @property
    def warp(self) -> Floats:
        """float32 [2, gy, gx]: see `SectionTruth`."""
        return self.truth.warp

    @property
    def warp_spacing(self) -> int:
        return self.truth.warp_spacing


def section_truth(section_shape: tuple[int, int], design: AcquisitionDesign, seed: int, section: int) -> SectionTruth:
    """Where the section number `section`, of `section_shape` (y, x), lies when it is acquired."""
    placement = _rng(seed, _PLACEMENT, section)
    y, x = placement.uniform(-design.translation, design.translation, 2)
    rotation = float(placement.uniform(-design.rotation_deg, design.rotation_deg))
    spacing = design.warp_spacing
    smooth = section_warp(
        _rng(seed, _DEFORMATION, section),
        section_shape,
        spacing,
        (float(y), float(x)),
        rotation,
        design.deformation,
        design.deformation_length,
    )
    rng = _rng(seed, _ARTEFACT, section)
    artefacts, fold, dirt = [], None, None
    for artefact in design.artefacts:
        if artefact.section != section:
            continue
        drawn = int(rng.integers(design.grid[0] * design.grid[1]))
        if artefact.kind == "fold":
            fold = draw_fold(rng, section_shape, artefact.fold_width)
        elif artefact.kind == "damaged_section":
            dirt = draw_dirt(rng, section_shape, artefact.covered)
        elif artefact.kind != "missing_section" and artefact.tile is None:
            artefact = Artefact(kind=artefact.kind, section=section, tile=drawn)
        artefacts.append(artefact)
    warp = smooth
    if fold is not None:
        nodes = np.stack(np.meshgrid(*(spacing * np.arange(n) for n in smooth.shape[1:]), indexing="ij"), axis=-1)
        warp = smooth + np.moveaxis(fold.displacement(nodes.astype(np.float64)), -1, 0).astype(np.float32)
    return SectionTruth(
        section=section,
        shape=section_shape,
        translation=(float(y), float(x)),
        rotation_deg=rotation,
        warp=warp,
        warp_spacing=spacing,
        smooth_warp=smooth,
        fold=fold,
        dirt=dirt,
        artefacts=tuple(artefacts),
    )


def acquire_section(section_image: Image, design: AcquisitionDesign, seed: int, section: int) -> AcquiredSection:
    """Image one section of a block.

    Args:
        section_image: uint8 [y, x], the block's section.
        design: how it is imaged.
        seed: of everything that is random in it.
        section: the section's number, from 0.

    Raises ParameterError where the tiles do not fit the section (`AcquisitionDesign.tile_shape`), DataError where the
    image is no uint8 [y, x].
    """
    truth = section_truth(_shape_of(section_image), design, seed, section)
    numbers, nominal, true = place_tiles(truth, design, seed)
    tiles: list[Image] = []
    if numbers:
        extent = design.tile_shape(truth.shape)
        coefficients = _spline(section_image)
        shade = _illumination(seed, extent, design.illumination)
        charged = truth.tiles_with("charging")
        for number, offset in zip(numbers, true, strict=True):
            rng = _rng(seed, _TILE, section, number)
            grey = _look(coefficients, truth, offset, extent)
            if number in charged:
                charge(rng, grey)
            tiles.append(_expose(rng, grey, shade, design))
    return AcquiredSection(truth, numbers, tiles, nominal, true)


def place_tiles(truth: SectionTruth, design: AcquisitionDesign, seed: int) -> tuple[tuple[int, ...], Offsets, Offsets]:
    """Numbers, nominal and true offsets of a section's tiles: see `AcquiredSection`."""
    if truth.has("missing_section"):
        return (), np.zeros((0, 2)), np.zeros((0, 2))
    nominal = design.nominal(truth.shape)
    true = nominal + _rng(seed, _STAGE, truth.section).uniform(-design.jitter, design.jitter, nominal.shape)
    absent = truth.tiles_with("missing_tile")
    there = [number for number in range(len(nominal)) if number not in absent]
    return tuple(there), nominal[there], true[there]


def true_section_image(section_image: Image, design: AcquisitionDesign, seed: int, section: int) -> Image:
    """The true section image, uint8 [y, x]: what a faultless montage of the section shows, with the camera's noise.

    Illumination, drift, and artefacts of single tiles are not in it.  A missing section is black.
    """
    truth = section_truth(_shape_of(section_image), design, seed, section)
    image = np.zeros(truth.shape, np.uint8)
    if truth.has("missing_section"):
        return image
    coefficients, rng = _spline(section_image), _rng(seed, _CAMERA, section)
    for row in range(0, truth.shape[0], _ROWS):
        part = image[row : row + _ROWS]
        grey = _look(coefficients, truth, np.array([row, 0.0]), (part.shape[0], part.shape[1]))
        grey += np.float32(design.noise) * rng.standard_normal(grey.shape, dtype=np.float32)
        part[:] = _to_uint8(grey)
    return image


def true_section_labels(labels: NDArray[np.integer], truth: SectionTruth, beyond: int = 0) -> NDArray[np.integer]:
    """What the pixels of the true section image are: the block's `labels` or masks [y, x] of the section, warped.

    Nearest voxel, of the same dtype; `beyond` where the section shows what lies outside of the block.
    """
    warped = np.full(truth.shape, beyond, labels.dtype)
    for row in range(0, truth.shape[0], _ROWS):
        part = warped[row : row + _ROWS]
        points = np.moveaxis(np.indices(part.shape, np.float64), 0, -1) + np.array([row, 0])
        y, x = np.moveaxis(np.rint(points + truth.displacement(points)).astype(np.intp), -1, 0)
        inside = (y >= 0) & (y < labels.shape[0]) & (x >= 0) & (x < labels.shape[1])
        part[inside] = labels[y[inside], x[inside]]
    return warped


def _shape_of(section_image: Image) -> tuple[int, int]:
    if section_image.ndim != 2 or section_image.dtype != np.uint8:
        raise DataError(
            f"a section's image of shape {section_image.shape} and dtype {section_image.dtype}: expected uint8 [y, x]"
        )
    return section_image.shape[0], section_image.shape[1]


def _spline(section_image: Image) -> Floats:
    """Coefficients of the cubic spline through a section's pixels."""
    coefficients: Floats = ndimage.spline_filter(section_image.astype(np.float32), order=3, output=np.float32)
    return coefficients


def _look(coefficients: Floats, truth: SectionTruth, offset: Offsets, extent: tuple[int, int]) -> Floats:
    """float32 [extent]: the true section image from `offset` on, as it is before it is exposed."""
    grey = np.empty(extent, np.float32)
    for row in range(0, extent[0], _ROWS):
        part = grey[row : row + _ROWS]
        y, x = np.meshgrid(offset[0] + row + np.arange(part.shape[0]), offset[1] + np.arange(extent[1]), indexing="ij")
        points = np.stack([y, x], axis=-1)
        block = points + truth.displacement(points)
        ndimage.map_coordinates(
            coefficients, np.moveaxis(block, -1, 0), output=part, order=3, mode="constant", cval=_RESIN, prefilter=False
        )
        if truth.fold is not None:
            truth.fold.darken(part, points)
        if truth.dirt is not None:
            truth.dirt.hide(part, points)
    return grey


def _illumination(seed: int, extent: tuple[int, int], strength: float) -> Floats:
    """float32 [extent]: what every tile of this microscope is multiplied by, 1 - strength to 1."""
    rng = _rng(seed, _MICROSCOPE)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in extent), indexing="ij")
    loss = (y - rng.uniform(-0.4, 0.4)) ** 2 + (x - rng.uniform(-0.4, 0.4)) ** 2 + rng.uniform(-0.3, 0.3) * (y + x)
    loss -= loss.min()
    return (1 - strength * loss / loss.max()).astype(np.float32)


def _expose(rng: np.random.Generator, grey: Floats, shade: Floats, design: AcquisitionDesign) -> Image:
    """Contrast, brightness, illumination and noise of one tile."""
    contrast = np.float32(np.exp(design.contrast_drift * rng.standard_normal()))
    brightness = np.float32(design.brightness_drift * rng.standard_normal())
    exposed = ((grey - 128) * contrast + (128 + brightness)) * shade
    exposed += np.float32(design.noise) * rng.standard_normal(grey.shape, dtype=np.float32)
    return _to_uint8(exposed)


def _to_uint8(grey: Floats) -> Image:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _rng(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose])
