"""The stage as a whole: pieces in, one segmentation out, in any number of jobs, again and again."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import try_lock
from apps.core.parts import Part
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import open_volume, write_volume
from apps.evaluation.metrics import score
from apps.reconciliation.columns import read_header
from apps.reconciliation.evidence import objects_of, read_links, supervoxels_of
from apps.reconciliation.pieces import Pieces
from apps.reconciliation.settings import ReconciliationParameters, choose_chunks
from tests.apps.reconciliation.made import (
    VOXEL_SIZE,
    check_restored,
    cut_up,
    digest,
    do,
    piece,
    small,
    sv,
    tubes,
    write_piece,
)

SHARED = Path(__file__).parents[4] / "shared" / "data" / "fib25"
FIB25 = Path(os.environ.get("ENSEMBLE_FIB25", SHARED))


@pytest.mark.parametrize(
    ("shape", "overlap"), [((24, 32, 20), (6, 6, 6)), ((16, 40, 40), (4, 0, 0)), ((40, 40, 40), (0, 0, 0))]
)
def test_a_cut_segmentation_is_restored(tmp_path: Path, shape: Triple, overlap: Triple) -> None:
    grid = SubvolumeGrid(box=Box.of((100, 20, 3), (40, 37, 40)), shape=shape, overlap=overlap)
    cut_up(tmp_path / "pieces", tubes(grid.box.shape), grid)
    output = str(tmp_path / "merged.zarr")
    parameters = ReconciliationParameters(
        grid=grid, pieces=str(tmp_path / "pieces"), output=output, min_overlap_voxels=10
    )
    result = do(parameters)
    assert result.complete
    merged = open_volume(output)
    assert merged.dtype == np.uint64
    assert merged.voxel_size_nm == VOXEL_SIZE
    check_restored(parameters)
    ids = np.unique(merged.read())[1:]
    assert result.objects == len(ids) == len(np.unique(tubes(grid.box.shape))) - 1
    assert pd.read_parquet(str(result.objects_file))["object"].tolist() == ids.tolist()
    assert do(parameters, "verify").complete


@pytest.mark.skipif(not FIB25.is_dir(), reason=f"no FIB-25 volume in {FIB25}; set ENSEMBLE_FIB25")
def test_real_neurites_are_put_together(tmp_path: Path) -> None:
    import cc3d

    box = Box.of((0, 0, 0), (64, 128, 128))
    bodies = open_volume(f"{FIB25 / 'training_sample2_z000-170.h5'}:labels").read(box)
    truth = cc3d.connected_components(bodies, connectivity=6)
    grid = SubvolumeGrid(box=box, shape=(64, 64, 64), overlap=(0, 16, 16))
    for number, subvolume in enumerate(grid):
        # A neurite that leaves a subvolume and comes back is two objects there, as for a flood-filling network.
        labels = cc3d.connected_components(truth[subvolume.read_box.slices()], connectivity=6)
        write_piece(tmp_path / "pieces", number, labels.astype(np.uint32))
    output = str(tmp_path / "merged.zarr")
    result = do(ReconciliationParameters(grid=grid, pieces=str(tmp_path / "pieces"), output=output))
    scores = score(truth, open_volume(output).read())
    assert scores.vi_merge == 0
    assert scores.vi_split < 0.05
    assert result.seams is not None
    assert result.seams.agreement is not None
    assert result.seams.agreement > 0.95


def test_any_number_of_jobs_in_any_order_gives_the_same_bytes(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters)
    work = tmp_path / "merged-reconciliation"
    expected = digest(tmp_path / "merged.zarr"), digest(work / "solution"), (work / "manifest.parquet").read_bytes()
    for jobs in (1, 3):
        other = replace(parameters, output=str(tmp_path / f"parts-{jobs}" / "merged.zarr"))
        for phase in ("compare", "solve", "relabel", "finish"):
            order = np.random.default_rng(jobs).permutation(jobs).tolist()
            shares = [Part(index=i, of=jobs) for i in order] if phase in ("compare", "relabel") else [None]
            for part in shares:
                result = do(other, phase, part)
                assert result.complete == (phase == "finish")
                assert not Path(other.output).exists() or phase == "finish"
        work = other.work_folder
        found = digest(Path(other.output)), digest(work / "solution"), (work / "manifest.parquet").read_bytes()
        assert found == expected


def test_nothing_is_done_again(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    assert do(parameters).units == 8
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    for action in ("compare", "solve", "relabel", "finish", "all"):
        assert do(parameters, action).units == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


def test_a_segmentation_of_one_subvolume_that_changes_replaces_its_own_links(tmp_path: Path) -> None:
    parameters = small(tmp_path, fill=False)  # each of the four would fill all others
    do(parameters)
    before = open_volume(parameters.output).read()
    labels = open_volume(str(piece(parameters, 3))).read()
    write_piece(Path(parameters.pieces), 3, np.where(labels == labels.max(), 0, labels))
    with pytest.raises(StateError, match="subvolume 0: it or a neighbour of it has changed since it was compared"):
        do(parameters, "solve")
    # All four see each other across the edge in the middle, so all faces with it are compared again.
    assert do(parameters, "compare").units == 4
    do(parameters, "solve")
    making = tmp_path / "merged-reconciliation" / "segmentation.zarr"
    result = do(parameters, "relabel")
    old, new = Path(parameters.output), making
    same = [chunk for chunk in old.rglob("c/*/*/*") if (new / chunk.relative_to(old)).exists()]
    assert sum(chunk.samefile(new / chunk.relative_to(old)) for chunk in same) == 3, "boxes are taken over, not made"
    assert result.units == 4
    assert do(parameters, "finish").complete
    after = open_volume(parameters.output).read()
    box = parameters.grid.subvolume(3).write_box
    changed = np.flatnonzero((before != after).any(axis=(1, 2)))
    assert np.array_equal(before[:16], after[:16])
    assert changed.min() >= box.offset[0]
    assert do(parameters, "verify").complete
    fresh = replace(parameters, output=str(tmp_path / "fresh.zarr"))
    do(fresh)
    assert digest(Path(fresh.output)) == digest(Path(parameters.output)), "as if it had been done at once"


def test_a_merge_is_undone_and_made_again(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    first = do(parameters)
    original = digest(Path(parameters.output))
    links = pd.read_parquet(str(first.links_file))
    target = int(links["a"].iloc[0])
    rows = links[links["linked"]].loc[lambda table: (table["a"] == target) | (table["b"] == target), ["a", "b"]]
    rows.to_csv(tmp_path / "cut.csv", index=False)
    undone = do(replace(parameters, cut=str(tmp_path / "cut.csv")))
    assert undone.objects == (first.objects or 0) + 1
    assert supervoxels_of(undone.work, target).tolist() == [target]
    apart = links[["a", "b"]].head(1)
    apart.to_parquet(tmp_path / "apart.parquet")
    refused = do(replace(parameters, forbidden=str(tmp_path / "apart.parquet")))
    one, other = objects_of(refused.work, apart.iloc[0].tolist())
    assert one != other
    assert refused.refused
    do(parameters)
    assert digest(Path(parameters.output)) == original


def test_evidence_of_an_object(tmp_path: Path) -> None:
    parameters = small(tmp_path, gap=3)  # ids with gaps
    result = do(parameters)
    table = pd.read_parquet(str(result.objects_file))
    everything = pd.read_parquet(str(result.links_file))
    for object_id, count in zip(table["object"], table["supervoxels"], strict=True):
        members = supervoxels_of(result.work, object_id)
        assert len(members) == count
        assert members.min() == object_id
        assert set(objects_of(result.work, members.tolist())) == {object_id}
        inside = read_links(result.work, objects=[object_id])
        expected = everything[everything["a"].isin(members) & everything["b"].isin(members)]
        assert inside.to_dict("list") == expected.to_dict("list")
        alone = read_links(result.work, supervoxels=[members[0]], outward=True)
        assert len(alone) == ((everything["a"] == members[0]) | (everything["b"] == members[0])).sum()
        assert read_links(result.work, supervoxels=[members[0]]).empty
    assert objects_of(result.work, [sv(0, 1), sv(99, 1)]).tolist() == [0, 0]
    with pytest.raises(DataError, match=r"object 1: .* no such object"):
        supervoxels_of(result.work, 1)
    with pytest.raises(StateError, match="has no solution"):
        supervoxels_of(tmp_path, 1)


def test_what_stands_is_asked_once_of_each_piece_and_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million subvolumes, each would be looked at for all of its neighbours otherwise: hours."""
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (24, 24, 24)), shape=(8, 8, 8), overlap=(4, 4, 4))
    cut_up(tmp_path / "pieces", tubes(grid.box.shape), grid)
    given = {"grid": grid, "pieces": str(tmp_path / "pieces"), "output": str(tmp_path / "merged.zarr")}
    parameters = ReconciliationParameters(**given, chunks=(8, 8, 8))  # type: ignore[arg-type]
    do(parameters, "compare")
    do(parameters, "solve")
    asked: Counter[str] = Counter()
    stamp = Pieces.stamp

    def stamp_of(self: Pieces, number: int) -> str:
        asked["pieces"] += 1
        return stamp(self, number)

    def header_of(path: Path) -> Any:
        asked["units"] += 1
        return read_header(path)

    monkeypatch.setattr(Pieces, "stamp", stamp_of)
    monkeypatch.setattr("apps.reconciliation.units.read_header", header_of)
    for action in ("compare", "solve"):
        asked.clear()
        assert do(parameters, action).units == 0
        assert asked == {"pieces": 27, "units": 27}


