"""The plan of overlapping subvolumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.subvolumes import Subvolume, SubvolumeGrid, piece_path

CASES: list[tuple[Triple, Triple, Triple, Triple]] = [
    ((0, 0, 0), (64, 64, 64), (64, 64, 64), (16, 16, 16)),
    ((3, 40, 7), (100, 65, 130), (64, 64, 64), (16, 8, 5)),
    ((0, 0, 0), (10, 10, 10), (3, 4, 5), (3, 0, 1)),
    ((5, 5, 5), (7, 1, 20), (64, 64, 8), (16, 16, 8)),
]


@pytest.mark.parametrize(("offset", "extent", "shape", "overlap"), CASES)
def test_write_boxes_tile_the_box_and_read_boxes_stay_in_it(
    offset: Triple, extent: Triple, shape: Triple, overlap: Triple
) -> None:
    box = Box.of(offset, extent)
    owners = np.zeros(extent, int)
    plan = list(SubvolumeGrid(box=box, shape=shape, overlap=overlap))
    for subvolume in plan:
        owners[subvolume.write_box.slices(offset)] += 1
        assert box.contains(subvolume.read_box)
        assert subvolume.read_box.contains(subvolume.write_box)
        assert all(r >= min(n, e) for r, n, e in zip(subvolume.read_box.shape, shape, extent, strict=True)), (
            "no read box is a sliver"
        )
    assert (owners == 1).all()
    assert [s.write_box.offset for s in plan] == sorted(s.write_box.offset for s in plan)


def test_neighbours_share_the_overlap() -> None:
    first, second = SubvolumeGrid(box=Box.of((0, 0, 0), (8, 8, 16)), shape=(8, 8, 8), overlap=(0, 0, 5))
    assert first.read_box.intersection(second.read_box).shape == (8, 8, 5)
    assert (first.write_box, second.write_box) == (Box.of((0, 0, 0), (8, 8, 8)), Box.of((0, 0, 8), (8, 8, 8)))


def test_a_short_rest_reads_a_whole_subvolume() -> None:
    _, rest = SubvolumeGrid(box=Box.of((0, 0, 0), (8, 8, 9)), shape=(8, 8, 8), overlap=(0, 0, 2))
    assert rest.write_box == Box.of((0, 0, 8), (8, 8, 1))
    assert rest.read_box == Box.of((0, 0, 1), (8, 8, 8))


def test_write_boxes_cover_whole_chunks_where_the_shape_does() -> None:
    box = Box.of((10, 20, 30), (150, 200, 129))
    for subvolume in SubvolumeGrid(box=box, shape=(64, 128, 64), overlap=(16, 16, 16)):
        start = [a - b for a, b in zip(subvolume.write_box.offset, box.offset, strict=True)]
        assert all(value % 64 == 0 for value in start)


@pytest.mark.parametrize(
    ("box", "shape", "overlap", "words"),
    [
        (Box.of((0, 0, 0), (0, 8, 8)), (8, 8, 8), (0, 0, 0), "is empty"),
        (Box.of((0, 0, 0), (8, 8, 8)), (0, 8, 8), (0, 0, 0), "positive"),
        (Box.of((0, 0, 0), (8, 8, 8)), (8, 8, 8), (0, -1, 0), "overlap"),
        (Box.of((0, 0, 0), (8, 8, 8)), (8, 8, 4), (0, 0, 5), "overlap"),
    ],
)
def test_what_cannot_work_is_named(box: Box, shape: Triple, overlap: Triple, words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        SubvolumeGrid(box=box, shape=shape, overlap=overlap)


def test_a_write_box_lies_in_its_read_box() -> None:
    with pytest.raises(ParameterError, match="leaves its read_box"):
        Subvolume(read_box=Box.of((0, 0, 0), (4, 4, 4)), write_box=Box.of((0, 0, 1), (4, 4, 4)))


def test_a_grid_knows_the_neighbours_that_a_look_at_all_pairs_finds() -> None:
    box = Box.between((3, 0, 5), (45, 71, 66))
    grid = SubvolumeGrid(box=box, shape=(16, 20, 24), overlap=(8, 20, 5), bounds=Box.of((0, 0, 0), (50, 80, 70)))
    subvolumes = list(grid)
    assert len(subvolumes) == len(grid) == 3 * 4 * 3
    assert [grid.subvolume(number) for number in range(len(grid))] == subvolumes
    for number, own in enumerate(subvolumes):
        common = {
            other: own.read_box.intersection(subvolumes[other].read_box) for other in range(number + 1, len(grid))
        }
        assert dict(grid.neighbours(number)) == {other: box for other, box in common.items() if not box.empty}


def test_a_grid_of_a_billion_subvolumes_is_a_few_numbers() -> None:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (64_000,) * 3), shape=(64,) * 3, overlap=(16,) * 3)
    assert len(grid) == 10**9
    assert grid.position(10**9 - 1) == (999, 999, 999)
    assert grid.subvolume(10**9 - 1).write_box.end == (64_000,) * 3
    assert len(grid.neighbours(500_500_500)) == 13
    with pytest.raises(ParameterError, match="subvolume 1000000000: expected a number from 0 to 999999999"):
        grid.subvolume(10**9)


def test_no_folder_of_pieces_is_large() -> None:
    assert piece_path("pieces", 12_345_678) == Path("pieces/012/345/012345678.zarr")
