"""The stage: what CloudVolume reads of it is the volume and its levels, at the right places and sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.multiscale.stage import MultiscaleParameters
from apps.multiscale.stage import run as add_levels
from apps.precomputed import stage
from apps.precomputed.stage import PrecomputedParameters, PrecomputedResult, run
from tests.apps.morphology.support import SIZE, files, labels, write_labels
from tests.full_disk import little_room, refused_for_want_of_room


def make(volume: str, output: Path, kind: str = "labels", **more: Any) -> PrecomputedResult:
    return run(PrecomputedParameters.from_json({"volume": volume, "output": str(output), "kind": kind, **more}), silent)


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> str:
    name = write_labels(tmp_path_factory.mktemp("volume"))
    add_levels(
        MultiscaleParameters(volume=name, kind="labels", factors=((1, 2, 2), (2, 2, 2)), chunks=(4, 6, 6)), silent
    )
    return name


@pytest.fixture(scope="module")
def whole(volume: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "precomputed"
    result = make(volume, output)
    assert (result.complete, result.levels, result.encoding) == (True, 3, "compressed_segmentation")
    assert result.pieces_made == result.pieces > 8
    return output


def test_every_level_is_read_as_it_is(volume: str, whole: Path) -> None:
    from cloudvolume import CloudVolume

    group = zarr.open_group(volume, mode="r")
    sizes = [(10.3, 8, 30), (20.6, 16, 30), (41.2, 32, 60)]
    for mip, size in enumerate(sizes):
        found = CloudVolume(f"file://{whole}", mip=mip)
        array = group[str(mip)]
        assert isinstance(array, zarr.Array)
        assert np.array_equal(found[:][..., 0].T, np.asarray(array[:]))
        assert found.resolution.tolist() == pytest.approx(size), "nm, xyz"
        assert found.voxel_offset.tolist() == [0, 0, 0]
        assert tuple(found.chunk_size[::-1]) == array.chunks
        assert (found.layer_type, found.dtype) == ("segmentation", "uint64")
    assert {path.suffix for path in (whole / "10.3_8_30").iterdir()} == {""}, "no web server has to unpack them"


def test_an_image(tmp_path: Path) -> None:
    from cloudvolume import CloudVolume

    data = np.random.default_rng(1).integers(0, 256, (9, 20, 21)).astype(np.uint8)
    write_volume(tmp_path / "image.zarr", data, (40.0, 4.0, 4.0), chunks=(8, 8, 8))
    result = make(str(tmp_path / "image.zarr"), tmp_path / "image", "image", chunks=[4, 16, 16])
    found = CloudVolume(f"file://{tmp_path}/image")
    assert (result.encoding, found.layer_type, found.resolution.tolist()) == ("raw", "image", [4, 4, 40])
    assert np.array_equal(found[:][..., 0].T, data)
    result = make(str(tmp_path / "image.zarr"), tmp_path / "jpeg", "image", encoding="jpeg")
    loss = np.abs(CloudVolume(f"file://{tmp_path}/jpeg")[:][..., 0].T.astype(int) - data)
    assert 0 < loss.mean() < 40


def test_parts_and_kills_give_the_same_bytes(
    volume: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    output, read = tmp_path / "precomputed", stage._unsigned
    assert not make(volume, output, part={"index": 1, "of": 3}).complete
    calls = 0

    def dies(*of: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return read(*of)

    monkeypatch.setattr(stage, "_unsigned", dies)
    with pytest.raises(Killed):
        make(volume, output, part={"index": 0, "of": 3})
    assert not output.exists()
    monkeypatch.setattr(stage, "_unsigned", read)
    result = make(volume, output)
    assert result.complete
    assert 0 < result.pieces_made < result.pieces - 2, "what was recorded is not done again"
    assert files(output) == files(whole)
    assert make(volume, output).pieces_made == 0
    assert [path.name for path in tmp_path.iterdir()] == ["precomputed"]


def test_levels_that_are_made_anew_are_written_anew(volume: str, tmp_path: Path) -> None:
    copy, output = str(shutil.copytree(volume, tmp_path / "labels.zarr")), tmp_path / "precomputed"
    make(copy, output)
    again = {"factors": ((1, 2, 2), (2, 2, 2)), "chunks": (4, 6, 6), "replace": True}
    add_levels(MultiscaleParameters(volume=copy, kind="labels", **again), silent)  # type: ignore[arg-type]
    assert make(copy, output).pieces_made > 0


def test_a_part_leaves_the_info_that_others_read(volume: str, tmp_path: Path) -> None:
    output = tmp_path / "precomputed"
    make(volume, output, part={"index": 0, "of": 2})
    (info,) = tmp_path.glob(".precomputed-*/result/info")
    before = info.stat()
    make(volume, output, part={"index": 1, "of": 2})
    assert (info.stat().st_ino, info.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_cannot_work_is_refused(volume: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(StateError, match="was not made by the stage precomputed"):
        make(volume, tmp_path / "mine")
    with pytest.raises(ParameterError, match="encoding jpeg: does not go with labels"):
        make(volume, tmp_path / "out", encoding="jpeg")
    with pytest.raises(DataError, match="neuroglancer has uint8"):
        make(volume, tmp_path / "out", "image")
    with pytest.raises(DataError, match=r"labels\.zarr: has the label -1 in .* expected ids from 0 on"):
        make(write_labels(tmp_path, labels().astype(np.int64) - 1), tmp_path / "out")
    with pytest.raises(DataError, match="no such volume"):
        make(str(tmp_path / "none.zarr"), tmp_path / "out")


def test_a_level_that_is_not_in_place_is_refused(volume: str, tmp_path: Path) -> None:
    """Neuroglancer's levels begin at one corner: one whose voxels are centred otherwise cannot be written."""
    copy = shutil.copytree(volume, tmp_path / "labels.zarr")
    file = Path(copy) / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["ome"]["multiscales"][0]["datasets"][1]["coordinateTransformations"].pop()
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="level 1 has voxels of"):
        make(str(copy), tmp_path / "out")
    assert open_volume(str(copy)).voxel_size_nm == SIZE


def test_a_full_disk_is_said_and_with_room_the_bytes_are_the_same(tmp_path: Path) -> None:
    data = np.random.default_rng(1).integers(0, 256, (8, 32, 32)).astype(np.uint8)
    data[:, :16, :16] = 0
    write_volume(tmp_path / "image.zarr", data, (40.0, 4.0, 4.0), chunks=(8, 16, 16))
    given: dict[str, Any] = {
        "volume": str(tmp_path / "image.zarr"),
        "kind": "image",
        "chunks": [8, 16, 16],
        "encoding": "jpeg",
    }
    make(output=tmp_path / "whole", **given)
    expected, output = files(tmp_path / "whole"), tmp_path / "full"
    with refused_for_want_of_room(r"info: cannot be written \(File too large\)"), little_room(300):
        make(output=output, **given)
    with refused_for_want_of_room(r"full: cannot be written \(File too large\)"), little_room(1000):
        make(output=output, **given)
    assert not output.exists()
    assert [path.stat().st_size for path in tmp_path.rglob(".full*/**/16-32*")] == [1000], "half a file"
    assert make(output=output, **given).complete
    assert files(output) == expected
