"""Reconciliation of overlapping subvolumes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.subvolumes import plan_subvolumes
from apps.core.volumes import open_volume, write_volume
from apps.evaluation.metrics import score
from apps.reconciliation.linking import LinkRule, find_links, unite
from apps.reconciliation.stage import STAGE, Piece, ReconciliationParameters, run

VOXEL_SIZE = (8.0, 8.0, 8.0)
SHARED = Path(__file__).parents[3] / "shared" / "data" / "fib25"
FIB25 = Path(os.environ.get("ENSEMBLE_FIB25", SHARED))


def tubes(shape: Triple) -> NDArray[np.uint32]:
    """Objects that run along z, 5 x 5 voxels each with a wall of one voxel, ids from 1, zyx."""
    _, y, x = np.indices(shape)
    wall = (y % 6 == 0) | (x % 6 == 0)
    return np.where(wall, 0, 1 + (y // 6) * (shape[2] // 6 + 1) + x // 6).astype(np.uint32)


def cut(folder: Path, truth: NDArray[Any], box: Box, shape: Triple, overlap: Triple, seed: int = 0) -> list[Piece]:
    """Write pieces of `truth` (first voxel at `box.offset`) with ids of their own, shuffled."""
    rng = np.random.default_rng(seed)
    pieces = []
    for i, subvolume in enumerate(plan_subvolumes(box, shape, overlap)):
        labels = fastremap.renumber(truth[subvolume.read_box.slices(box.offset)])[0].astype(np.uint32)
        shuffled = np.concatenate([[0], 1 + rng.permutation(int(labels.max()))]).astype(np.uint32)
        path = str(folder / f"{i}.zarr")
        write_volume(path, shuffled[labels], VOXEL_SIZE)
        pieces.append(Piece(segmentation=path, read_box=subvolume.read_box, write_box=subvolume.write_box))
    return pieces


def digest(folder: Path) -> str:
    """Hash of all files of a folder, names and bytes."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


@pytest.mark.parametrize(
    ("shape", "overlap"), [((16, 16, 16), (6, 6, 6)), ((16, 40, 40), (4, 0, 0)), ((40, 40, 40), (0, 0, 0))]
)
def test_a_cut_segmentation_is_restored(tmp_path: Path, shape: Triple, overlap: Triple) -> None:
    box = Box.of((100, 20, 3), (40, 37, 40))
    truth = tubes(box.shape)
    pieces = cut(tmp_path, truth, box, shape, overlap)
    output = str(tmp_path / "merged.zarr")
    result = run(ReconciliationParameters(pieces=tuple(pieces), box=box, output=output, min_overlap_voxels=10), silent)
    merged = open_volume(output)
    assert merged.dtype == np.uint64
    assert merged.voxel_size_nm == VOXEL_SIZE
    found = merged.read()
    assert score(truth, found).vi == 0
    assert np.array_equal(found == 0, truth == 0)
    assert np.array_equal(np.unique(found[found > 0]), np.arange(1, result.objects + 1)), "ids are consecutive"
    assert result.objects == len(np.unique(truth)) - 1


def test_the_order_of_pieces_changes_no_byte(tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (32, 32, 32))
    pieces = cut(tmp_path, tubes(box.shape), box, (16, 16, 16), (4, 4, 4))
    digests, links = set(), set()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(pieces))
        output = tmp_path / "merged.zarr"
        shuffled = tuple(pieces[i] for i in order)
        result = run(ReconciliationParameters(pieces=shuffled, box=box, output=str(output)), silent)
        digests.add(digest(output))
        links.add(Path(result.links_file).read_bytes())
    assert len(digests) == len(links) == 1


@pytest.mark.skipif(not FIB25.is_dir(), reason=f"no FIB-25 volume in {FIB25}; set ENSEMBLE_FIB25")
def test_real_neurites_are_put_together(tmp_path: Path) -> None:
    import cc3d

    box = Box.of((0, 0, 0), (64, 128, 128))
    bodies = open_volume(f"{FIB25 / 'training_sample2_z000-170.h5'}:labels").read(box)
    truth = cc3d.connected_components(bodies, connectivity=6)
    pieces = []
    for i, subvolume in enumerate(plan_subvolumes(box, (64, 64, 64), (0, 16, 16))):
        # A neurite that leaves a subvolume and comes back is two objects there, as for a flood-filling network.
        labels = cc3d.connected_components(truth[subvolume.read_box.slices()], connectivity=6)
        path = str(tmp_path / f"{i}.zarr")
        write_volume(path, labels.astype(np.uint32), VOXEL_SIZE)
        pieces.append(Piece(segmentation=path, read_box=subvolume.read_box, write_box=subvolume.write_box))
    output = str(tmp_path / "merged.zarr")
    run(ReconciliationParameters(pieces=tuple(pieces), box=box, output=output), silent)
    scores = score(truth, open_volume(output).read())
    assert scores.vi_merge == 0
    assert scores.vi_split < 0.05


