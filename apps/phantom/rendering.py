"""The phantom's image: what a FIB-SEM would show of its neurites (dark membranes and organelles, bright cytoplasm)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.phantom.design import PhantomDesign
from apps.phantom.fields import DrawnNoise, Floats, Noise, paint_balls
from apps.phantom.neurites import Neurites
from apps.phantom.paths import STEP, Path, Points

_MITOCHONDRION = 74.0  # grey level of the matrix
_MITOCHONDRION_LENGTH = (24.0, 60.0)  # voxels
_ROOM, _ATTEMPTS = 6.0, 20  # voxels of depth that a mitochondrion needs; places tried for one
_CLEFT = 2.0  # voxels of cytoplasm between a mitochondrion and the membrane sheet's dark part
_VESICLE_RADIUS, _VESICLE_DARKENING, _VESICLES = 1.8, 38.0, 40


def render(rng: np.random.Generator, neurites: Neurites, design: PhantomDesign) -> NDArray[np.uint8]:
    """uint8 image (zyx) of the neurites of a block in one piece."""
    shape = neurites.labels.shape
    noise = DrawnNoise(rng, (shape[0], shape[1], shape[2]))
    # The order of these lines is that of the random numbers.
    image = cytoplasm(noise, neurites.cells, draw_shades(rng, int(neurites.cells.max()) + 1, design), design)
    middles = rng.random((vesicle_clusters(image.size, design), 1, 3)) * image.shape
    add_vesicles(image, draw_vesicles(rng, middles), neurites.depth > design.membrane_thickness / 2 + 1)
    add_mitochondria(noise, image, neurites.depth, _find_mitochondria(rng, image.size, neurites, design), design)
    add_membranes(noise, image, neurites.depth, design)
    image = blur(shade(noise, image, design), design)
    return expose(noise, image, design)


def draw_shades(rng: np.random.Generator, count: int, design: PhantomDesign) -> Floats:
    """Grey level of the cytoplasm of each of `count` neurites, float32."""
    shade = rng.standard_normal(count, dtype=np.float32) * design.cytoplasm_variation
    shades: Floats = design.cytoplasm_intensity + shade.astype(np.float32)
    return shades


def cytoplasm(noise: Noise, cells: NDArray[np.int32], shades: Floats, design: PhantomDesign) -> Floats:
    """A grey level for each cell, with fine and coarse texture."""
    image: Floats = shades[cells]
    amplitude = np.float32(design.texture / np.sqrt(2))
    image += amplitude * noise.smooth("fine texture", 1.2)
    image += amplitude * noise.smooth("coarse texture", 4.0)
    return image


def shade(noise: Noise, image: Floats, design: PhantomDesign) -> Floats:
    """The image with slow changes of brightness."""
    if design.shading:
        image += np.float32(design.shading) * noise.smooth("shading", design.shading_length)
    return image


def blur(image: Floats, design: PhantomDesign) -> Floats:
    """The image as the microscope's point spread function leaves it."""
    return ndimage.gaussian_filter(image, design.blur, mode="nearest") if design.blur else image


def expose(noise: Noise, image: Floats, design: PhantomDesign) -> NDArray[np.uint8]:
    """The image with the detector's noise, as it is stored."""
    image += np.float32(design.noise) * noise.white("detector")
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def add_membranes(
    noise: Noise, image: Floats, depth: Floats, design: PhantomDesign, threshold: float | None = None
) -> None:
    """Dark sheets where `depth` is small; `threshold` is the quantile of the fading (that of a sample by default)."""
    sheet = _membrane_profile(depth, design.membrane_thickness)
    sheet *= _contrast(noise, design, threshold)
    image += sheet * (design.membrane_intensity - image)


def _membrane_profile(depth: Floats, thickness: float) -> Floats:
    """1 on the sheet, 0 in the cytoplasm; half of the contrast is left half a thickness away from the sheet."""
    profile: Floats = np.exp2(-((depth / np.float32(thickness / 2)) ** 2))
    return profile


def _contrast(noise: Noise, design: PhantomDesign, threshold: float | None) -> Floats:
    """Contrast of membranes, zyx: 1, and down to `faded_contrast` in patches that hold a share of the area."""
    patches = noise.smooth("fading", design.faded_patch)
    if not design.membrane_fading:
        return np.ones_like(patches)
    # The field is Gaussian over the voxels, so its quantile is that of a sample of them.
    if threshold is None:
        threshold = float(np.quantile(patches[::3, ::3, ::3], 1 - design.membrane_fading))
    ramp = np.clip((patches - threshold) / np.float32(0.5) + np.float32(0.5), 0, 1)
    return (1 - (1 - design.faded_contrast) * ramp).astype(np.float32)


