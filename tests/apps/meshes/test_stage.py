"""The stage: surfaces that are closed and in place, the same for any number of jobs, kills and orders."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parts import Part
from apps.core.progress import silent
from apps.meshes.stage import MeshesParameters, MeshesResult, run
from apps.morphology import assembly
from apps.morphology.fragments import write_fragments
from apps.morphology.place import Workplace
from tests.apps.morphology.support import BALL, FIBRE, SIZE, SPECK, files, labels, write_labels


def make(segmentation: str, output: Path, **more: Any) -> MeshesResult:
    parameters = {
        "segmentation": segmentation,
        "output": str(output),
        "shape": [16, 20, 24],
        "max_error_nm": 15,
        **more,
    }
    return run(MeshesParameters.from_json(parameters), silent)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labels(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def whole(segmentation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "meshes"
    result = make(segmentation, output, min_voxels=9)
    assert (result.complete, result.objects, result.units) == (True, 2, 27)
    return output


def read(folder: Path, identifier: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """As a program that knows nothing of us reads it: vertices xyz nm, faces."""
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", (1, 1, 1), (0, 0, 0), (60, 50, 40), (64, 64, 64), folder.name
    )
    (folder.parent / "info").write_text(json.dumps({**info, "mesh": folder.name}))
    mesh = CloudVolume(f"file://{folder.parent}").mesh.get(identifier, fuse=False)[identifier]
    return mesh.vertices, mesh.faces


def edge_counts(faces: NDArray[Any]) -> NDArray[np.int64]:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def volume(vertices: NDArray[Any], faces: NDArray[Any]) -> float:
    """Enclosed, in voxels; positive where the triangles turn the right way round."""
    a, b, c = vertices.astype(float)[faces].transpose(1, 0, 2)
    return float(np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6 / np.prod(SIZE))


@pytest.mark.parametrize("identifier", [BALL, FIBRE])
def test_surfaces_are_closed_and_in_place(whole: Path, identifier: int) -> None:
    vertices, faces = read(whole, identifier)
    assert set(edge_counts(faces).tolist()) == {2}, "every edge has two triangles, across units too"
    places = np.argwhere(labels() == identifier)
    assert volume(vertices, faces) == pytest.approx(len(places), rel=0.04)
    voxels = vertices[:, ::-1] / np.array(SIZE)
    moved = 15 / np.array(SIZE) + 0.01
    assert (np.abs(voxels.min(axis=0) - places.min(axis=0)) <= moved).all(), "voxel i fills i to i + 1"
    assert (np.abs(voxels.max(axis=0) - places.max(axis=0) - 1) <= moved).all()


def test_what_else_is_written(whole: Path) -> None:
    import pyarrow.parquet as pq

    assert json.loads((whole / "info").read_text())["@type"] == "neuroglancer_legacy_mesh"
    listed = json.loads((whole / "segment_properties" / "info").read_text())["inline"]
    assert listed["ids"] == [str(FIBRE), str(BALL)]
    rows = {row["id"]: row["voxels"] for row in pq.read_table(whole / "objects.parquet").to_pylist()}
    assert rows == {identifier: int((labels() == identifier).sum()) for identifier in (FIBRE, BALL)}
    assert not (whole / f"{SPECK}:0").exists(), "under min_voxels"
    assert sorted(path.name for path in whole.parent.iterdir() if path.name.startswith(".")) == []


def test_parts_in_any_order_give_the_same_bytes(segmentation: str, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "meshes"
    for action, of in (("forge", 4), ("collect", 3)):
        for index in np.random.default_rng(2).permutation(of).tolist():
            part = Part(index=index, of=of).to_dict()
            assert not make(segmentation, output, min_voxels=9, action=action, part=part).complete
            assert not output.exists()
    assert make(segmentation, output, min_voxels=9, action="finish").complete
    assert files(output) == files(whole)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert make(segmentation, output, min_voxels=9).complete, "nothing is left to do"
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_killed_at_any_unit_it_goes_on(
    segmentation: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    written: list[Path] = []

    def dies(path: Path, fragments: Any) -> None:
        write_fragments(path, fragments)
        written.append(path)
        if len(written) in (2, 9, 20):
            raise Killed

    monkeypatch.setattr(assembly, "write_fragments", dies)
    for _ in range(3):
        with pytest.raises(Killed):
            make(segmentation, tmp_path / "meshes", min_voxels=9)
    assert make(segmentation, tmp_path / "meshes", min_voxels=9).complete
    assert len(written) == len(set(written)) == 27, "no unit is done again"
    assert files(tmp_path / "meshes") == files(whole)


def test_chosen_objects_exported(segmentation: str, tmp_path: Path) -> None:
    import zmesh

    result = make(segmentation, tmp_path / "meshes", objects=[FIBRE], export="ply", simplification=0)
    assert result.objects == 1
    (file,) = (tmp_path / "meshes" / "ply").iterdir()
    mesh = zmesh.Mesh.from_ply(file.read_bytes())
    assert set(edge_counts(mesh.faces).tolist()) == {2}
    assert volume(mesh.vertices, mesh.faces) == pytest.approx((labels() == FIBRE).sum(), rel=0.05)
    assert make(segmentation, tmp_path / "obj", objects=[FIBRE], export="obj").triangles
    assert (tmp_path / "obj" / "obj" / f"{FIBRE}.obj").read_text().count("\nf ")


def test_a_volume_that_is_made_anew_is_meshed_anew(tmp_path: Path) -> None:
    name = write_labels(tmp_path)
    make(name, tmp_path / "meshes")
    write_labels(tmp_path, np.where(labels() == FIBRE, np.uint64(0), labels()))
    assert make(name, tmp_path / "meshes").objects == 1
    assert not (tmp_path / "meshes" / f"{FIBRE}:0").exists()


def test_a_missing_or_damaged_unit_is_named(segmentation: str, tmp_path: Path) -> None:
    output = tmp_path / "meshes"
    make(segmentation, output, action="forge")
    first, *_, last = sorted(tmp_path.rglob("*.fragments"))
    with pytest.raises(StateError, match=r"bucket 0 of 27 is missing; run the action collect"):
        make(segmentation, output, action="finish")
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(StateError, match=r"unit 26 of 27 is missing; run the action forge"):
        make(segmentation, output, action="collect")
    last.write_bytes(kept[:-1] if len(kept) > 200 else kept + b"x")
    with pytest.raises(DataError, match="is damaged"):
        make(segmentation, output, action="collect")
    assert first.is_file(), "the finished parts stay"


def test_what_cannot_work_is_refused(segmentation: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(StateError, match="was not made by the stage meshes"):
        make(segmentation, tmp_path / "mine")
    with pytest.raises(DataError, match="no such volume"):
        make(str(tmp_path / "none.zarr"), tmp_path / "out")
    with pytest.raises(DataError, match="expected ids from 0 on"):
        make(write_labels(tmp_path, labels().astype(np.int64) - 1), tmp_path / "out")
    shutil.rmtree(tmp_path / "labels.zarr")
    with pytest.raises(DataError, match="expected a segmentation"):
        make(write_labels(tmp_path, labels().astype(np.float32)), tmp_path / "out")
    with pytest.raises(ParameterError, match="a part goes with forge or collect"):
        make(segmentation, tmp_path / "out", part={"index": 0, "of": 2})
    with pytest.raises(DataError, match="cannot be written"):
        make(segmentation, tmp_path / "mine" / "thesis.txt" / "out")


def test_one_that_completes_is_alone(segmentation: str, tmp_path: Path) -> None:
    place = Workplace(tmp_path / "meshes", "meshes", {})
    with place.hold(alone=False):
        make(segmentation, place.output, action="forge", part={"index": 0, "of": 9})
        with pytest.raises(StateError, match="another process works on this output"):
            make(segmentation, place.output, action="finish")
    with place.hold(alone=True), pytest.raises(StateError, match="another process works on all of it"):
        make(segmentation, place.output, action="forge")


def test_objects_that_are_named_are_there_however_small_or_are_told(segmentation: str, tmp_path: Path) -> None:
    output = tmp_path / "meshes"
    result = make(segmentation, output, objects=[FIBRE, SPECK], min_voxels=10_000)
    assert (result.complete, result.objects) == (True, 2)
    said = rf"objects 77, 99: {segmentation} has no such objects among its 3; give ids of objects that it has"
    with pytest.raises(DataError, match=said):
        make(segmentation, tmp_path / "none", objects=[99, SPECK, 77])
    assert not list(tmp_path.rglob("*.fragments")), "told before any work"
    make(segmentation, tmp_path / "none", objects=[99, SPECK], action="forge")
    with pytest.raises(DataError, match=rf"objects 99: {segmentation} has no such objects; give"):
        make(segmentation, tmp_path / "none", objects=[99, SPECK], action="collect", part={"index": 1, "of": 2})
    assert not (tmp_path / "none").exists()


def test_a_full_disk_leaves_what_is_finished(
    segmentation: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(segmentation, tmp_path / "meshes", min_voxels=9, action="forge", part={"index": 0, "of": 2})

    def full(*of: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)"):
            make(segmentation, tmp_path / "meshes", min_voxels=9)
    assert not (tmp_path / "meshes").exists()
    assert make(segmentation, tmp_path / "meshes", min_voxels=9).complete
    assert files(tmp_path / "meshes") == files(whole)
