"""The plan of overlapping subvolumes."""

from __future__ import annotations

import numpy as np
import pytest

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.subvolumes import Subvolume, plan_subvolumes

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
    plan = plan_subvolumes(box, shape, overlap)
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
    first, second = plan_subvolumes(Box.of((0, 0, 0), (8, 8, 16)), (8, 8, 8), (0, 0, 5))
    assert first.read_box.intersection(second.read_box).shape == (8, 8, 5)
    assert (first.write_box, second.write_box) == (Box.of((0, 0, 0), (8, 8, 8)), Box.of((0, 0, 8), (8, 8, 8)))


def test_a_short_rest_reads_a_whole_subvolume() -> None:
    _, rest = plan_subvolumes(Box.of((0, 0, 0), (8, 8, 9)), (8, 8, 8), (0, 0, 2))
    assert rest.write_box == Box.of((0, 0, 8), (8, 8, 1))
    assert rest.read_box == Box.of((0, 0, 1), (8, 8, 8))


def test_write_boxes_cover_whole_chunks_where_the_shape_does() -> None:
    box = Box.of((10, 20, 30), (150, 200, 129))
    for subvolume in plan_subvolumes(box, (64, 128, 64), (16, 16, 16)):
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
        plan_subvolumes(box, shape, overlap)


def test_a_write_box_lies_in_its_read_box() -> None:
    with pytest.raises(ParameterError, match="leaves its read_box"):
        Subvolume(read_box=Box.of((0, 0, 0), (4, 4, 4)), write_box=Box.of((0, 0, 1), (4, 4, 4)))
