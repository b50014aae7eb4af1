"""What is told of a subvolume in microseconds is what the grid says of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from apps.core.boxes import Box, Triple
from apps.core.subvolumes import SubvolumeGrid
from apps.reconciliation.surroundings import Surroundings


@pytest.mark.parametrize(
    ("box", "shape", "overlap"),
    [
        ((40, 37, 40), (16, 16, 16), (6, 0, 16)),
        ((33, 64, 17), (16, 32, 16), (8, 8, 8)),  # rests of one voxel, which reach back over two neighbours
        ((5, 6, 7), (5, 6, 7), (0, 0, 0)),
    ],
)
def test_neighbours_and_boxes_are_those_of_the_grid(box: Triple, shape: Triple, overlap: Triple) -> None:
    grid = SubvolumeGrid(box=Box.of((100, 3, 0), box), shape=shape, overlap=overlap)
    known = Surroundings(grid)
    for number, subvolume in enumerate(grid):
        assert known.neighbours(number) == [other for other, _ in grid.neighbours(number)]
        starts, ends = zip(*known.write_box(number), strict=True)
        assert Box.between(starts, ends) == subvolume.write_box
        reaching = [n for n, other in enumerate(grid) if other.read_box.intersection(subvolume.write_box).size]
        assert known.reaching(number) == [other for other in reaching if other != number]


def test_another_digest_where_a_box_differs_and_nowhere_else() -> None:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (64, 64, 64)), shape=(16, 16, 16), overlap=(4, 4, 4))
    others = {
        "overlap": replace(grid, overlap=(4, 6, 4)),
        "bounds": replace(grid, bounds=Box.of((0, 0, 0), (64, 64, 65))),
        "shorter": replace(grid, box=Box.of((0, 0, 0), (63, 64, 64))),
        "moved": replace(grid, box=Box.of((1, 0, 0), (64, 64, 64))),
        "numbered in another way": replace(grid, box=Box.of((0, 0, 0), (64, 64, 48))),
    }

    def told(of: SubvolumeGrid, number: int) -> object:
        found = of.subvolume(number), of.neighbours(number)
        return found[0].to_dict(), [(other, common.to_dict()) for other, common in found[1]]

    digests = Surroundings(grid)
    assert len({digests.digest(number) for number in range(len(grid))}) == len(grid)
    for name, other in others.items():
        there = Surroundings(other)
        for number in range(len(other)):
            same = told(grid, number) == told(other, number)
            # Where subvolumes are numbered in another way none keeps its digest, though its own boxes may be the same.
            if same and grid.counts == other.counts:
                assert digests.digest(number) == there.digest(number), (name, number)
            else:
                assert digests.digest(number) != there.digest(number), (name, number)
