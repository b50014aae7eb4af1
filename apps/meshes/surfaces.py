"""Surfaces of objects: marching cubes in a unit, and putting the surfaces of neighbouring units together.

Marching cubes and the quadric edge collapse that simplifies its surface are zmesh's; it leaves the border of an open
surface where it is, so the surfaces of two units that share a plane of voxels meet in the same vertices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import zmesh
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from apps.core.boxes import Box, Triple
from apps.core.volumes import VoxelSize
from apps.morphology.cutting import Cut
from apps.morphology.fragments import Fragment
from apps.morphology.precomputed import decode_mesh, encode_mesh

# Vertices are placed on a raster of so many steps a voxel: the same place is the same number on either side of a seam.
_STEPS = 1024


@dataclass(frozen=True)
class Simplification:
    """How far a surface is simplified.

    Attributes:
        factor: at most so many times fewer triangles; 0 for none.
        max_error_nm: no vertex moves further.
    """

    factor: int
    max_error_nm: float


@dataclass(frozen=True)
class Mesh:
    """A surface: vertices float32 [n, 3], xyz in nm; faces uint32 [m, 3], vertex numbers, outside to the right-hand."""

    vertices: NDArray[np.float32]
    faces: NDArray[np.uint32]


def mesh_unit(cut: Cut, whole: Box, size: VoxelSize, how: Simplification) -> list[Fragment]:
    """The surfaces of a unit's objects, as precomputed meshes; they are closed at the ends of the volume `whole`.

    Each object has a mesher of its own: zmesh's (1.15) keeps the rims of the objects that it has simplified before, and
    spares the vertices of the same numbers in the next ones, which then have more triangles, other ones by what came
    before.  A mesher sees the object's bounding box and a voxel around it, where the unit goes on.
    """
    labels, first = _closed(cut, whole)
    resolution = np.array(size[::-1], np.float64)
    fragments = []
    boxes = find_objects(labels, len(cut.ids))
    for number, (identifier, voxels, box) in enumerate(
        zip(cut.ids.tolist(), cut.voxels.tolist(), boxes, strict=True), start=1
    ):
        around = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        mesher = zmesh.Mesher(tuple(resolution))
        mesher.mesh((labels[around] == number).view(np.uint8).T)
        surface = b""  # one that fills all of the unit has no surface in it
        if mesher.ids():
            mesh = mesher.get(1, reduction_factor=how.factor, max_error=how.max_error_nm, voxel_centered=True)
            offset = np.array([f + side.start for f, side in zip(first, around, strict=True)][::-1], np.float64)
            places = np.rint(mesh.vertices.astype(np.float64) / resolution * _STEPS) / _STEPS + offset
            surface = encode_mesh((places * resolution).astype(np.float32), mesh.faces)
        fragments.append(Fragment(identifier, voxels, surface))
    return fragments


def _closed(cut: Cut, whole: Box) -> tuple[NDArray[np.generic], Triple]:
    """The labels with a plane of 0 at each face that is the volume's end, and the place of their first voxel.

    Where only the plane that is shared ends there, closing the surface is the next unit's.
    """
    low = [int(a == b) for a, b in zip(cut.box.offset, whole.offset, strict=True)]
    high = [int(a == b) for a, b in zip(cut.own.end, whole.end, strict=True)]
    z, y, x = (a - n for a, n in zip(cut.box.offset, low, strict=True))
    return np.pad(cut.labels, list(zip(low, high, strict=True))), (z, y, x)


def joined(fragments: list[bytes], unit: Triple, size: VoxelSize) -> Mesh:
    """One surface of those of several units of `unit` voxels (zyx): vertices that meet in a seam become one."""
    meshes = [decode_mesh(data) for data in fragments]
    vertices = np.concatenate([mesh[0] for mesh in meshes])
    starts = np.cumsum([0, *(len(mesh[0]) for mesh in meshes)])
    faces = np.concatenate([mesh[1] + np.uint32(start) for mesh, start in zip(meshes, starts, strict=False)])
    if len(meshes) == 1:
        return Mesh(vertices, faces)
    seam = np.flatnonzero(_in_seam(vertices, unit, size))
    _, kept, number = np.unique(vertices[seam], axis=0, return_index=True, return_inverse=True)
    target = np.arange(len(vertices))
    target[seam] = seam[kept][number.reshape(-1)]
    used = np.zeros(len(vertices), bool)
    used[target] = True
    renumbered = (np.cumsum(used) - 1)[target].astype(np.uint32)
    return Mesh(vertices[used], renumbered[faces])


def _in_seam(vertices: NDArray[np.float32], unit: Triple, size: VoxelSize) -> NDArray[np.bool_]:
    """Whether a vertex lies in the middle of a plane of voxels that two units share."""
    voxels = vertices / np.array(size[::-1]) - 0.5
    extent = np.array(unit[::-1], np.float64)
    number = np.rint(voxels / extent)
    in_plane = (np.abs(voxels - number * extent) < 0.25) & (number > 0)
    return np.asarray(in_plane.any(axis=1))


def in_groups(fragments: list[bytes], most_bytes: int) -> Iterator[list[bytes]]:
    """Neighbouring fragments together, up to so many bytes a group unless one alone is more."""
    group: list[bytes] = []
    total = 0
    for data in fragments:
        if group and total + len(data) > most_bytes:
            yield group
            group, total = [], 0
        group.append(data)
        total += len(data)
    if group:
        yield group
