"""The plan: which levels, storeys and towers."""

from __future__ import annotations

import numpy as np
import pytest

from apps.core.boxes import Box, Triple
from apps.core.volumes import VoxelSize
from apps.multiscale.pyramid import Pyramid, below, ground_factor, plan_pyramid, storeys, tower, tower_count

CUBE = (64, 64, 64)


def factors(pyramid: Pyramid) -> list[Triple]:
    return [level.factor for level in pyramid.levels[1:]]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((8.0, 8.0, 8.0), [(2, 2, 2)] * 3),
        ((40.0, 8.0, 8.0), [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),  # 40, 32, 32: nearly cubes
        ((30.0, 8.0, 8.0), [(1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((11.0, 8.0, 8.0), [(2, 2, 2)] * 3),
        ((12.0, 8.0, 8.0), [(1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((8.0, 8.0, 40.0), [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)]),
    ],
)
def test_long_voxels_wait_for_the_others(size: VoxelSize, expected: list[Triple]) -> None:
    pyramid = plan_pyramid("0", (512, 512, 512), size, CUBE)
    assert factors(pyramid)[: len(expected)] == expected
    last = pyramid.levels[-1]
    assert max(last.shape) <= 64, "it ends with a level of one chunk"
    assert max(pyramid.levels[-2].shape) > 64
    for level in pyramid.levels:
        assert level.voxel_size_nm == tuple(s * f for s, f in zip(size, level.total_factor, strict=True))


def test_an_axis_of_one_voxel_is_not_halved() -> None:
    pyramid = plan_pyramid("0", (1, 3, 1000), (8.0, 8.0, 8.0), CUBE)
    assert factors(pyramid) == [(1, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 2)]
    assert pyramid.levels[-1].shape == (1, 1, 63)
    flat = plan_pyramid("0", (1, 1000, 1000), (8.0, 30.0, 30.0), CUBE)
    assert factors(flat) == [(1, 2, 2)] * 4, "the short voxels of the one section hold nothing back"


def test_a_given_number_and_given_factors() -> None:
    assert factors(plan_pyramid("0", (512,) * 3, (8.0,) * 3, CUBE, most=1)) == [(2, 2, 2)]
    assert factors(plan_pyramid("0", (512,) * 3, (8.0,) * 3, CUBE, most=0)) == []
    assert factors(plan_pyramid("0", (64,) * 3, (8.0,) * 3, CUBE)) == []
    given = plan_pyramid("0", (10, 10, 10), (40.0, 8.0, 8.0), CUBE, factors=[(1, 3, 3), (2, 2, 1)])
    assert [level.shape for level in given.levels] == [(10, 10, 10), (10, 4, 4), (5, 2, 4)]
    assert given.levels[-1].voxel_size_nm == (80.0, 48.0, 24.0)


def test_paths_never_meet_that_of_level_0() -> None:
    for base, expected in (("0", ["0", "1", "2"]), ("s0", ["s0", "1", "2"]), ("2", ["2", "1", "3"])):
        pyramid = plan_pyramid(base, (200,) * 3, (8.0,) * 3, CUBE, most=2)
        assert [level.path for level in pyramid.levels] == expected


@pytest.mark.parametrize("shape", [(300, 700, 900), (64, 65, 3000), (1, 400, 700)])
@pytest.mark.parametrize("size", [(8.0, 8.0, 8.0), (40.0, 8.0, 8.0)])
def test_towers_of_a_storey_share_no_chunk_and_leave_none_out(shape: Triple, size: VoxelSize) -> None:
    pyramid = plan_pyramid("0", shape, size, (16, 32, 32))
    found = storeys(pyramid)
    assert [level for storey in found for level in storey] == list(range(1, len(pyramid.levels)))
    for storey in found:
        assert ground_factor(pyramid, storey) <= 64
        standing = [(storey[-1], tower(pyramid, storey, number)) for number in range(tower_count(pyramid, storey))]
        for level in reversed(storey):
            covered = np.zeros(pyramid.levels[level].shape, np.uint8)
            for _, box in standing:
                covered[box.slices()] += 1
                assert all(a % c == 0 for a, c in zip(box.offset, pyramid.chunks, strict=True))
            assert (covered == 1).all()
            standing = [(level - 1, below(pyramid, level, box)) for _, box in standing]


def test_what_a_box_is_made_of_ends_with_the_level() -> None:
    pyramid = plan_pyramid("0", (100, 100, 101), (8.0,) * 3, CUBE, most=1)
    assert below(pyramid, 1, Box.of((0, 0, 48), (50, 50, 3))) == Box.of((0, 0, 96), (100, 100, 5))
