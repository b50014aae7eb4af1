"""Split consensus: the rule on small arrays, and the stage on a grid of pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.consensus.splitting import split_consensus
from apps.consensus.stage import ConsensusParameters, ConsensusResult, record_path, run
from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.parts import Part
from apps.core.progress import silent
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import open_volume, write_volume
from tests.full_disk import little_room, refused_for_want_of_room

SIZE = (40.0, 10.0, 10.0)
GRID = SubvolumeGrid(box=Box.of((0, 0, 0), (16, 32, 32)), shape=(16, 16, 16), overlap=(0, 8, 8))


def test_a_split_of_either_is_kept_and_a_merger_of_one_is_undone() -> None:
    first = np.array([[[1, 1, 1, 1, 2, 2, 2, 2, 0, 3]]], np.uint32)
    second = np.array([[[9, 9, 7, 7, 7, 7, 7, 0, 7, 7]]], np.uint8)
    found = split_consensus(first, second, 1)
    assert found.labels.tolist() == [[[2, 2, 1, 1, 3, 3, 3, 0, 0, 4]]]
    assert (found.first.tolist(), found.second.tolist()) == ([1, 1, 2, 3], [7, 9, 7, 7])
    assert (found.voxels.tolist(), found.dropped) == ([2, 2, 3, 1], 0)


def test_small_parts_are_dropped() -> None:
    first = np.array([[[1, 1, 1, 2, 2, 2]]], np.uint32)
    second = np.array([[[5, 5, 6, 6, 6, 6]]], np.uint32)
    found = split_consensus(first, second, 2)
    assert found.labels.tolist() == [[[1, 1, 0, 2, 2, 2]]]
    assert found.dropped == 1


def test_disconnected_parts_of_a_pair_stay_one_unless_asked() -> None:
    first = np.array([[[4, 4, 0, 4, 4, 4]]], np.uint32)
    assert split_consensus(first, first, 1).labels.tolist() == [[[1, 1, 0, 1, 1, 1]]]
    apart = split_consensus(first, first, 1, connected=True)
    assert apart.labels.tolist() == [[[1, 1, 0, 2, 2, 2]]]
    assert apart.first.tolist() == [4, 4]


@pytest.mark.parametrize("connected", [False, True])
def test_nothing_agrees_with_nothing(connected: bool) -> None:
    empty = np.zeros((2, 3, 4), np.uint32)
    found = split_consensus(empty, empty, 1, connected)
    assert (found.labels.any(), len(found.voxels), found.dropped) == (False, 0, 0)
    full = np.ones_like(empty)
    assert split_consensus(full, full, 1, connected).voxels.tolist() == [24]


def test_consensus_is_the_common_refinement() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, (2, 6, 7, 8)).astype(np.uint32)
    found = split_consensus(first, second, 1).labels
    both = (first > 0) & (second > 0)
    np.testing.assert_array_equal(found > 0, both)
    pairs = set(zip(first[both].tolist(), second[both].tolist(), strict=True))
    triples = set(zip(first[both].tolist(), second[both].tolist(), found[both].tolist(), strict=True))
    assert len(pairs) == len(triples) == int(found.max())


def test_arrays_that_do_not_fit() -> None:
    labels = np.zeros((2, 2, 2), np.uint32)
    with pytest.raises(DataError, match="same box"):
        split_consensus(labels, labels[:1], 1)
    with pytest.raises(DataError, match="float64"):
        split_consensus(labels, labels.astype(float), 1)


def make_pieces(folder: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("forward", "reverse"):
        for number in range(len(GRID)):
            shape = GRID.subvolume(number).read_box.shape
            write_volume(piece_path(folder / name, number), rng.integers(0, 4, shape).astype(np.uint32), SIZE)


def parameters(folder: Path, output: str = "consensus", **fields: Any) -> ConsensusParameters:
    names = {"first": str(folder / "forward"), "second": str(folder / "reverse"), "output": str(folder / output)}
    return ConsensusParameters(**{"grid": GRID, "min_voxels": 300, **names, **fields})


def do(folder: Path, **fields: Any) -> ConsensusResult:
    return run(parameters(folder, **fields), silent)


def test_pieces_and_their_tables(tmp_path: Path) -> None:
    make_pieces(tmp_path)
    result = do(tmp_path)
    assert (result.subvolumes, result.made, result.complete) == (4, 4, True)
    objects = 0
    for number in range(4):
        piece = piece_path(tmp_path / "consensus", number)
        volume, table = open_volume(str(piece)), pd.read_parquet(piece.with_suffix(".parquet"))
        assert (volume.dtype, volume.voxel_size_nm) == (np.uint32, SIZE)
        labels = volume.read()
        first = open_volume(str(piece_path(tmp_path / "forward", number))).read()
        second = open_volume(str(piece_path(tmp_path / "reverse", number))).read()
        for row in table.itertuples():
            inside = labels == row.id
            assert (set(first[inside]), set(second[inside])) == ({row.first}, {row.second})
            assert row.voxels == inside.sum() >= 300
        objects += len(table)
    assert result.objects == objects > 4


def test_several_jobs_leave_the_bytes_of_one_and_nothing_is_done_twice(tmp_path: Path) -> None:
    make_pieces(tmp_path)
    whole = do(tmp_path)
    parts = [do(tmp_path, output="parts", part=Part(index=index, of=3)) for index in (2, 0, 1)]
    assert not any(part.complete for part in parts)
    assert sum(part.objects for part in parts) == whole.objects
    again = do(tmp_path, output="parts")
    assert (again.made, again.complete, again.objects) == (0, True, whole.objects)
    for path in (tmp_path / "consensus").rglob("*"):
        if path.is_file():
            assert (tmp_path / "parts" / path.relative_to(tmp_path / "consensus")).read_bytes() == path.read_bytes()
    # What is damaged or gone is made again, and no more.
    record_path(piece_path(tmp_path / "parts", 1)).unlink()
    write_volume(piece_path(tmp_path / "forward", 3), np.zeros((16, 20, 20), np.uint32), SIZE)
    assert do(tmp_path, output="parts").made == 2


def test_a_missing_piece_is_named_before_any_work(tmp_path: Path) -> None:
    import shutil

    make_pieces(tmp_path)
    shutil.rmtree(piece_path(tmp_path / "reverse", 3))
    with pytest.raises(DataError, match=r"subvolume 3: .*reverse.*000000003.zarr: no such volume"):
        do(tmp_path)
    assert not (tmp_path / "consensus").exists()
    write_volume(piece_path(tmp_path / "reverse", 3), np.zeros((16, 20, 21), np.uint32), SIZE)
    with pytest.raises(DataError, match="expected integer labels of its read box"):
        do(tmp_path)


def test_folders_have_to_differ(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="three different folders"):
        parameters(tmp_path, second=str(tmp_path / "forward"))


def test_a_full_disk_is_said_and_with_room_the_bytes_are_the_same(tmp_path: Path) -> None:
    make_pieces(tmp_path)
    write_volume(piece_path(tmp_path / "forward", 0), np.zeros((16, 20, 20), np.uint32), SIZE)  # needs little room
    do(tmp_path)
    room = max(path.stat().st_size for path in (tmp_path / "consensus").rglob("*000000000*/**/*") if path.is_file())
    room = max(room, piece_path(tmp_path / "consensus", 0).with_suffix(".parquet").stat().st_size)
    said = r"000000001\.(zarr|parquet): cannot be written \(File too large\)"
    with refused_for_want_of_room(said), little_room(room):
        do(tmp_path, output="full")
    pieces = [piece_path(tmp_path / "full", number) for number in range(4)]
    assert [record_path(piece).is_file() for piece in pieces] == [True, False, False, False]
    assert do(tmp_path, output="full").made == 3
    for path in (tmp_path / "consensus").rglob("*"):
        if path.is_file():
            assert (tmp_path / "full" / path.relative_to(tmp_path / "consensus")).read_bytes() == path.read_bytes()
