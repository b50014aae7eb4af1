"""The stage: lines inside their objects, the same for any number of jobs, in all the forms that others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.evaluation.skeletons import load_skeletons
from apps.skeletons.stage import SkeletonsParameters, SkeletonsResult, run
from tests.apps.morphology.support import FIBRE, SIZE, SPECK, files, labels, write_labels
from tests.full_disk import little_room, refused_for_want_of_room

pytest.importorskip("kimimaro", reason="the extra `skeletons` is not installed")

BENT = 2**53 - 1


def make(segmentation: str, output: Path, **more: Any) -> SkeletonsResult:
    parameters = {
        "segmentation": segmentation,
        "output": str(output),
        "shape": [14, 32, 32],
        "min_voxels": 9,
        "constant_nm": 60,
        "min_length_nm": 150,
        "tick_nm": 150,
        **more,
    }
    return run(SkeletonsParameters.from_json(parameters), silent)


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fibre, the speck, and a tube with an elbow: along x, then along y."""
    data = labels()
    data[data > 100] = 0
    data[18:23, 24:29, 12:50] = BENT
    data[18:23, 24:46, 45:50] = BENT
    return write_labels(tmp_path_factory.mktemp("segmentation"), data)


@pytest.fixture(scope="module")
def whole(segmentation: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "skeletons"
    result = make(segmentation, output)
    assert (result.complete, result.objects, result.units) == (True, 2, 12)
    return output


def test_lines_lie_inside_and_are_as_long_as_their_objects(whole: Path, segmentation: str) -> None:
    from apps.core.volumes import open_volume

    found = load_skeletons(str(whole / "skeletons.npz"))
    assert (found.sample(open_volume(segmentation).read()) == found.label).all()
    assert set(found.label.tolist()) == {FIBRE, BENT}
    steps = (found.nodes[found.edges[:, 0]] - found.nodes[found.edges[:, 1]]) * np.array(SIZE)
    length = np.bincount((found.label[found.edges[:, 0]] == BENT).astype(int), np.linalg.norm(steps, axis=1))
    assert length[0] == pytest.approx(40 * 30, rel=0.05), "the fibre, from end to end of the volume"
    assert length[1] == pytest.approx(33 * 10.3 + 19 * 8, rel=0.35), "the ends run into corners"
    for label in (FIBRE, BENT):
        nodes, edges = (found.label == label).sum(), (found.label[found.edges[:, 0]] == label).sum()
        assert nodes == edges + 1, "one tree, across units"


def test_cloudvolume_and_neuroglancer_read_them(whole: Path) -> None:
    from cloudvolume import CloudVolume

    info = CloudVolume.create_new_info(
        1, "segmentation", "uint64", "raw", SIZE[::-1], (0, 0, 0), (60, 50, 40), (64, 64, 64)
    )
    (whole.parent / "info").write_text(json.dumps({**info, "skeletons": whole.name}))
    skeleton = CloudVolume(f"file://{whole.parent}").skeleton.get(FIBRE)
    voxels = skeleton.vertices[:, ::-1] / np.array(SIZE) - 0.5
    found = load_skeletons(str(whole / "skeletons.npz"))
    assert voxels == pytest.approx(found.nodes[found.label == FIBRE], abs=1e-3)
    middle = np.abs(voxels[:, 0] - 20) < 10
    assert skeleton.radius[middle] == pytest.approx(4 * 8, rel=0.3), "nm"
    assert skeleton.cable_length() == pytest.approx(1200, rel=0.05)
    assert json.loads((whole / "segment_properties" / "info").read_text())["inline"]["ids"] == [str(FIBRE), str(BENT)]
    assert sorted(path.name for path in (whole / "swc").iterdir()) == [f"{FIBRE}.swc", f"{BENT}.swc"]
    assert not (whole / str(SPECK)).exists()


def test_parts_in_any_order_give_the_same_bytes(segmentation: str, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "skeletons"
    for action in ("forge", "collect"):
        for index in (2, 0, 1):
            assert not make(segmentation, output, action=action, part={"index": index, "of": 3}).complete
    result = make(segmentation, output, action="finish")
    assert result.complete
    assert files(output) == files(whole)
    assert make(segmentation, output) == result, "nothing is left to do"


def test_nothing_to_trace_is_an_empty_result(tmp_path: Path) -> None:
    write_volume(tmp_path / "empty.zarr", np.zeros((8, 8, 8), np.uint32), SIZE, chunks=(8, 8, 8))
    result = make(str(tmp_path / "empty.zarr"), tmp_path / "skeletons")
    assert (result.complete, result.objects, result.nodes) == (True, 0, 0)
    assert len(load_skeletons(result.npz).nodes) == 0


@pytest.mark.parametrize("shape", [(33, 41, 43), (33, 33, 41), (33, 33, 33)])
def test_a_last_unit_is_no_single_plane(shape: tuple[int, int, int], tmp_path: Path) -> None:
    """Such a plane is its neighbour's too; it would get lines across the objects' sections."""
    data = np.zeros(shape, np.uint32)
    data[:, 4:, 4:] = 1
    write_volume(tmp_path / "thick.zarr", data, (8.0, 8.0, 8.0), chunks=(16, 16, 16))
    how = {"constant_nm": 100, "min_length_nm": 50, "tick_nm": 0}
    whole = make(str(tmp_path / "thick.zarr"), tmp_path / "whole", shape=[64, 64, 64], **how)
    cut = make(str(tmp_path / "thick.zarr"), tmp_path / "cut", shape=[32, 32, 32], **how)
    extents = [33 if extent == 33 else 32 for extent in shape]
    assert cut.units == np.prod([-(-n // e) for n, e in zip(shape, extents, strict=True)])
    assert whole.objects == cut.objects == 1
    if cut.units == 1:
        assert cut.length_nm == whole.length_nm


def test_without_kimimaro_it_says_how_to_install_it(
    segmentation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StateError, match="make environment EXTRAS=cpu,skeletons"):
        make(segmentation, tmp_path / "skeletons")


def test_wrong_parameters_are_refused(segmentation: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="at least 2 voxels"):
        make(segmentation, tmp_path / "skeletons", shape=[1, 8, 8])
    with pytest.raises(ParameterError, match="a part goes with forge or collect"):
        make(segmentation, tmp_path / "skeletons", action="finish", part={"index": 0, "of": 2})


def test_objects_that_are_named_are_there_however_small_or_are_told(segmentation: str, tmp_path: Path) -> None:
    assert make(segmentation, tmp_path / "one", objects=[FIBRE], min_voxels=1_000_000).objects == 1
    with pytest.raises(DataError, match=r"objects 77: .* has no such objects among its 3; give ids"):
        make(segmentation, tmp_path / "none", objects=[FIBRE, 77])


def test_a_full_disk_is_said_and_with_room_the_bytes_are_the_same(
    segmentation: str, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "skeletons"

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.fragments")}

    with refused_for_want_of_room(r"000000004\.fragments: cannot be written \(File too large\)"), little_room(1200):
        make(segmentation, output)
    before = finished()
    assert len(before) == 4
    with refused_for_want_of_room(r"objects\.parquet: cannot be written"), little_room(3000):
        make(segmentation, output)
    assert not output.exists()
    assert {path: finished()[path] for path in before} == before, "what is finished is not made again"
    assert make(segmentation, output).complete
    assert files(output) == files(whole)
