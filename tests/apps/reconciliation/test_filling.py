"""What a subvolume leaves empty and a neighbour has filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.core.progress import silent
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import open_volume
from apps.reconciliation.making import Making
from apps.reconciliation.settings import ReconciliationParameters, ReconciliationResult
from apps.reconciliation.stage import run
from tests.apps.reconciliation.made import digest, sv, write_piece

# Along x: 0 writes 0 to 16 and reads to 20, 1 writes 16 to 32 and reads 12 to 36, 2 writes 32 to 48 and reads from 28.
GRID = SubvolumeGrid(box=Box.of((0, 0, 0), (16, 16, 48)), shape=(16, 16, 16), overlap=(0, 0, 8))


def write(tmp_path: Path, *pieces: NDArray[np.uint32]) -> ReconciliationParameters:
    for number, labels in enumerate(pieces):
        write_piece(tmp_path / "pieces", number, labels)
    return ReconciliationParameters(
        grid=GRID, pieces=str(tmp_path / "pieces"), output=str(tmp_path / "merged.zarr"), min_overlap_voxels=10
    )


def empty() -> list[NDArray[np.uint32]]:
    return [np.zeros(subvolume.read_box.shape, np.uint32) for subvolume in GRID]


def do(parameters: ReconciliationParameters, action: str = "all") -> ReconciliationResult:
    return run(replace(parameters, action=action), silent)


def merged(parameters: ReconciliationParameters) -> NDArray[np.uint64]:
    return np.asarray(open_volume(parameters.output).read(), np.uint64)


def test_a_gap_is_filled_by_the_object_next_door_and_what_is_filled_stays(tmp_path: Path) -> None:
    """A tube through 0 and 1 that 0 saw up to x = 10 only, and another object there that 0 has for itself."""
    first, second, third = empty()
    first[:8, :, :11] = 1
    second[:8, :, :12] = 4  # x from 12 to 24: it does not touch what 0 saw, and is not linked to it
    first[14:, :, 8:18] = 2
    second[8:, :, :16] = 7  # x from 12 to 28: over the voxels of 2, which stay with it, and around them
    result = do(write(tmp_path, first, second, third))
    found = merged(write(tmp_path, first, second, third))
    expected = np.zeros((16, 16, 48), np.uint64)
    expected[:8, :, :11] = sv(0, 1)
    expected[:8, :, 12:24] = sv(1, 4)
    expected[8:, :, 12:28] = sv(1, 7)
    expected[14:, :, 8:16] = sv(0, 2)
    np.testing.assert_array_equal(found, expected)
    boxes = pd.read_parquet(str(result.manifest))
    assert boxes["by_neighbours"].tolist() == [8 * 16 * 4 + 6 * 16 * 4, 0, 0]
    assert boxes["filled"].sum() == np.count_nonzero(expected)
    without = replace(write(tmp_path, first, second, third), fill=False)
    assert do(without).complete
    expected[:14, :, 12:16] = 0
    np.testing.assert_array_equal(merged(without), expected)
    assert pd.read_parquet(str(result.manifest))["by_neighbours"].sum() == 0


def test_only_objects_that_their_own_subvolume_writes_take_part(tmp_path: Path) -> None:
    first, second, third = empty()
    first[:, :, 14:20] = 1
    third[:, :8, :8] = 1  # x from 28 to 36
    third[:, 8:, 1:4] = 2  # x from 29 to 32: seen by 2, and not written by it
    found = merged_after(write(tmp_path, first, second, third))
    assert np.unique(found[:, :, 16:20]).tolist() == [sv(0, 1)]
    assert np.unique(found[:, :8, 28:32]).tolist() == [sv(2, 1)]
    assert not found[:, 8:, 20:].any()
    objects = pd.read_parquet(tmp_path / "merged-reconciliation" / "solution" / "objects.parquet")["object"]
    assert objects.tolist() == np.unique(found[found > 0]).tolist()


def test_of_several_neighbours_the_first_counts(tmp_path: Path) -> None:
    """The last subvolume writes one voxel and reads as far as the others, back over the second to the first."""
    grid = replace(GRID, box=Box.of((0, 0, 0), (16, 16, 33)))
    for number, subvolume in enumerate(grid):
        labels = np.full(subvolume.read_box.shape, 1 if number != 1 else 0, np.uint32)
        write_piece(tmp_path / "pieces", number, labels)
    unlinked = replace(write(tmp_path), grid=grid, min_overlap_voxels=1 << 20)
    found = merged_after(unlinked)
    assert np.unique(found[:, :, :20]).tolist() == [sv(0, 1)]
    assert np.unique(found[:, :, 20:]).tolist() == [sv(2, 1)]


def merged_after(parameters: ReconciliationParameters) -> NDArray[np.uint64]:
    do(parameters)
    return merged(parameters)


def test_a_neighbour_that_changes_makes_the_boxes_it_fills_out_of_date_and_no_others(tmp_path: Path) -> None:
    first, second, third = empty()
    second[:, :, 2:20] = 1
    parameters = write(tmp_path, first, second, third)
    do(parameters)
    assert merged(parameters)[:, :, 14:32].all()
    first[:, :, :4] = 1
    third[:, :, 10:] = 3
    write_piece(tmp_path / "pieces", 0, first)
    do(parameters, "compare")
    do(parameters, "solve")
    making = tmp_path / "merged-reconciliation" / "segmentation.zarr"
    do(parameters, "relabel")
    taken = [x for x in (0, 1, 2) if chunk(Path(parameters.output), x) == chunk(making, x)]
    assert taken == [2], "the third box, into which nothing of the first subvolume reaches, is taken over"
    do(parameters, "finish")
    fresh = replace(parameters, output=str(tmp_path / "fresh.zarr"))
    do(fresh)
    assert digest(Path(fresh.output)) == digest(Path(parameters.output))


def chunk(volume: Path, x: int) -> int | None:
    """Which file a chunk is; None where all of it is 0, and there is none."""
    file = volume / "0" / "c" / "0" / "0" / str(x)
    return file.stat().st_ino if file.exists() else None


def test_a_neighbour_that_is_replaced_or_lost_before_its_voxels_are_taken_is_named(tmp_path: Path) -> None:
    first, second, third = empty()
    second[:, :, 2:20] = 1
    parameters = write(tmp_path, first, second, third)
    do(parameters, "compare")
    do(parameters, "solve")
    write_piece(tmp_path / "pieces", 1, second)
    with pytest.raises(StateError, match=r"subvolume 1: .* has changed since it was compared"):
        do(parameters, "relabel")
    piece_path(tmp_path / "pieces", 1).rename(tmp_path / "aside")
    with pytest.raises(DataError, match=r"subvolume 1: .* is missing"):
        do(parameters, "relabel")
    assert not list((tmp_path / "merged-reconciliation" / "boxes").rglob("*.json"))


def test_a_kill_before_the_record_leaves_the_box_to_be_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = empty()
    second[:, :, 2:20] = 1
    parameters = write(tmp_path, first, second, third)
    real = Making._relabel

    def killed(self: Making, number: int) -> object:
        record = real(self, number)
        if number == 0:
            raise KeyboardInterrupt
        return record

    with monkeypatch.context() as patch:
        patch.setattr(Making, "_relabel", killed)
        with pytest.raises(KeyboardInterrupt):
            do(parameters)
    assert do(parameters).complete
    assert merged(parameters)[:, :, 14:32].all()
