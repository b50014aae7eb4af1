"""Partners of a cleft between two segments, by contact and by the side of the vesicles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.volumes import VoxelSize
from apps.synapses.partners import Partners, Reach, find_partners

LARGE = 2**63 + 5
SHAPE = (41, 41, 41)
Z, Y, X = np.indices(SHAPE) - 20
DISC = (Z**2 + Y**2 <= 36) & (abs(X) <= 1)
REACH = Reach(contact=60, vesicles=150)
NM: VoxelSize = (10.0, 10.0, 10.0)


def walls(before: int, behind: int) -> NDArray[np.uint64]:
    """A segment on either side of x = 20, three voxels apart."""
    segments = np.zeros(SHAPE, np.uint64)
    segments[X <= -2], segments[X >= 2] = before, behind
    return segments


def vesicles(side: int) -> NDArray[np.uint8]:
    return ((Z**2 + Y**2 <= 36) & (side * X >= 3) & (side * X <= 12)).astype(np.uint8) * 255


def find(segments: NDArray[Any], clouds: NDArray[np.uint8] | None, size: VoxelSize = NM) -> Partners:
    return find_partners(DISC, segments, clouds, size, REACH)


@pytest.mark.parametrize(("side", "pre", "post"), [(-1, LARGE, 8), (1, 8, LARGE)])
def test_the_side_of_the_vesicles_is_before(side: int, pre: int, post: int) -> None:
    segments = walls(LARGE, 8)
    found = find(segments, vesicles(side))
    assert found.segments == (pre, post)
    assert found.direction == pytest.approx([0, 0, -side], abs=1e-6)
    assert found.certainty == 1
    assert [int(segments[tuple(point)]) for point in np.rint(found.points).astype(int)] == [pre, post]


def test_vesicles_of_other_segments_do_not_count() -> None:
    """More vesicles lie behind the cleft, but in a segment beyond the partner's."""
    segments = walls(5, 8)
    segments[X >= 7] = 9
    clouds = np.maximum(vesicles(-1) // 4, np.where(X >= 7, vesicles(1), 0)).astype(np.uint8)
    assert find(segments, clouds).segments == (5, 8)


def test_the_segment_that_touches_most_is_the_partner() -> None:
    segments = walls(5, 8)
    segments[(X >= 2) & (Y < -2)] = 9
    segments[(X >= 2) & (Z > 17)] = 10
    assert find(segments, vesicles(-1)).segments == (5, 8)


def test_no_segment_is_its_own_partner() -> None:
    """One segment lies all around the edge of the cleft's far side: the one in the middle there is the partner."""
    segments = walls(5, 5)
    segments[(X >= 2) & (Z**2 + Y**2 <= 16)] = 8
    assert find(segments, vesicles(-1)).segments == (5, 8)
    assert find(segments, vesicles(1)).segments == (8, 5)


def test_unknown_partners() -> None:
    found = find(walls(5, 0), vesicles(-1))
    assert found.segments == (5, 0)
    assert found.points[1] == pytest.approx([20, 20, 20])
    assert find(walls(0, 5), vesicles(-1)).segments == (0, 5)
    assert find(walls(5, 5), vesicles(-1)).segments in ((5, 0), (0, 5))
    nothing = find(walls(0, 0), vesicles(1))
    assert nothing.segments == (0, 0)
    assert nothing.direction == pytest.approx([0, 0, -1], abs=1e-6)


def test_without_vesicles_the_direction_is_a_guess() -> None:
    segments = walls(5, 8)
    segments[(X >= 2) & (Y > 0)] = 0
    found = find(segments, None)
    assert (found.segments, found.certainty) == ((5, 8), 0.5)
    assert find(walls(5, 8), np.zeros(SHAPE, np.uint8)).certainty == 0.5


def test_reach_is_in_nanometres() -> None:
    """Of thick sections few are within reach; a cleft within a section is flat along it."""
    segments = np.zeros(SHAPE, np.uint64)
    segments[Z < -1], segments[Z > 1] = 5, 8
    cleft = (X**2 + Y**2 <= 36) & (abs(Z) <= 1)
    assert find_partners(cleft, segments, None, (10, 10, 10), REACH).segments in ((5, 8), (8, 5))
    assert find_partners(cleft, segments, None, (70, 10, 10), REACH).segments == (0, 0)


def test_a_cleft_of_one_voxel() -> None:
    cleft = (Z == 0) & (Y == 0) & (X == 0)
    found = find_partners(cleft, walls(5, 8), None, NM, REACH)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