def test_without_links_objects_stay_apart(tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (32, 13, 13))
    pieces = cut(tmp_path, tubes(box.shape), box, (16, 13, 13), (4, 0, 0))
    output = str(tmp_path / "merged.zarr")
    few = ReconciliationParameters(pieces=tuple(pieces), box=box, output=output, min_overlap_voxels=100)
    assert (run(few, silent).objects, run(few, silent).links) == (4, 4), "4 tubes of 5 x 5 x 4 = 100 shared voxels"
    many = ReconciliationParameters(pieces=tuple(pieces), box=box, output=output, min_overlap_voxels=101)
    result = run(many, silent)
    assert (result.objects, result.links) == (8, 0)
    table = pd.read_parquet(result.links_file)
    assert table["shared"].tolist() == [100] * 4
    assert not table["linked"].any()
    assert set(table["segmentation_a"]) == {str(tmp_path / "0.zarr")}


def line(*runs: tuple[int, int]) -> NDArray[np.uint32]:
    return np.concatenate([np.full(n, label, np.uint32) for label, n in runs]).reshape(1, 1, -1)


def test_rule_by_hand() -> None:
    # First: object 1 of 100 voxels, object 2 of 20, 30 voxels of nothing.  Second: 1 is a merger of them that is cut
    # short by 10 voxels; 5 lies where the first has nothing.
    first, second = line((1, 100), (2, 20), (0, 30)), line((7, 60), (8, 30), (9, 20), (0, 10), (5, 30))
    loose = LinkRule(min_overlap_voxels=10, min_overlap_fraction=0.0, mutual_maximum=False)
    candidates = find_links(first, second, loose)
    assert list(zip(candidates.first, candidates.second, candidates.shared, strict=True)) == [
        (1, 7, 60),
        (1, 8, 30),
        (1, 9, 10),
        (2, 9, 10),
    ]
    assert candidates.first_voxels.tolist() == [100, 100, 100, 20]
    assert candidates.second_voxels.tolist() == [60, 30, 20, 20]
    assert candidates.linked.all()
    by_size = LinkRule(min_overlap_voxels=11, min_overlap_fraction=0.0, mutual_maximum=False)
    assert find_links(first, second, by_size).linked.tolist() == [True, True, False, False]
    by_share = LinkRule(min_overlap_voxels=1, min_overlap_fraction=0.4, mutual_maximum=False)
    assert find_links(first, second, by_share).linked.tolist() == [True, False, False, True]
    mutual = LinkRule(min_overlap_voxels=1, min_overlap_fraction=0.0, mutual_maximum=True)
    assert find_links(first, second, mutual).linked.tolist() == [True, False, False, False]


def test_a_merger_in_one_subvolume_does_not_merge_the_other() -> None:
    apart, merged = line((1, 300), (2, 200)), line((4, 500))
    assert find_links(apart, merged, LinkRule()).linked.tolist() == [True, False]
    assert find_links(apart, merged, LinkRule(mutual_maximum=False)).linked.tolist() == [True, True]


def test_union_is_transitive_and_numbered_by_the_smallest_node() -> None:
    links = np.array([[4, 1], [1, 3], [5, 2]])
    assert unite(7, links).tolist() == [0, 1, 2, 1, 1, 2, 3]
    assert unite(2, np.empty((0, 2), np.int64)).tolist() == [0, 1]
    assert unite(0, np.empty((0, 2), np.int64)).tolist() == []


def test_empty_pieces_and_objects_outside_the_write_box(tmp_path: Path) -> None:
    first, second = np.zeros((4, 4, 6), np.uint32), np.zeros((4, 4, 6), np.uint32)
    first[:, :, 5] = 3  # only in the overlap beyond its write box: the neighbour, who owns it, does not see it
    for name, labels in (("a", first), ("b", second)):
        write_volume(tmp_path / f"{name}.zarr", labels, VOXEL_SIZE)
    pieces = (
        Piece(
            segmentation=str(tmp_path / "a.zarr"),
            read_box=Box.of((0, 0, 0), (4, 4, 6)),
            write_box=Box.of((0, 0, 0), (4, 4, 4)),
        ),
        Piece(
            segmentation=str(tmp_path / "b.zarr"),
            read_box=Box.of((0, 0, 2), (4, 4, 6)),
            write_box=Box.of((0, 0, 4), (4, 4, 4)),
        ),
    )
    output = str(tmp_path / "merged.zarr")
    result = run(ReconciliationParameters(pieces=pieces, box=Box.of((0, 0, 0), (4, 4, 8)), output=output), silent)
    assert (result.objects, result.links) == (0, 0)
    assert not open_volume(output).read().any()