def test_a_file_where_a_folder_is_to_be_is_named_or_replaced(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    parameters.work_folder.mkdir()
    (parameters.work_folder / "units").write_text("?")
    with pytest.raises(DataError, match=r"units/000/000: cannot be written .Not a directory"):
        do(parameters)
    (parameters.work_folder / "units").unlink()
    (parameters.work_folder / "segmentation.zarr").write_text("?")
    do(parameters)
    check_restored(parameters)


def test_a_bad_piece_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    labels = open_volume(str(piece(parameters, 1))).read()

    def replaced(data: np.ndarray[Any, Any] | None) -> None:
        shutil.rmtree(piece(parameters, 1), ignore_errors=True)
        if data is not None:
            write_piece(Path(parameters.pieces), 1, data)

    replaced(None)
    with pytest.raises(DataError, match=r"subvolume 1: .*000000001\.zarr is missing; segment it first"):
        do(parameters)
    replaced(labels[..., :9])
    with pytest.raises(DataError, match=r"subvolume 1: .* has the shape .*; expected \(18, 13, 18\)"):
        do(parameters)
    replaced(labels.astype(np.float32))
    with pytest.raises(DataError, match=r"subvolume 1: .* has dtype float32"):
        do(parameters)
    replaced(labels.astype(np.int32) - 1)
    with pytest.raises(DataError, match=r"subvolume 1: .* holds the id -1, which overflows"):
        do(parameters)
    for large in (2**32 + 3, 2**63 - 1):  # that would fit, once cut to 32 bits
        replaced(np.where(labels == 1, large, labels.astype(np.int64)))
        with pytest.raises(DataError, match=rf"subvolume 1: .* holds the id {large}, which overflows"):
            do(parameters)
    replaced(np.where(labels == 1, np.uint64(2**63 + 5), labels.astype(np.uint64)))
    with pytest.raises(DataError, match=rf"subvolume 1: .* holds the id {2**63 + 5}, which overflows"):
        do(parameters)
    replaced(np.where(labels == 1, 1 << 24, labels))
    with pytest.raises(DataError, match=r"subvolume 1: .* holds the id 16777216, which overflows; expected 0 to 16777"):
        do(parameters)
    replaced(labels)
    for text in ("", "null", '{"zarr_format": 3, "node_type": "group"'):
        (piece(parameters, 1) / "zarr.json").write_text(text)
        with pytest.raises(DataError, match=r"subvolume 1: .* cannot be opened .*; segment 0:18,0:13,14:32 again"):
            do(parameters)
    replaced(labels)
    chunk = next(path for path in (piece(parameters, 1) / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"subvolume 1: .* cannot be read .*; segment 0:18,0:13,14:32 again"):
        do(parameters)
    assert not Path(parameters.output).exists()
    assert not (parameters.work_folder / "solution").exists()


def test_a_piece_that_changes_after_the_comparison_is_not_relabelled(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters, "compare")
    do(parameters, "solve")
    write_piece(Path(parameters.pieces), 2, open_volume(str(piece(parameters, 2))).read())
    with pytest.raises(StateError, match=r"subvolume 2: .* has changed since it was compared; run compare and solve"):
        do(parameters, "relabel")
    do(parameters)
    check_restored(parameters)


def test_phases_out_of_order_and_processes_at_once_are_refused(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    for action in ("relabel", "finish"):
        with pytest.raises(StateError, match="run the action solve first"):
            do(parameters, action)
    with pytest.raises(StateError, match="subvolume 0: it or a neighbour of it is not compared yet"):
        do(parameters, "solve")
    do(parameters, "compare")
    do(parameters, "solve")
    for action in ("relabel", "finish"):
        with pytest.raises(StateError, match="is of another rule or other lists of pairs; run the action solve first"):
            do(replace(parameters, min_overlap_voxels=11), action)
    with (parameters.work_folder / ".lock").open("a+b") as stream:
        assert try_lock(stream, shared=True)
        assert do(parameters, "relabel", Part(index=0, of=2)).units == 2, "parts work beside each other"
        with pytest.raises(StateError, match="another process works on this reconciliation"):
            do(parameters)


def test_an_output_of_another_origin_is_left_alone(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    write_volume(parameters.output, np.ones((4, 4, 4), np.uint8), VOXEL_SIZE)
    before = digest(Path(parameters.output))
    with pytest.raises(StateError, match=r"merged\.zarr: exists, and .* does not say that this reconciliation made it"):
        do(parameters)
    assert digest(Path(parameters.output)) == before


def test_a_work_folder_speaks_for_one_output(tmp_path: Path) -> None:
    parameters = small(tmp_path, work=str(tmp_path / "work"))
    do(parameters)
    theirs = tmp_path / "theirs.zarr"
    write_volume(theirs, np.ones((4, 4, 4), np.uint8), VOXEL_SIZE)
    before = digest(theirs)
    with pytest.raises(StateError, match=r"theirs\.zarr: exists, and .*work does not say that this reconciliation"):
        do(replace(parameters, output=str(theirs)))
    assert digest(theirs) == before
    none_linked = replace(parameters, output=str(tmp_path / "second.zarr"), min_overlap_voxels=10**6)
    do(none_linked)
    with pytest.raises(StateError, match=r"merged\.zarr: exists, and"):  # which has another rule's voxels
        do(replace(none_linked, output=parameters.output))


def test_what_is_moved_or_reached_by_a_link_goes_on(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    parameters = small(tmp_path / "before")
    do(parameters)
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "link").symlink_to(tmp_path / "after")
    for folder in ("after", "link"):
        there = {name: str(tmp_path / folder / Path(getattr(parameters, name)).name) for name in ("pieces", "output")}
        assert do(replace(parameters, **there)).units == 0


def test_an_old_output_survives_a_failure(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    do(parameters)
    before = digest(Path(parameters.output))
    write_piece(Path(parameters.pieces), 1, np.full((18, 13, 18), -1, np.int32))
    with pytest.raises(DataError):
        do(parameters)
    assert digest(Path(parameters.output)) == before


def test_empty_pieces_and_objects_outside_the_write_box(tmp_path: Path) -> None:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (4, 4, 8)), shape=(4, 4, 4), overlap=(0, 0, 4))
    first, second = np.zeros((2, 4, 4, 6), np.uint32)
    first[:, :, 5] = 3  # only in the overlap beyond its write box: the neighbour, who owns it, does not see it
    for number, labels in enumerate((first, second)):
        write_piece(tmp_path / "pieces", number, labels)
    output = str(tmp_path / "merged.zarr")
    result = do(ReconciliationParameters(grid=grid, pieces=str(tmp_path / "pieces"), output=output))
    assert (result.objects, result.links) == (0, 0)
    assert result.seams is not None
    assert (result.seams.agreement, result.seams.worst_face) == (None, None)
    assert not open_volume(output).read().any()


def test_what_cannot_be_read_is_not_told_as_a_want_of_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = small(tmp_path)

    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error", "piece.zarr")

    monkeypatch.setattr("apps.reconciliation.units.UnitFiles.check_piece", broken)
    with pytest.raises(
        DataError, match=r"cannot be made .piece\.zarr: Input/output error.; see to what is read"
    ) as info:
        do(parameters)
    assert "room" not in str(info.value)


def test_a_full_disk_is_said_and_leaves_the_rest_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = small(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("apps.reconciliation.solving.UnionFind", full)
        with pytest.raises(DataError, match=r"solution: cannot be written .No space left on device"):
            do(parameters)
    assert {path.name for path in parameters.work_folder.iterdir()} == {".lock", "units"}
    with monkeypatch.context() as context:
        context.setattr("apps.core.volumes.Volume.write", full)
        with pytest.raises(DataError, match=r"segmentation\.zarr: 0:16,0:13,0:16 cannot be written .No space"):
            do(parameters)
    with monkeypatch.context() as context:
        context.setattr("apps.reconciliation.manifest.move_folder", full)
        with pytest.raises(DataError, match=r"merged-reconciliation: cannot be read or written .No space left"):
            do(parameters)
    assert not Path(parameters.output).exists()
    assert do(parameters).complete
    check_restored(parameters)


def test_voxel_sizes(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    labels = open_volume(str(piece(parameters, 1))).read()
    write_volume(piece(parameters, 1), labels, (8.0, 8.0, 9.0))
    with pytest.raises(ParameterError, match="voxel_size_nm: the pieces have different ones"):
        do(parameters)
    do(replace(parameters, voxel_size_nm=(9.0, 9.0, 9.0)))
    assert open_volume(parameters.output).voxel_size_nm == (9.0, 9.0, 9.0)
    do(replace(parameters, voxel_size_nm=(7.0, 7.0, 7.0)))
    assert open_volume(parameters.output).voxel_size_nm == (7.0, 7.0, 7.0), "another volume: nothing is taken over"
    check_restored(parameters)


def test_bad_parameters_are_refused(tmp_path: Path) -> None:
    parameters = small(tmp_path)
    with pytest.raises(ParameterError, match=r"ends in .zarr"):
        replace(parameters, output="m.h5")
    with pytest.raises(ParameterError, match="part: the action solve is the work of one job"):
        replace(parameters, action="solve", part=Part(index=0, of=2))
    with pytest.raises(ParameterError, match="expected positive nanometres"):
        replace(parameters, voxel_size_nm=(0.0, 1.0, 1.0))
    with pytest.raises(ParameterError, match="16 voxels along z do not end where chunks of 12 do"):
        replace(parameters, chunks=(12, 16, 16))
    with pytest.raises(ParameterError, match=r"fewer than 2\^32 voxels"):
        grid = SubvolumeGrid(box=Box.of((0, 0, 0), (1 << 12,) * 3), shape=(1 << 11,) * 3)
        replace(parameters, grid=grid)
    with pytest.raises(DataError, match=r"cut\.csv: no such file"):
        do(replace(parameters, cut=str(tmp_path / "cut.csv")))


@pytest.mark.parametrize(
    ("box", "shape", "chunks"),
    [
        ((512, 512, 512), (128, 256, 512), (64, 64, 64)),
        ((300, 300, 300), (100, 150, 96), (50, 75, 48)),
        ((30, 30, 30), (10, 20, 30), (10, 20, 30)),
        ((67, 300, 70), (67, 67, 67), (64, 67, 67)),
    ],
)
def test_chunks_end_where_subvolumes_do(box: Triple, shape: Triple, chunks: Triple) -> None:
    assert choose_chunks(SubvolumeGrid(box=Box.of((5, 5, 5), box), shape=shape)) == chunks
    with pytest.raises(ParameterError, match="131 voxels along y cannot be cut into chunks of 16 to 128"):
        choose_chunks(SubvolumeGrid(box=Box.of((0, 0, 0), (300, 300, 300)), shape=(64, 131, 64)))
