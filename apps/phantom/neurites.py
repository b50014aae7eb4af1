"""Geometry of the phantom: which neurite holds which voxel, and the ground-truth labels that follow from it.

Space is filled by the cells of a power diagram over the points of tortuous centre lines, so that neurites of every
calibre and shape touch each other as in neuropil; thin processes are then driven through them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cc3d
import edt
import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box, Triple, tiles
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import DrawnNoise, Floats, Noise, paint_balls
from apps.phantom.paths import Path, filling_paths, thin_paths

Labels = NDArray[np.uint32]

_WARP_LENGTH, _WARP = 6.0, 1.5  # the boundaries of power cells are planes; this bends them (voxels)
_LARGEST_WARP = 10  # more than any voxel is moved by the warp
_SIDES = (64, 16, 8)  # voxels on a side of the blocks that share one list of candidate points, in one another


@dataclass(frozen=True)
class Neurites:
    """The geometry of a phantom, all arrays zyx.

    Attributes:
        labels: uint32 ground truth; 0 on membranes; every other id is one 6-connected component, ids 1..n.
        cells: int32, which neurite holds a voxel, membranes included; over 0 everywhere.
        depth: float32, distance in voxels from the sheet between two cells; 0 all through dropped fragments.
        paths: the centre lines of the space-filling neurites.
    """

    labels: Labels
    cells: NDArray[np.int32]
    depth: Floats
    paths: list[Path]


def grow_neurites(rng: np.random.Generator, shape: Triple, design: PhantomDesign) -> Neurites:
    """Grow neurites in a box of `shape` (zyx).

    A neurite that enters the box twice, or is pinched shut by its own membranes, is two objects in it: labels are
    numbered by connected component after the membranes are taken away.
    """
    paths = filling_paths(rng, shape, design)
    cells = power_cells(DrawnNoise(rng, shape), Box.of((0, 0, 0), shape), *points_of(paths))
    thin = thin_paths(rng, shape, design, first=int(cells.max()) + 1)
    if thin:
        _, owner = paint_balls(shape, *points_of(thin))
        np.copyto(cells, owner, where=owner > 0)
    cells = absorb_fragments(cells, design.smallest_object)
    depth = sheet_distance(cells)
    labels = cc3d.connected_components(
        np.where(depth >= design.membrane_thickness / 2, cells, 0), connectivity=6, out_dtype=np.uint32
    )
    sizes = np.bincount(labels.ravel())
    dropped = np.flatnonzero(sizes < design.smallest_object)
    dropped = dropped[dropped > 0]
    if len(dropped):
        depth[np.isin(labels, dropped)] = 0
        labels[np.isin(labels, dropped)] = 0
        labels, _ = fastremap.renumber(labels, in_place=True)
    return Neurites(labels.astype(np.uint32, copy=False), cells, depth, paths)


def sheet_distance(cells: NDArray[np.int32]) -> Floats:
    """float32: distance of every voxel, in voxels, from the sheet between its cell and the next one."""
    # edt counts from voxel centre to voxel centre; the sheet itself lies half a voxel nearer.
    distance: Floats = edt.edt(cells, black_border=False, parallel=1) - np.float32(0.5)
    return distance


def points_of(paths: list[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Points [n, 3], radii [n] and neurites [n] of all `paths`, of which there is at least one."""
    owners = [np.full(len(path.points), path.neurite, np.int32) for path in paths]
    return (
        np.concatenate([path.points for path in paths]),
        np.concatenate([path.radius for path in paths]),
        np.concatenate(owners),
    )


def power_cells(
    noise: Noise, window: Box, points: NDArray[np.float64], radii: NDArray[np.float64], owners: NDArray[np.int32]
) -> NDArray[np.int32]:
    """int32, of the window's shape: the owner of the point with the smallest power distance (distance^2 - radius^2).

    `points` lie in the coordinates in which the window has its offset.
    """
    warp = [_WARP * noise.smooth(f"warp {axis}", _WARP_LENGTH) for axis in "zyx"]
    cells = np.empty(window.shape, np.int32)
    for block, near in _divide(window, points, radii, np.arange(len(points)), _SIDES):
        inside = block.slices(window.offset)
        grid = np.ogrid[block.slices()]
        voxels = np.stack([(axis + shift[inside]).ravel() for axis, shift in zip(grid, warp, strict=True)], axis=1)
        cells[inside] = _nearest(voxels, points[near], radii[near], owners[near]).reshape(block.shape)
    return cells


def _divide(
    box: Box, points: NDArray[np.float64], radii: NDArray[np.float64], near: NDArray[np.intp], sides: tuple[int, ...]
) -> Iterator[tuple[Box, NDArray[np.intp]]]:
    """Blocks of the last of `sides` that fill `box`, each with the points that can be nearest to its warped voxels.

    Of many points, those that matter to a larger block are found first, and only they are looked at in its parts.
    """
    side, *smaller = sides
    for part in tiles(box, (side, side, side)):
        if not smaller:
            yield part, near
            continue
        wide = part.grow((_LARGEST_WARP,) * 3)
        corners = np.array([wide.offset, wide.end], np.float64)
        yield from _divide(part, points, radii, near[_candidates(corners, points[near], radii[near])], tuple(smaller))


def _nearest(
    voxels: NDArray[np.float64], points: NDArray[np.float64], radii: NDArray[np.float64], owners: NDArray[np.int32]
) -> NDArray[np.int32]:
    near = _candidates(voxels, points, radii)
    p, r = points[near], radii[near]
    # |v - p|^2 - r^2 without the term |v|^2 that all points share.
    power = voxels @ (-2 * p.T)
    power += (p**2).sum(axis=1) - r**2
    found: NDArray[np.int32] = owners[near[power.argmin(axis=1)]]
    return found


def _candidates(
    voxels: NDArray[np.float64], points: NDArray[np.float64], radii: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Indices of the points that can be nearest in power distance to one of `voxels`, which lie close together."""
    centre = (voxels.min(axis=0) + voxels.max(axis=0)) / 2
    reach = np.sqrt(((voxels - centre) ** 2).sum(axis=1).max())
    distance = np.sqrt(((points - centre) ** 2).sum(axis=1))
    at_most = (distance + reach) ** 2 - radii**2
    at_least = np.maximum(distance - reach, 0) ** 2 - radii**2
    return np.flatnonzero(at_least <= at_most.min())


def absorb_fragments(cells: NDArray[np.int32], smallest: int) -> NDArray[np.int32]:
    """Give slivers (6-connected components of a cell under `smallest` voxels) to the nearest larger one."""
    parts = cc3d.connected_components(cells, connectivity=6, out_dtype=np.uint32)
    sizes = np.bincount(parts.ravel())
    fragment = sizes[parts] < smallest
    if not fragment.any() or fragment.all():
        return cells
    nearest = ndimage.distance_transform_edt(fragment, return_distances=False, return_indices=True)
    z, y, x = (index[fragment] for index in nearest)
    whole = cells.copy()
    whole[fragment] = cells[z, y, x]
    return whole
