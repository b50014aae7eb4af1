"""The algebra of boxes: small cases by hand, and properties over many seeded boxes, checked against voxel masks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple, tiles
from apps.core.errors import ParameterError

GRID: Triple = (12, 12, 12)


def seeded_boxes(count: int, seed: int, smallest: int = 0) -> list[Box]:
    """Boxes within GRID, empty ones among them where `smallest` is 0."""
    generator = np.random.default_rng(seed)
    boxes = []
    for _ in range(count):
        offset = generator.integers(0, 9, 3)
        shape = [generator.integers(smallest, 12 - o + 1) for o in offset]
        boxes.append(Box.of((offset[0], offset[1], offset[2]), (shape[0], shape[1], shape[2])))
    return boxes


def mask(box: Box) -> NDArray[np.bool_]:
    """Which voxels of GRID are in the box."""
    array = np.zeros(GRID, bool)
    array[box.slices()] = True
    return array


def test_by_hand() -> None:
    box = Box.of((1, 2, 3), (4, 5, 6))
    assert box.end == (5, 7, 9)
    assert box.size == 120
    assert not box.empty
    assert str(box) == "1:5,2:7,3:9"
    assert box == Box.between((1, 2, 3), (5, 7, 9)) == Box.parse("1:5,2:7,3:9")
    assert box.slices() == (slice(1, 5), slice(2, 7), slice(3, 9))
    assert box.slices(origin=(1, 1, 1)) == (slice(0, 4), slice(1, 6), slice(2, 8))
    assert box.grow((1, 0, 2)) == Box.of((0, 2, 1), (6, 5, 10))
    assert box.translate((-1, 0, 10)) == Box.of((0, 2, 13), (4, 5, 6))
    assert box.intersection(Box.of((0, 0, 0), (3, 3, 4))) == Box.of((1, 2, 3), (2, 1, 1))


def test_numpy_integers_become_plain_ones() -> None:
    box = Box.of(tuple(np.array([1, 2, 3])), tuple(np.array([4, 5, 6])))
    assert [type(n) for n in (*box.offset, *box.shape)] == [int] * 6
    assert Box.from_json('{"offset": [1, 2, 3], "shape": [4, 5, 6]}') == box


def test_boxes_are_values() -> None:
    one, other = Box.of((0, 0, 0), (1, 2, 3)), Box.of((0, 0, 0), (1, 2, 3))
    assert {one: "a"}[other] == "a"
    assert len({one, other, one.translate((1, 0, 0))}) == 2


@pytest.mark.parametrize("text", ["", "0:1,0:1", "0:1,0:1,0:1,0:1", "a:b,0:1,0:1", "0-1,0-1,0-1", "0:1:2,0:1,0:1"])
def test_text_that_is_no_box(text: str) -> None:
    with pytest.raises(ParameterError, match=r"expected z0:z1,y0:y1,x0:x1"):
        Box.parse(text)


@pytest.mark.parametrize("text", ["5:4,0:1,0:1", "0:1,0:1,1:0"])
def test_an_end_before_the_start(text: str) -> None:
    with pytest.raises(ParameterError, match="negative extent"):
        Box.parse(text)


def test_negative_margin_cannot_turn_a_box_inside_out() -> None:
    assert Box.of((0, 0, 0), (4, 4, 4)).grow((-1, -1, -1)) == Box.of((1, 1, 1), (2, 2, 2))
    with pytest.raises(ParameterError, match="negative extent"):
        Box.of((0, 0, 0), (4, 4, 4)).grow((-3, 0, 0))


def test_intersection_is_that_of_the_voxels() -> None:
    boxes = seeded_boxes(60, seed=1)
    for one in boxes:
        for other in boxes:
            common = one.intersection(other)
            np.testing.assert_array_equal(mask(common), mask(one) & mask(other))
            assert common.size == other.intersection(one).size
            assert common.empty == (common.size == 0)


def test_containment_is_that_of_the_voxels() -> None:
    boxes = seeded_boxes(60, seed=2, smallest=1)
    for one in boxes:
        assert one.contains(one)
        for other in boxes:
            assert one.contains(other) == bool((mask(one) | ~mask(other)).all())
            assert one.contains(one.intersection(other)) or one.intersection(other).empty


def test_moves_undo_each_other() -> None:
    for box in seeded_boxes(200, seed=3):
        assert box.translate((3, -2, 5)).translate((-3, 2, -5)) == box
        assert box.grow((3, 0, 5)).grow((-3, 0, -5)) == box
        assert box.grow((1, 2, 3)).contains(box)
        assert Box.parse(str(box)) == box
        assert Box.from_json(box.to_dict()) == box
        assert mask(box).sum() == box.size


def test_slices_follow_the_origin() -> None:
    volume = np.arange(np.prod(GRID)).reshape(GRID)
    for outer, inner in zip(seeded_boxes(100, seed=4, smallest=1), seeded_boxes(100, seed=5), strict=True):
        common = outer.intersection(inner)
        if not common.empty:
            part = volume[outer.slices()][common.slices(origin=outer.offset)]
            np.testing.assert_array_equal(part, volume[common.slices()])


def test_tiles_cover_every_voxel_once() -> None:
    generator = np.random.default_rng(6)
    for box in seeded_boxes(60, seed=7):
        z, y, x = (int(n) for n in generator.integers(1, 6, 3))
        counted = np.zeros(GRID, int)
        pieces = list(tiles(box, (z, y, x)))
        for piece in pieces:
            assert not piece.empty
            assert all(extent <= most for extent, most in zip(piece.shape, (z, y, x), strict=True))
            counted[piece.slices()] += 1
        np.testing.assert_array_equal(counted, mask(box).astype(int))
        assert [piece.offset for piece in pieces] == sorted(piece.offset for piece in pieces)


def test_tiles_of_no_extent() -> None:
    with pytest.raises(ParameterError, match="positive extents"):
        list(tiles(Box.of((0, 0, 0), (4, 4, 4)), (0, 2, 2)))
