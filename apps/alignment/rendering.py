"""Rendering: what the aligned volume shows, chunk by chunk.

A pixel of the volume looks up its place on the section through the inverse of the mesh.  The inverse is computed on a
lattice that is fixed in the volume and interpolated; a chunk's pixels depend on the chunk alone, so the bytes are the
same however the work is divided.  Interpolation leaves out what is not tissue, so that nothing darkens at its border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, map_coordinates, spline_filter

from apps.alignment.images import on_lattice
from apps.alignment.transforms import Mesh, Points
from apps.core.boxes import Box
from apps.core.volumes import Volume

_LATTICE = 16  # pixels between places at which the mesh is inverted
_MARGIN = 16  # pixels around what is looked at, for the cubic spline to settle
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """What a plane of the volume shows: a section's image where its mesh puts it."""

    image: Volume
    mesh: Mesh


def render_plane(source: Source, corner: tuple[int, int], shape: tuple[int, int], interpolation: str) -> Image:
    """uint8 `shape` (h, w): the section as it lies in the aligned frame, from the pixel `corner` (y, x) on.

    0 where there is no tissue; tissue is at least 1.
    """
    return render_chunks(source, [(corner, shape)], interpolation)[0]


def render_chunks(
    source: Source, chunks: Sequence[tuple[tuple[int, int], tuple[int, int]]], interpolation: str
) -> list[Image]:
    """`render_plane` of several pieces (corner, shape) that lie together: what they look at is read once."""
    places = [on_lattice(source.mesh.inverse, corner, shape, _LATTICE) for corner, shape in chunks]
    windows = [_window(place, source.image.shape[1:]) for place in places]
    seen = [window for window in windows if window is not None]
    if not seen:
        return [np.zeros(shape, np.uint8) for _, shape in chunks]
    starts, ends = zip(*((window.offset, window.end) for window in seen), strict=True)
    (y0, x0), (y1, x1) = np.min(starts, axis=0)[1:], np.max(ends, axis=0)[1:]
    whole = source.image.read(Box.between((0, int(y0), int(x0)), (1, int(y1), int(x1))))[0]
    found = []
    for place, window, (_, shape) in zip(places, windows, chunks, strict=True):
        if window is None:
            found.append(np.zeros(shape, np.uint8))
            continue
        _, y, x = window.slices((0, int(y0), int(x0)))
        found.append(_interpolate(whole[y, x], place - np.reshape(window.offset[1:], (2, 1, 1)), interpolation))
    return found


def _window(places: Points, shape: tuple[int, ...]) -> Box | None:
    """What of a section (H, W) the places [2, h, w] look at; None where they all look past it."""
    low = np.maximum(np.floor(places.min(axis=(1, 2))).astype(int) - _MARGIN, 0)
    high = np.minimum(np.ceil(places.max(axis=(1, 2))).astype(int) + _MARGIN + 1, shape)
    if (low >= high).any():
        return None
    return Box.between((0, int(low[0]), int(low[1])), (1, int(high[0]), int(high[1])))


def _interpolate(image: Image, places: Points, interpolation: str) -> Image:
    """The image at `places` [2, h, w] of it."""
    tissue = image > 0
    pixels = image.astype(np.float32)
    weight: NDArray[np.float32] | float = 1.0
    whole = bool(tissue.all())
    (y, x), (height, width) = places, image.shape
    inside = (y >= -0.5) & (y <= height - 0.5) & (x >= -0.5) & (x <= width - 0.5)
    if not whole:
        weight = map_coordinates(tissue.astype(np.float32), places, order=1, mode="nearest")
        inside &= weight >= 0.5
    if interpolation == "cubic":
        if not whole and tissue.any():
            nearest = distance_transform_edt(~tissue, return_distances=False, return_indices=True)
            pixels = pixels[tuple(nearest)]
        spline = spline_filter(pixels, order=3, mode="mirror", output=np.float32)
        values = map_coordinates(spline, places, order=3, mode="mirror", prefilter=False)
    else:
        values = map_coordinates(pixels, places, order=1, mode="nearest")
        values = values / np.maximum(weight, 1e-6)
    return np.where(inside, np.clip(np.rint(values), 1, 255), 0).astype(np.uint8)
