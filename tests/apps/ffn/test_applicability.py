"""Whether a network fits an image and its subvolumes."""

from __future__ import annotations

import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, VoxelSize
from apps.ffn.applicability import check_overlap, check_voxel_size, common_voxel_size, needed_overlap

TEN: VoxelSize = (10.0, 10.0, 10.0)


def test_overlap_is_what_the_field_of_view_needs() -> None:
    assert needed_overlap((17, 33, 33)) == (16, 32, 32)  # that of published runs
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (64, 128, 128)), shape=(64, 64, 64), overlap=(0, 32, 31))
    with pytest.raises(ParameterError, match=r"is 31 along x.*view \(33, 33, 33\) \(zyx\) needs 32"):
        check_overlap(grid, (33, 33, 33))
    check_overlap(grid, (33, 33, 31))  # along z there is one subvolume, and nothing to overlap


def test_voxels_of_another_size_are_refused() -> None:
    words = r"i: has voxels of 40 x 20 x 20 nm, and model m was trained at 10 x 10 x 10 nm.*any_voxel_size: true"
    with pytest.raises(DataError, match=words):
        check_voxel_size("i", (40.0, 20.0, 20.0), "m", TEN)
    with pytest.raises(DataError, match=r"has voxels of 10 x 10 x 10\.2 nm.*with --force"):
        check_voxel_size("i", (10.0, 10.0, 10.2), "m", TEN, "--force")
    check_voxel_size("i", (10.0, 10.0, 10.09), "m", TEN)


@pytest.mark.parametrize("unknown", [None, UNKNOWN_VOXEL_SIZE])
def test_a_size_that_is_not_known_speaks_against_nothing(unknown: VoxelSize | None) -> None:
    check_voxel_size("i", unknown, "m", TEN)
    check_voxel_size("i", TEN, "m", unknown)


@pytest.mark.parametrize(
    ("sizes", "common"),
    [
        ([TEN], TEN),
        ([TEN, (10.05, 10.0, 10.0)], TEN),
        ([TEN, (40.0, 10.0, 10.0)], None),
        ([TEN, None], None),
        ([UNKNOWN_VOXEL_SIZE, UNKNOWN_VOXEL_SIZE], None),
        ([], None),
    ],
)
def test_volumes_have_one_size_or_none(sizes: list[VoxelSize | None], common: VoxelSize | None) -> None:
    assert common_voxel_size(sizes) == common