def test_a_bad_piece_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (16, 16, 32))
    output = tmp_path / "out" / "merged.zarr"

    def attempt(pieces: list[Piece]) -> None:
        run(ReconciliationParameters(pieces=tuple(pieces), box=box, output=str(output)), silent)

    pieces = cut(tmp_path, tubes(box.shape), box, (16, 16, 16), (0, 0, 4))
    missing = Piece(
        segmentation=str(tmp_path / "gone.zarr"), read_box=pieces[1].read_box, write_box=pieces[1].write_box
    )
    with pytest.raises(DataError, match=r"gone\.zarr: no such volume"):
        attempt([pieces[0], missing])
    write_volume(tmp_path / "1.zarr", np.ones((16, 16, 9), np.uint32), VOXEL_SIZE)
    with pytest.raises(DataError, match=r"1\.zarr: has the shape \(16, 16, 9\); expected \(16, 16, 18\)"):
        attempt(pieces)
    write_volume(tmp_path / "1.zarr", np.ones((16, 16, 18), np.float32), VOXEL_SIZE)
    with pytest.raises(DataError, match=r"1\.zarr: has dtype float32"):
        attempt(pieces)
    write_volume(tmp_path / "1.zarr", np.full((16, 16, 18), -1, np.int32), VOXEL_SIZE)
    with pytest.raises(DataError, match=r"1\.zarr: holds the id -1"):
        attempt(pieces)
    pieces = cut(tmp_path, tubes(box.shape), box, (16, 16, 16), (0, 0, 4))
    chunk = next(path for path in (tmp_path / "1.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"1\.zarr: cannot be read"):
        attempt(pieces)
    assert not output.parent.exists() or not list(output.parent.iterdir())


def test_an_old_output_survives_a_failure(tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (16, 16, 32))
    pieces = cut(tmp_path, tubes(box.shape), box, (16, 16, 16), (0, 0, 4))
    output = tmp_path / "merged.zarr"
    parameters = ReconciliationParameters(pieces=tuple(pieces), box=box, output=str(output))
    run(parameters, silent)
    before = digest(output)
    chunk = next(path for path in (tmp_path / "1.zarr" / "0" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(b"broken")
    with pytest.raises(DataError):
        run(parameters, silent)
    assert digest(output) == before


def test_boxes_that_do_not_tile_are_refused() -> None:
    def piece(name: str, offset: Triple) -> Piece:
        box = Box.of(offset, (4, 4, 4))
        return Piece(segmentation=name, read_box=box, write_box=box)

    box = Box.of((0, 0, 0), (4, 4, 8))
    a, b = piece("a.zarr", (0, 0, 0)), piece("b.zarr", (0, 0, 4))
    ReconciliationParameters(pieces=(a, b), box=box, output="m.zarr")
    with pytest.raises(ParameterError, match=r"a.zarr and c.zarr: their write boxes overlap"):
        ReconciliationParameters(pieces=(a, piece("c.zarr", (0, 0, 3)), b), box=box, output="m.zarr")
    with pytest.raises(ParameterError, match="leave voxels of 0:4,0:4,0:8 out"):
        ReconciliationParameters(pieces=(a,), box=box, output="m.zarr")
    with pytest.raises(ParameterError, match=r"c\.zarr: its write_box 0:4,0:4,5:9 leaves the box"):
        ReconciliationParameters(pieces=(a, piece("c.zarr", (0, 0, 5))), box=box, output="m.zarr")
    with pytest.raises(ParameterError, match=r"ends in .zarr"):
        ReconciliationParameters(pieces=(a, b), box=box, output="m.h5")
    with pytest.raises(ParameterError):
        ReconciliationParameters(pieces=(), box=box, output="m.zarr")
    with pytest.raises(ParameterError, match="min_overlap_voxels"):
        ReconciliationParameters(pieces=(a, b), box=box, output="m.zarr", min_overlap_voxels=0)


def test_the_voxel_size_is_needed_where_pieces_differ(tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (4, 4, 8))
    pieces = []
    for i in range(2):
        write_volume(tmp_path / f"{i}.zarr", np.ones((4, 4, 4), np.uint32), (8.0, 8.0, 8.0 + i))
        part = Box.of((0, 0, 4 * i), (4, 4, 4))
        pieces.append(Piece(segmentation=str(tmp_path / f"{i}.zarr"), read_box=part, write_box=part))
    output = str(tmp_path / "merged.zarr")
    with pytest.raises(ParameterError, match="voxel_size_nm"):
        run(ReconciliationParameters(pieces=tuple(pieces), box=box, output=output), silent)
    given = ReconciliationParameters(pieces=tuple(pieces), box=box, output=output, voxel_size_nm=(9.0, 9.0, 9.0))
    run(given, silent)
    assert open_volume(output).voxel_size_nm == (9.0, 9.0, 9.0)


def test_example_is_valid() -> None:
    ReconciliationParameters.from_json(STAGE.example)
