"""Geometry of the phantom: which neurite holds which voxel, and the ground-truth labels that follow from it.

Space is filled by the cells of a power diagram over the points of tortuous centre lines, so that neurites of every
calibre and shape touch each other as in neuropil; thin processes are then driven through them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import edt
import fastremap
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from apps.core.boxes import Box, Triple, tiles
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import Floats, paint_balls, smooth_noise
from apps.phantom.paths import Path, filling_paths, thin_paths

Labels = NDArray[np.uint32]

_WARP_LENGTH, _WARP = 6.0, 1.5  # the boundaries of power cells are planes; this bends them (voxels)
_BLOCK = 8  # voxels that share one list of candidate points


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
    cells = _power_cells(rng, shape, paths)
    thin = thin_paths(rng, shape, design, first=int(cells.max()) + 1)
    if thin:
        _, owner = paint_balls(shape, *_points_of(thin))
        np.copyto(cells, owner, where=owner > 0)
    cells = _absorb_fragments(cells, design.smallest_object)
    # edt counts from voxel centre to voxel centre; the sheet itself lies half a voxel nearer.
    depth = edt.edt(cells, black_border=False, parallel=1) - np.float32(0.5)
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


def _points_of(paths: list[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    owners = [np.full(len(path.points), path.neurite, np.int32) for path in paths]
    return (
        np.concatenate([path.points for path in paths]),
        np.concatenate([path.radius for path in paths]),
        np.concatenate(owners),
    )


def _power_cells(rng: np.random.Generator, shape: Triple, paths: list[Path]) -> NDArray[np.int32]:
    """int32 [shape]: the neurite with the smallest power distance (distance^2 - radius^2) to one of its points."""
    points, radii, owners = _points_of(paths)
    warp = [_WARP * smooth_noise(rng, shape, _WARP_LENGTH) for _ in range(3)]
    cells = np.empty(shape, np.int32)
    for block in tiles(Box.of((0, 0, 0), shape), (_BLOCK, _BLOCK, _BLOCK)):
        window = block.slices()
        grid = np.ogrid[window]
        voxels = np.stack([(axis + shift[window]).ravel() for axis, shift in zip(grid, warp, strict=True)], axis=1)
        near = _candidates(voxels, points, radii)
        p, r = points[near], radii[near]
        # |v - p|^2 - r^2 without the term |v|^2 that all points share.
        power = voxels @ (-2 * p.T)
        power += (p**2).sum(axis=1) - r**2
        cells[window] = owners[near[power.argmin(axis=1)]].reshape(block.shape)
    return cells


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


def _absorb_fragments(cells: NDArray[np.int32], smallest: int) -> NDArray[np.int32]:
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
