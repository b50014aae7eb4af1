"""Decision points: which pairs, where, and that no division of the volume loses one."""

from __future__ import annotations

import numpy as np
import pytest

from apps.agglomeration.contacts import (
    CELL,
    DecisionPoints,
    find_decision_points,
    offsets_within,
    surroundings,
)
from apps.agglomeration.inputs import Blocks
from apps.core.boxes import Box, Triple

SIZE = (10.0, 10.0, 10.0)


def points_of(
    labels: np.ndarray, block: Box | None = None, reach: float = 2.0, radius: Triple = (4, 4, 4)
) -> DecisionPoints:
    bounds = Box.of((0, 0, 0), labels.shape)
    block = block or bounds
    region = surroundings(block, radius, bounds)
    read = region.grow((3, 3, 3)).intersection(bounds)
    return find_decision_points(labels[read.slices()], read, region, block, reach, SIZE)


def rows(found: DecisionPoints) -> list[tuple[int, int, tuple[int, ...], float, int]]:
    columns = found.a.tolist(), found.b.tolist(), map(tuple, found.point.tolist()), found.distance, found.contacts
    return [(a, b, tuple(point), float(d), int(n)) for a, b, point, d, n in zip(*columns, strict=True)]


def test_offsets_come_by_length_and_once_for_each_direction() -> None:
    found = offsets_within(2.0, SIZE)
    assert [round(length, 3) for length, _ in found] == [1.0, 1.414, 1.732, 2.0]
    assert [len(offsets) for _, offsets in found] == [3, 6, 4, 3]
    every = [offset for _, offsets in found for offset in offsets]
    assert not {tuple(-n for n in offset) for offset in every} & set(every)


def test_offsets_of_long_voxels_are_fewer() -> None:
    assert offsets_within(1.0, (40.0, 10.0, 10.0)) == [(1.0, [(0, 0, 1), (0, 1, 0)])]


def test_a_flat_contact_has_its_point_in_its_middle() -> None:
    labels = np.zeros((9, 9, 20), np.uint64)
    labels[2:7, 2:7, 3:10] = 1 << 60
    labels[2:7, 2:7, 10:16] = 7
    assert rows(points_of(labels)) == [(7, 1 << 60, (4, 4, 9), 1.0, 25)]


def test_objects_with_a_gap_touch_only_within_reach() -> None:
    labels = np.zeros((5, 5, 12), np.uint64)
    labels[:, :, :4], labels[:, :, 5:9] = 1, 2
    ((a, b, point, distance, count),) = rows(points_of(labels, reach=2.0))
    assert (a, b, point, distance, count) == (1, 2, (2, 2, 4), 2.0, 25)
    assert rows(points_of(labels, reach=1.0)) == []


def test_the_smallest_distance_counts_wherever_it_is() -> None:
    labels = np.zeros((20, 20, 20), np.uint64)
    labels[:, :, :4], labels[:, :, 5:9] = 1, 2
    labels[15, 15, 4] = 1  # face to face in one place only
    assert rows(points_of(labels)) == [(1, 2, (15, 15, 4), 1.0, 1)]


def test_no_division_loses_a_pair_or_invents_one() -> None:
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 40, (3, 4, 5))
    labels = coarse.repeat(16, 0).repeat(16, 1).repeat(16, 2).astype(np.uint64)
    bounds = Box.of((0, 0, 0), labels.shape)
    whole = points_of(labels)
    touching = set()
    for offset in [o for _, offsets in offsets_within(2.0, SIZE) for o in offsets]:
        low = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, labels.shape, strict=True))
        high = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, labels.shape, strict=True))
        first, second = labels[low].ravel(), labels[high].ravel()
        pairs = np.unique(np.sort(np.stack([first, second], 1)[(first != second) & (first > 0) & (second > 0)]), axis=0)
        touching |= set(map(tuple, pairs.tolist()))
    assert set(zip(whole.a.tolist(), whole.b.tolist(), strict=True)) == touching
    blocks = Blocks(bounds, (32, 32, 32))
    parts = [points_of(labels, blocks[number]) for number in range(len(blocks))]
    found = [row for part in parts for row in rows(part)]
    assert {(a, b) for a, b, *_ in found} == touching
    for number, part in enumerate(parts):
        block = blocks[number]
        assert all(block.contains(Box.of(tuple(point), (1, 1, 1))) for point in part.point.tolist())
    # The best place of a pair in all of the volume is a decision point under any division.
    assert {(a, b, point) for a, b, point, *_ in rows(whole)} <= {(a, b, point) for a, b, point, *_ in found}


def test_one_place_on_the_border_of_blocks_gives_one_point() -> None:
    labels = np.zeros((CELL, CELL, 4 * CELL), np.uint64)
    labels[10:20, 10:20, : 2 * CELL] = 1
    labels[10:20, 10:20, 2 * CELL :] = 2
    blocks = Blocks(Box.of((0, 0, 0), (CELL, CELL, 4 * CELL)), (CELL, CELL, CELL))
    found = [row for number in range(len(blocks)) for row in rows(points_of(labels, blocks[number]))]
    assert [(a, b) for a, b, *_ in found] == [(1, 2)]


def test_blocks_tile_the_volume() -> None:
    blocks = Blocks(Box.of((0, 0, 0), (40, 64, 33)), (32, 32, 32))
    assert (blocks.counts, len(blocks)) == ((2, 2, 2), 8)
    covered = np.zeros((40, 64, 33), int)
    for number in range(len(blocks)):
        covered[blocks[number].slices()] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int64])
def test_any_dtype_of_labels_will_do(dtype: type) -> None:
    labels: np.ndarray = np.zeros((5, 5, 8), dtype)
    labels[:, :, :4], labels[:, :, 4:] = 2, 1
    assert [row[:2] for row in rows(points_of(labels))] == [(1, 2)]


def test_nothing_touches_nothing() -> None:
    assert rows(points_of(np.zeros((8, 8, 8), np.uint64))) == []
    assert rows(points_of(np.ones((8, 8, 8), np.uint64))) == []
