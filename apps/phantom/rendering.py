"""The phantom's image: what a FIB-SEM would show of its neurites (dark membranes and organelles, bright cytoplasm)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.phantom.design import PhantomDesign
from apps.phantom.fields import Floats, paint_balls, smooth_noise
from apps.phantom.neurites import Neurites
from apps.phantom.paths import STEP, Points

_MITOCHONDRION = 74.0  # grey level of the matrix
_MITOCHONDRION_LENGTH = (24.0, 60.0)  # voxels
_ROOM, _ATTEMPTS = 6.0, 20  # voxels of depth that a mitochondrion needs; places tried for one
_CLEFT = 2.0  # voxels of cytoplasm between a mitochondrion and the membrane sheet's dark part
_VESICLE_RADIUS, _VESICLE_DARKENING, _VESICLES = 1.8, 38.0, 40


def render(rng: np.random.Generator, neurites: Neurites, design: PhantomDesign) -> NDArray[np.uint8]:
    """uint8 image (zyx) of the neurites."""
    shape = neurites.cells.shape
    image = _cytoplasm(rng, neurites, design)
    _add_vesicles(rng, image, neurites, design)
    _add_mitochondria(rng, image, neurites, design)
    sheet = _membrane_profile(neurites.depth, design.membrane_thickness)
    sheet *= _contrast(rng, neurites, design)
    image += sheet * (design.membrane_intensity - image)
    if design.shading:
        image += np.float32(design.shading) * smooth_noise(rng, shape, design.shading_length)
    if design.blur:
        image = ndimage.gaussian_filter(image, design.blur, mode="nearest")
    image += np.float32(design.noise) * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _cytoplasm(rng: np.random.Generator, neurites: Neurites, design: PhantomDesign) -> Floats:
    """A grey level for each neurite, with fine and coarse texture."""
    shade = rng.standard_normal(int(neurites.cells.max()) + 1, dtype=np.float32) * design.cytoplasm_variation
    image: Floats = (design.cytoplasm_intensity + shade.astype(np.float32))[neurites.cells]
    shape = neurites.cells.shape
    amplitude = np.float32(design.texture / np.sqrt(2))
    image += amplitude * smooth_noise(rng, shape, 1.2)
    image += amplitude * smooth_noise(rng, shape, 4.0)
    return image


def _membrane_profile(depth: Floats, thickness: float) -> Floats:
    """1 on the sheet, 0 in the cytoplasm; half of the contrast is left half a thickness away from the sheet."""
    profile: Floats = np.exp2(-((depth / np.float32(thickness / 2)) ** 2))
    return profile


def _contrast(rng: np.random.Generator, neurites: Neurites, design: PhantomDesign) -> Floats:
    """Contrast of membranes, zyx: 1, and down to `faded_contrast` in patches that hold a share of the area."""
    patches = smooth_noise(rng, neurites.cells.shape, design.faded_patch)
    if not design.membrane_fading:
        return np.ones_like(patches)
    # The field is Gaussian over the voxels, so its quantile is that of a sample of them.
    threshold = np.quantile(patches[::3, ::3, ::3], 1 - design.membrane_fading)
    ramp = np.clip((patches - threshold) / np.float32(0.5) + np.float32(0.5), 0, 1)
    return (1 - (1 - design.faded_contrast) * ramp).astype(np.float32)


def _add_mitochondria(rng: np.random.Generator, image: Floats, neurites: Neurites, design: PhantomDesign) -> None:
    """Dark capsules with cristae along the centre lines of neurites that are wide enough to hold them."""
    count = round(design.mitochondria * image.size / 1e6)
    drawn = (_run_of_path(rng, neurites) for _ in range(_ATTEMPTS * count))
    runs = list(itertools.islice((run for run in drawn if run is not None), count))
    if not runs:
        return
    centres, radii = np.concatenate([run[0] for run in runs]), np.concatenate([run[1] for run in runs])
    depth, owner = paint_balls(image.shape, centres, radii, np.ones(len(radii), np.int32))
    inside = (owner > 0) & (neurites.depth > design.membrane_thickness / 2 + _CLEFT)
    cristae = np.abs(smooth_noise(rng, image.shape, 2.5)[inside])
    # A dark outer membrane, and inside it a matrix that thin bright cristae run through.
    grey = _MITOCHONDRION + 14 * np.exp(-((cristae / 0.25) ** 2)) - 8 * (depth[inside] > 0.85)
    image[inside] = grey


def _run_of_path(rng: np.random.Generator, neurites: Neurites) -> tuple[Points, NDArray[np.float64]] | None:
    """Points of a random piece of a centre line, and a mitochondrion's radius there; None where it does not fit."""
    path = neurites.paths[rng.integers(len(neurites.paths))]
    middle = int(rng.integers(len(path.points)))
    half = round(rng.uniform(*_MITOCHONDRION_LENGTH) / STEP / 2)
    fill = rng.uniform(0.5, 0.8)
    low = max(0, middle - half)
    centres = path.points[low : middle + half]
    voxels = np.rint(centres).astype(int)
    inside = np.all((voxels >= 0) & (voxels < neurites.cells.shape), axis=1)
    index = tuple(np.where(inside[:, None], voxels, 0).T)
    fits = inside & (neurites.cells[index] == path.neurite) & (neurites.depth[index] > _ROOM)
    if not fits[middle - low]:
        return None
    # The part around the middle that fits without a break.
    gaps = np.flatnonzero(~fits)
    start = gaps[gaps < middle - low].max(initial=-1) + 1
    stop = gaps[gaps > middle - low].min(initial=len(fits))
    depth = neurites.depth[index][start:stop]
    return centres[start:stop], fill * ndimage.uniform_filter1d(depth.astype(np.float64), 5)


def _add_vesicles(rng: np.random.Generator, image: Floats, neurites: Neurites, design: PhantomDesign) -> None:
    """Clusters of small dark blobs in the cytoplasm."""
    clusters = round(design.vesicle_clusters * image.size / 1e6)
    if not clusters:
        return
    middles = rng.random((clusters, 1, 3)) * image.shape
    centres = (middles + 6.0 * rng.standard_normal((clusters, _VESICLES, 3))).reshape(-1, 3)
    radii = np.full(len(centres), _VESICLE_RADIUS)
    depth, _ = paint_balls(image.shape, centres, radii, np.ones(len(centres), np.int32))
    inside = neurites.depth > design.membrane_thickness / 2 + 1
    image -= np.float32(_VESICLE_DARKENING) * (1 - depth) * inside
