"""The ground truth's objects: connected components over all blocks of a phantom, found block by block.

Plan, do, collect: `analyse` looks at one block and is the same whatever has been done before; `merge` joins what the
blocks found.  A component is 6-connected in the tissue's voxels, and lies in one neurite.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.files import file_in_the_making
from apps.phantom.fields import Floats
from apps.phantom.neurites import points_of, sheet_distance
from apps.phantom.synapses import Synapses, find_synapses
from apps.phantom.tissue import Cells, Tissue

Components = NDArray[np.uint32]


class NoObjectError(DataError):
    """A block in which nothing grows that is large enough for a label."""


@dataclass(frozen=True)
class Findings:
    """What one block holds; its components are numbered from 1.

    Attributes:
        sizes: int64 [components + 1] voxels of each, with number 0 first.
        sampled: the same, of the planes that become labels.
        cells: int32 [components + 1], the neurite of each.
        faces: the components on the block's first and last plane along z, y and x.
        points: int64 [k], which of the tissue's centre line points (filling, then thin) lie in the block.
        point_component: uint32 [k], what they lie in; 0 where that is membrane or another neurite.
        point_depth: float32 [k], how deep in their own neurite; 0 in another.
        synapses: places for synapses.
    """

    sizes: NDArray[np.int64]
    sampled: NDArray[np.int64]
    cells: Cells
    faces: tuple[Components, ...]
    points: NDArray[np.int64]
    point_component: Components
    point_depth: Floats
    synapses: Synapses

    def save(self, path: File) -> None:
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _PLAIN}
        arrays |= {f"synapse_{name}": a for name, a in zip(_SYNAPSE, self.synapses.arrays(), strict=True)}
        arrays |= {f"face{k}": face for k, face in enumerate(self.faces)}
        with file_in_the_making(path) as partial, partial.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: File) -> Findings:
        """What a block found, without the faces, which `load_face` reads one by one: there are many."""
        with np.load(path) as file:
            synapses = Synapses(*(file[f"synapse_{name}"] for name in _SYNAPSE))
            return cls(**{name: file[name] for name in _PLAIN}, faces=(), synapses=synapses)


def load_face(path: File, face: int) -> Components:
    """One of the six `Findings.faces` that a block saved."""
    with np.load(path) as file:
        found: Components = file[f"face{face}"]
    return found


_PLAIN = ("sizes", "sampled", "cells", "points", "point_component", "point_depth")
_SYNAPSE = ("centre", "normal", "radius", "cells", "partners")


def limited_depth(cells: Cells, most: float) -> Floats:
    """Distance from the sheets, and `most` where they are farther: what a window with a margin of `most` can tell."""
    return np.minimum(sheet_distance(cells), np.float32(most))


def analyse(
    tissue: Tissue, core: Box, window: Box, cells: Cells, depth: Floats, sampled_planes: slice
) -> tuple[Components, Findings]:
    """Components of the voxels of `core`, and what else there is to know of it.

    Args:
        tissue: the plan.
        core: the block.
        window: the block with a margin, of which `cells` and `depth` are.
        cells, depth: which neurite, and how far from the sheets.
        sampled_planes: the planes of the block that become labels.
    """
    inner = core.slices(window.offset)
    own, deep = cells[inner], depth[inner]
    neurite = (deep >= tissue.design.membrane_thickness / 2) & (own <= tissue.neurites)
    components = cc3d.connected_components(np.where(neurite, own, 0), connectivity=6, out_dtype=np.uint32)
    sizes = np.bincount(components.ravel()).astype(np.int64)
    cell_of = np.zeros(len(sizes), np.int32)
    cell_of[components.ravel()] = own.ravel()
    cell_of[0] = 0
    points, _, owners = points_of([*tissue.filling, *tissue.thin])
    voxels = np.rint(points).astype(int)
    here = np.flatnonzero(np.all((voxels >= core.offset) & (voxels < core.end), axis=1))
    at = tuple((voxels[here] - core.offset).T)
    at_home = own[at] == owners[here]
    findings = Findings(
        sizes=sizes,
        sampled=np.bincount(components[sampled_planes].ravel(), minlength=len(sizes)).astype(np.int64),
        cells=cell_of,
        faces=(
            components[0].copy(),
            components[-1].copy(),
            components[:, 0].copy(),
            components[:, -1].copy(),
            components[:, :, 0].copy(),
            components[:, :, -1].copy(),
        ),
        points=here,
        point_component=np.where(at_home, components[at], 0).astype(np.uint32),
        point_depth=np.where(at_home, deep[at], 0).astype(np.float32),
        synapses=find_synapses(tissue, core, window, cells, depth),
    )
    return components, findings


@dataclass(frozen=True)
class Objects:
    """The objects of all blocks.

    Attributes:
        labels: of each block, uint32 [components + 1]: the label of each component; 0 of those that are too small.
        count: labels go from 1 to this.
    """

    labels: list[NDArray[np.uint32]]
    count: int


def merge(grid: Triple, findings: list[Findings], face: Callable[[int, int], Components], smallest: int) -> Objects:
    """Join the components of all blocks, which lie in a `grid` (zyx) of blocks, in that order.

    `face(block, number)` is one of the six `Findings.faces` of a block.  Objects under `smallest` voxels, or without
    one in a plane that becomes labels, are dropped.

    Raises NoObjectError where no object is left.
    """
    first = np.concatenate([[0], np.cumsum([len(block.sizes) for block in findings])])
    pairs = []
    for axis in range(3):
        for a, b in _neighbours(grid, axis):
            found = _touching(findings[a].cells, findings[b].cells, face(a, 2 * axis + 1), face(b, 2 * axis))
            pairs.append(found + np.array([first[a], first[b]]))
    joined = np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)
    total = int(first[-1])
    graph = sparse.coo_matrix((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(total, total))
    _, group = csgraph.connected_components(graph, directed=False)
    inside = np.ones(total, bool)
    inside[first[:-1]] = False  # number 0 of every block is membrane
    sizes = np.bincount(group[inside], weights=np.concatenate([b.sizes for b in findings])[inside], minlength=total)
    sampled = np.bincount(group[inside], weights=np.concatenate([b.sampled for b in findings])[inside], minlength=total)
    kept = (sizes >= smallest) & (sampled > 0)
    if not kept.any():
        raise NoObjectError(f"no object of {smallest} voxels grows in this block: give a larger shape or calibre")
    # Numbered by where they first appear, whatever the numbers of the groups.
    label = np.zeros(total, np.uint32)
    chosen = inside & kept[group]
    groups, appear, which = np.unique(group[chosen], return_index=True, return_inverse=True)
    rank = np.empty(len(groups), np.uint32)
    rank[np.argsort(appear)] = np.arange(1, len(groups) + 1)
    label[chosen] = rank[which]
    return Objects([label[a:b] for a, b in itertools.pairwise(first)], len(groups))


def _neighbours(grid: Triple, axis: int) -> list[tuple[int, int]]:
    """The numbers of all pairs of blocks that follow each other along `axis`."""
    numbers = np.arange(int(np.prod(grid))).reshape(grid)
    before = np.take(numbers, range(grid[axis] - 1), axis).ravel()
    after = np.take(numbers, range(1, grid[axis]), axis).ravel()
    return list(zip(before.tolist(), after.tolist(), strict=True))


def _touching(cells_before: Cells, cells_after: Cells, last: Components, first: Components) -> NDArray[np.int64]:
    """Pairs [n, 2] of components of one neurite that touch across the face between two blocks."""
    both = (last > 0) & (first > 0)
    pairs = np.unique(np.stack([last[both], first[both]], axis=1).astype(np.int64), axis=0)
    return pairs[cells_before[pairs[:, 0]] == cells_after[pairs[:, 1]]]