@dataclass(frozen=True)
class Capsule:
    """A mitochondrion: its centre line, zyx [n, 3], and its radius [n] along it, in voxels."""

    centres: Points
    radii: NDArray[np.float64]


def add_mitochondria(
    noise: Noise,
    image: Floats,
    depth: Floats,
    found: list[Capsule],
    design: PhantomDesign,
    origin: Points | None = None,
) -> None:
    """Dark capsules with cristae in cytoplasm; `origin` is where the image's first voxel lies (0 by default)."""
    if not found:
        return
    centres, radii = np.concatenate([c.centres for c in found]), np.concatenate([c.radii for c in found])
    if origin is not None:
        centres = centres - origin
    shape = (image.shape[0], image.shape[1], image.shape[2])
    edge, owner = paint_balls(shape, centres, radii, np.ones(len(radii), np.int32))
    inside = (owner > 0) & (depth > design.membrane_thickness / 2 + _CLEFT)
    cristae = np.abs(noise.smooth("cristae", 2.5)[inside])
    # A dark outer membrane, and inside it a matrix that thin bright cristae run through.
    grey = _MITOCHONDRION + 14 * np.exp(-((cristae / 0.25) ** 2)) - 8 * (edge[inside] > 0.85)
    image[inside] = grey


def _find_mitochondria(
    rng: np.random.Generator, voxels: int, neurites: Neurites, design: PhantomDesign
) -> list[Capsule]:
    """Mitochondria of a block in one piece, whose neurites are all at hand."""

    def room(path: Path, points: slice) -> NDArray[np.float64]:
        at = np.rint(path.points[points]).astype(int)
        inside = np.all((at >= 0) & (at < neurites.cells.shape), axis=1)
        index = tuple(np.where(inside[:, None], at, 0).T)
        own = inside & (neurites.cells[index] == path.neurite)
        return np.where(own, neurites.depth[index], 0.0).astype(np.float64)

    return draw_mitochondria(rng, round(design.mitochondria * voxels / 1e6), neurites.paths, room)


def draw_mitochondria(
    rng: np.random.Generator,
    count: int,
    paths: list[Path],
    room: Callable[[Path, slice], NDArray[np.float64]],
) -> list[Capsule]:
    """At most `count` mitochondria along the centre lines of neurites that are wide enough to hold them.

    `room(path, points)` tells the depth, in voxels, of these points of a path in its own neurite; 0 outside of it.
    """
    drawn = (_run_of_path(rng, paths, room) for _ in range(_ATTEMPTS * count))
    return list(itertools.islice((run for run in drawn if run is not None), count))


def _run_of_path(
    rng: np.random.Generator, paths: list[Path], room: Callable[[Path, slice], NDArray[np.float64]]
) -> Capsule | None:
    """A random piece of a centre line, and a mitochondrion's radius there; None where it does not fit."""
    path = paths[rng.integers(len(paths))]
    middle = int(rng.integers(len(path.points)))
    half = round(rng.uniform(*_MITOCHONDRION_LENGTH) / STEP / 2)
    fill = rng.uniform(0.5, 0.8)
    low = max(0, middle - half)
    piece = slice(low, middle + half)
    depth = room(path, piece)
    fits = depth > _ROOM
    if not fits[middle - low]:
        return None
    # The part around the middle that fits without a break.
    gaps = np.flatnonzero(~fits)
    start = gaps[gaps < middle - low].max(initial=-1) + 1
    stop = gaps[gaps > middle - low].min(initial=len(fits))
    return Capsule(path.points[piece][start:stop], fill * ndimage.uniform_filter1d(depth[start:stop], 5))


def vesicle_clusters(voxels: int, design: PhantomDesign) -> int:
    """How many clusters of vesicles a block of so many voxels holds."""
    return round(design.vesicle_clusters * voxels / 1e6)


def draw_vesicles(rng: np.random.Generator, middles: Points) -> Points:
    """Centres [clusters, vesicles, 3] (zyx) of the vesicles of clusters about `middles` [clusters, 1, 3]."""
    return middles + 6.0 * rng.standard_normal((len(middles), _VESICLES, 3))


def add_vesicles(
    image: Floats, centres: Points, inside: NDArray[np.bool_], darkening: float = _VESICLE_DARKENING
) -> None:
    """Small blobs at `centres` [..., 3] (zyx, from the image's first voxel) where it is `inside` of a neurite.

    Drawn in place.  They are darker than the cytoplasm by `darkening` grey levels in their middle.
    """
    balls = centres.reshape(-1, 3)
    if not len(balls):
        return
    shape = (image.shape[0], image.shape[1], image.shape[2])
    depth, _ = paint_balls(shape, balls, np.full(len(balls), _VESICLE_RADIUS), np.ones(len(balls), np.int32))
    image -= np.float32(darkening) * (1 - depth) * inside
