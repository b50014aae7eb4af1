"""True errors of montage, alignment and masks: each section's distance from the phantom's truth.

The three frames: a montage's section image is the true section image moved by a whole section's shift (`Frame`); the
true section image shows the block where the warps say; the aligned volume shows the section image where its mesh says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.alignment.images import on_lattice
from apps.alignment.storage import load_mesh, mesh_path
from apps.alignment.transforms import Mesh, fit_rigid
from apps.alignment.volume import Layout
from apps.alignment.volume import Paths as AlignmentPaths
from apps.audit.truth import AcquisitionTruth, class_at, read_plane
from apps.core.errors import DataError
from apps.core.volumes import Volume, open_volume
from apps.masking.classes import OUTSIDE, Confusion
from apps.montage.records import SectionRecord
from apps.montage.section import SectionFiles

_STEP = 16  # pixels between the points at which the error of an alignment is taken
_EDGE = 24  # pixels at the border of a section, and of the block, that are left out
_LATTICE = 16  # pixels between places at which a mesh is inverted


@dataclass(frozen=True)
class Frame:
    """Where a montage put a section.

    Attributes:
        shift: (y, x) of the true section image at the section image's pixel 0, 0, as the mean of its tiles says.
        error: root mean square distance of the tiles from where that shift would have them, pixels.
    """

    shift: NDArray[np.float64]
    error: float


def montage_frames(truth: AcquisitionTruth, montage: Path) -> dict[int, Frame]:
    """Section -> its frame, of the sections that have an image.

    Raises DataError where a tile of the montage is not one of the phantom's.
    """
    frames = {}
    for section in range(truth.sections):
        record = SectionFiles.of(str(montage), section).load()
        tiles = [] if record is None else [tile for tile in record.tiles if tile.rendered]
        if record is None or not tiles:
            continue
        places = np.array([(tile.y, tile.x) for tile in tiles])
        offsets = _true_offsets(truth, record) - places
        shift = offsets.mean(axis=0)
        frames[section] = Frame(shift, float(np.sqrt(np.mean(np.sum((offsets - shift) ** 2, axis=1)))))
    return frames


def _true_offsets(truth: AcquisitionTruth, record: SectionRecord) -> NDArray[np.float64]:
    try:
        return np.array([truth.offsets[tile.path] for tile in record.tiles if tile.rendered])
    except KeyError as error:
        raise DataError(
            f"tile {error}: is not one of this phantom's; audit a montage with the phantom it is of"
        ) from None


def alignment_errors(truth: AcquisitionTruth, frames: dict[int, Frame], alignment: Path) -> dict[int, float]:
    """Section -> root mean square error in pixels, after removing one rigid motion of the whole stack.

    Of the sections that the volume shows as they are.  The truth is the block: what a section shows has to lie where it
    lies there, up to that motion.
    """
    sections, placed, real = [], [], []
    for section, mesh in _meshes(alignment, frames):
        points = _tissue_points(truth, section)
        if len(points):
            sections.append(section)
            placed.append(mesh(points - frames[section].shift))
            real.append(truth.on_block(section, points))
    if not sections:
        return {}
    rigid = fit_rigid(np.concatenate(placed), np.concatenate(real), np.ones(sum(map(len, placed))))
    squares = [np.mean(np.sum((rigid(a) - b) ** 2, axis=1)) for a, b in zip(placed, real, strict=True)]
    return {section: float(np.sqrt(square)) for section, square in zip(sections, squares, strict=True)}


def _tissue_points(truth: AcquisitionTruth, section: int) -> NDArray[np.float64]:
    """[n, 2]: points of the true section image, on a grid, that show the block and not what is beyond it."""
    height, width = truth.shape
    y, x = np.mgrid[_EDGE : height - _EDGE : _STEP, _EDGE : width - _EDGE : _STEP]
    points = np.stack([y.ravel(), x.ravel()], axis=1).astype(np.float64)
    there = truth.on_block(section, points)
    return points[((there >= _EDGE) & (there <= np.array(truth.shape) - 1.0 - _EDGE)).all(axis=1)]


@dataclass(frozen=True)
class TruePlane:
    """A section in the aligned volume, with the true class of its pixels.

    Attributes:
        section, plane: its number, and its z in the volume.
        shown: where the volume shows something, bool [y, x].
        classes: uint8 [y, x]; what is not shown is out of tissue.
    """

    section: int
    plane: int
    shown: NDArray[np.bool_]
    classes: NDArray[np.uint8]


def true_planes(truth: AcquisitionTruth, frames: dict[int, Frame], alignment: Path) -> Iterator[TruePlane]:
    """The true classes of the sections that the aligned volume shows as they are.

    Taken through alignment and montage to the block, so that their errors are none of the classes'.  Raises DataError
    where the phantom has no classes.
    """
    if truth.masks is None:
        raise DataError("the phantom has no masks.zarr: give its design vessels or somata")
    layout = Layout.load(AlignmentPaths(alignment).solution)
    aligned = open_volume(str(AlignmentPaths(alignment).volume))
    planes = {section.section: section.plane for section in layout.sections}
    for section, mesh in _meshes(alignment, frames):
        shown = read_plane(aligned, planes[section]) > 0
        places = on_lattice(mesh.inverse, layout.origin, (shown.shape[0], shown.shape[1]), _LATTICE)
        points = truth.on_block(section, np.moveaxis(places, 0, -1) + frames[section].shift)
        real = class_at(truth.masks, section, points, OUTSIDE)
        yield TruePlane(section, planes[section], shown, np.where(shown, real, OUTSIDE).astype(np.uint8))


def mask_confusion(true: TruePlane, masks: Volume) -> Confusion:
    """The shown pixels of a section by true and found class."""
    confusion = Confusion()
    confusion.add(true.classes[true.shown], read_plane(masks, true.plane)[true.shown])
    return confusion


def _meshes(alignment: Path, frames: dict[int, Frame]) -> Iterator[tuple[int, Mesh]]:
    """The sections that the volume shows as they are, with their meshes."""
    for section in Layout.load(AlignmentPaths(alignment).solution).sections:
        if section.shown != "own" or section.section not in frames:
            continue
        stored = load_mesh(mesh_path(alignment, section.section))
        if stored is None:
            raise DataError(f"{mesh_path(alignment, section.section)}: has gone; solve the alignment again")
        yield section.section, stored.mesh
