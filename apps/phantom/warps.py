"""Where an acquired section shows which point of the block: rotation, translation and smooth deformation.

A warp is a displacement D on a grid: the acquired section at the point p shows the block's section at p + D(p).
Between the nodes of the grid D is the bilinear interpolant, by definition, so that what is written is the truth and no
sample of it.  Points and displacements are (y, x) in pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.phantom.fields import Floats, smooth_noise

Points = NDArray[np.float64]


def grid_shape(section_shape: tuple[int, int], spacing: int) -> tuple[int, int]:
    """Nodes (gy, gx) of the grid over a section of `section_shape` (y, x): node (i, j) lies at spacing * (i, j)."""
    height, width = section_shape
    return -(-height // spacing) + 1, -(-width // spacing) + 1


def section_warp(
    rng: np.random.Generator,
    section_shape: tuple[int, int],
    spacing: int,
    translation: tuple[float, float],
    rotation_deg: float,
    deformation: float,
    deformation_length: float,
) -> Floats:
    """float32 [2, gy, gx]: the displacement (y, x) in pixels on the nodes of the section's grid.

    Args:
        rng: of the smooth part.
        section_shape: extent (y, x); the rotation is about its middle.
        spacing: pixels between two nodes.
        translation: (y, x) pixels.
        rotation_deg: degrees from y towards x.
        deformation: standard deviation of the smooth part along either axis, pixels.
        deformation_length: standard deviation of the Gaussian that smooths it, pixels.
    """
    nodes = grid_shape(section_shape, spacing)
    y, x = np.meshgrid(*(np.arange(n) * float(spacing) for n in nodes), indexing="ij")
    y, x = y - (section_shape[0] - 1) / 2, x - (section_shape[1] - 1) / 2
    cosine, sine = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    warp = np.stack([(cosine - 1) * y - sine * x + translation[0], sine * y + (cosine - 1) * x + translation[1]])
    for axis in range(2):
        warp[axis] += deformation * smooth_noise(rng, nodes, deformation_length / spacing)
    return warp.astype(np.float32)


def displacement(warp: Floats, spacing: int, points: Points) -> Points:
    """D at `points` [..., 2] (y, x) of the section, as float64 [..., 2]; points lie in 0 <= p <= last node."""
    index, weight = [], []
    for axis in range(2):
        position = points[..., axis] / spacing
        below = np.clip(np.floor(position).astype(np.intp), 0, warp.shape[1 + axis] - 2)
        index.append(below)
        weight.append(position - below)
    (i, j), (u, v) = index, weight
    found = []
    for component in warp.astype(np.float64):
        upper = (1 - v) * component[i, j] + v * component[i, j + 1]
        lower = (1 - v) * component[i + 1, j] + v * component[i + 1, j + 1]
        found.append((1 - u) * upper + u * lower)
    return np.stack(found, axis=-1)
