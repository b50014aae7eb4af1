"""Grids in arrays, and which comparisons wait for which subvolumes, against the grid's own slow answers."""

from __future__ import annotations

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.parts import Part, share
from apps.core.subvolumes import SubvolumeGrid
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.readiness import Readiness

GRIDS = [
    SubvolumeGrid(box=Box.of((0, 0, 0), (30, 40, 50)), shape=(10, 10, 10), overlap=(4, 4, 4)),
    SubvolumeGrid(box=Box.of((3, 0, 0), (21, 31, 12)), shape=(10, 10, 12), overlap=(8, 10, 0)),  # rests that reach back
    SubvolumeGrid(box=Box.of((0, 0, 0), (10, 10, 10)), shape=(10, 10, 10)),
    SubvolumeGrid(
        box=Box.of((8, 8, 8), (20, 20, 21)), shape=(8, 8, 8), overlap=(8, 6, 7), bounds=Box.of((0, 0, 0), (30, 30, 30))
    ),
]
every_grid = pytest.mark.parametrize("grid", GRIDS)


@every_grid
def test_voxels_are_those_of_the_boxes(grid: SubvolumeGrid) -> None:
    lattice, numbers = Lattice(grid), np.arange(len(grid))
    assert lattice.write_voxels(numbers).tolist() == [subvolume.write_box.size for subvolume in grid]
    assert lattice.read_voxels(numbers).tolist() == [subvolume.read_box.size for subvolume in grid]
    assert lattice.all_read_voxels() == sum(subvolume.read_box.size for subvolume in grid)
    extents = np.array([subvolume.read_box.shape for subvolume in grid])
    assert lattice.largest_read == tuple(extents.max(0))


@every_grid
def test_a_subvolume_is_awaited_by_itself_and_its_lower_neighbours(grid: SubvolumeGrid) -> None:
    lattice = Lattice(grid)
    lower: dict[int, list[int]] = {number: [number] for number in range(len(grid))}
    for number in range(len(grid)):
        for other, _ in grid.neighbours(number):
            lower[other].append(number)
    for number, expected in lower.items():
        assert sorted(lattice.awaited_by(np.array([number])).tolist()) == sorted(expected)


@every_grid
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_a_share_is_ready_with_the_last_subvolume_that_it_waits_for(grid: SubvolumeGrid, parts: int) -> None:
    parts = min(parts, len(grid))
    readiness = Readiness(Lattice(grid), parts)
    needed = []
    for index in range(parts):
        own = share(len(grid), Part(index=index, of=parts))
        needed.append({*own, *(other for number in own for other, _ in grid.neighbours(number))})
    order = np.random.default_rng(1).permutation(len(grid))
    done: set[int] = set()
    for job, numbers in enumerate(np.array_split(order, max(1, len(grid) // 2))):
        before = {index for index in range(parts) if needed[index] <= done}
        done |= set(numbers.tolist())
        now = {index for index in range(parts) if needed[index] <= done}
        assert set(readiness.done(numbers, job)) == now - before
        for index in now - before:
            assert readiness.newest(index) == job


def test_a_million_subvolumes_are_no_list() -> None:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (6400, 6400, 6400)), shape=(64, 64, 64), overlap=(32, 32, 32))
    lattice = Lattice(grid)
    assert lattice.count == 10**6
    assert int(lattice.write_voxels(np.arange(lattice.count)).sum()) == 6400**3
    middle = 50 * 10_000 + 50 * 100 + 50
    assert len(lattice.awaited_by(np.array([middle]))) == 14
