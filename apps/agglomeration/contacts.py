"""Where objects touch: the decision points at which agglomeration looks again.

Two objects are a candidate pair where voxels of theirs are at most `reach` apart.  A pair gets a point at its smallest
distance.  As no process sees a whole volume, points are chosen block by block, so that the choice hangs on the volume
alone: contacts are counted in the cells of a fixed grid, cells of a pair have one order (distance, number of contacts,
place), and the point of a pair's best cell within a block and its surroundings is the block's where it lies in it.  A
pair that touches in several places gets one point for each, unless they are so close that one window holds both; and
every pair gets at least one.  The method is that of Januszewski et al., Nature Methods 2018.
All positions, boxes and shapes are zyx.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.volumes import VoxelSize

Labels = NDArray[Any]
Integers = NDArray[np.int64]

# Edge of the cells in which contacts are counted, voxels.
CELL = 32


@dataclass(frozen=True)
class DecisionPoints:
    """Candidate pairs, ordered by (a, b, point).

    Attributes:
        a, b: ids of the pair, a < b, uint64 [n].
        point: between their closest voxels, zyx [n, 3], in voxels of the segmentation.
        distance: between the centres of these voxels, in units of the shortest edge of a voxel, [n].
        contacts: how many pairs of voxels of the cell are so close, [n].
    """

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    point: Integers
    distance: NDArray[np.float64]
    contacts: Integers


def offsets_within(reach: float, voxel_size: VoxelSize) -> list[tuple[float, list[Triple]]]:
    """Offsets between voxels of length up to `reach`, one of each opposite two, grouped by ascending length.

    reach: in units of the shortest edge of a voxel.
    """
    shortest = min(voxel_size)
    steps = [size / shortest for size in voxel_size]
    found: dict[float, list[Triple]] = {}
    extents = [range(-math.floor(reach / step), math.floor(reach / step) + 1) for step in steps]
    for z, y, x in itertools.product(*extents):
        offset = z, y, x
        length = round(math.dist((0, 0, 0), [n * step for n, step in zip(offset, steps, strict=True)]), 6)
        if offset > (0, 0, 0) and length <= reach:
            found.setdefault(length, []).append(offset)
    return sorted(found.items())


def surroundings(block: Box, radius: Triple, bounds: Box) -> Box:
    """What a block's decision points depend on but for `reach`: whole cells around it, at least `radius` wide."""
    z, y, x = (-(-r // CELL) * CELL for r in radius)
    return block.grow((z, y, x)).intersection(bounds)


def find_decision_points(
    labels: Labels, read: Box, region: Box, block: Box, reach: float, voxel_size: VoxelSize
) -> DecisionPoints:
    """The decision points in `block`.

    labels: integers of the shape of `read`, 0 for none; `read` is `region` grown by `reach`, as far as the volume goes.
    region: the block's `surroundings`; its corners are multiples of CELL, or the volume's end.
    """
    numbered, numbers = fastremap.renumber(labels, in_place=False)
    ids = np.zeros(len(numbers) + 1, np.uint64)
    for old, new in numbers.items():
        ids[new] = old
    shape = np.array([-(-n // CELL) for n in region.shape])
    known: Integers = np.zeros(0, np.int64)
    chosen = []
    for distance, offsets in offsets_within(reach, voxel_size):
        contacts = [_contacts(numbered, read, region, offset, ids) for offset in offsets]
        pairs = np.concatenate([pair for pair, _ in contacts])
        places = np.concatenate([place for _, place in contacts])
        new = ~np.isin(pairs, known)
        pairs, places = pairs[new], places[new]
        if len(pairs):
            pair, point, count = _best(pairs, places, np.array(region.offset), shape)
            chosen.append((pair, point, np.full(len(pair), distance), count))
            known = np.concatenate([known, pair])
    if not chosen:
        empty = np.zeros(0, np.uint64)
        return DecisionPoints(empty, empty, np.zeros((0, 3), np.int64), np.zeros(0), np.zeros(0, np.int64))
    pair, point, length, count = (np.concatenate(column) for column in zip(*chosen, strict=True))
    own = ((point >= block.offset) & (point < block.end)).all(axis=1)
    a, b = ids[pair[own] // len(ids)], ids[pair[own] % len(ids)]
    point, length, count = point[own], length[own], count[own]
    order = np.lexsort((*point.T[::-1], b, a))
    return DecisionPoints(a[order], b[order], point[order], length[order], count[order])


def _contacts(
    numbered: Labels, read: Box, region: Box, offset: Triple, ids: NDArray[np.uint64]
) -> tuple[Integers, Integers]:
    """(pair [n], point zyx [n, 3]) of all voxels of different objects that are `offset` apart, points in `region`.

    A pair (of numbers) is one number: smaller id's x number of ids + larger id's.
    """
    low = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, read.shape, strict=True))
    high = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, read.shape, strict=True))
    first, second = numbered[low], numbered[high]
    at = np.flatnonzero((first != second) & (first != 0) & (second != 0))
    one, other = first.ravel()[at].astype(np.int64), second.ravel()[at].astype(np.int64)
    places = np.stack(np.unravel_index(at, first.shape), axis=1)
    # The middle, rounded towards the first voxel: the same from whichever block it is seen.
    places += [part.start + o // 2 + read_offset for part, o, read_offset in zip(low, offset, read.offset, strict=True)]
    inside = ((places >= region.offset) & (places < region.end)).all(axis=1)
    one, other, places = one[inside], other[inside], places[inside]
    ordered = ids[one] < ids[other]
    pair = np.where(ordered, one * len(ids) + other, other * len(ids) + one)
    return pair, places.astype(np.int64, copy=False)


def _best(pairs: Integers, places: Integers, corner: Integers, shape: Integers) -> tuple[Integers, Integers, Integers]:
    """(pair, point, contacts) of every pair's best cell; the point is the contact nearest to the cell's mean."""
    z, y, x = ((places - corner) // CELL).T
    cells = (z * shape[1] + y) * shape[2] + x
    order = np.lexsort((places[:, 2], places[:, 1], places[:, 0], cells, pairs))
    pairs, cells, places = pairs[order], cells[order], places[order]
    first = np.flatnonzero(np.r_[True, (pairs[1:] != pairs[:-1]) | (cells[1:] != cells[:-1])])
    count = np.diff(np.r_[first, len(pairs)])
    # Cells of a pair by number of contacts, then by place: their order here.
    best_first = np.lexsort((np.arange(len(first)), -count, pairs[first]))
    ordered = pairs[first][best_first]
    best = np.sort(best_first[np.r_[True, ordered[1:] != ordered[:-1]]])
    points = np.zeros((len(best), 3), np.int64)
    for row, group in enumerate(best.tolist()):
        members = places[first[group] : first[group] + count[group]]
        # Whole numbers: the distance to the mean times the number of members, without rounding.
        apart = members * len(members) - members.sum(axis=0)
        points[row] = members[int((apart.astype(np.float64) ** 2).sum(axis=1).argmin())]
    return pairs[first][best], points, count[best].astype(np.int64)
