"""The stage: what it writes, that it resumes, shares its work and refuses what cannot work."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parts import Part
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.multiscale import stage as stage_module
from apps.multiscale import storage
from apps.multiscale.building import build_tower
from apps.multiscale.downsampling import mean, mode
from apps.multiscale.stage import MultiscaleParameters, MultiscaleResult, run
from apps.multiscale.storage import Store

SIZE = (30.0, 8.0, 8.0)


class Killed(BaseException):
    """The process ends here: nothing that follows is run, as with kill -9."""


def image(folder: Path, shape: tuple[int, int, int] = (10, 40, 50), name: str = "image") -> str:
    path = folder / f"{name}.zarr"
    data = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    write_volume(path, data, SIZE, chunks=(4, 8, 8))
    return str(path)


def labels(folder: Path) -> tuple[str, NDArray[np.uint64]]:
    small = np.random.default_rng(4).integers(0, 5, (3, 12, 16)).astype(np.uint64) * np.uint64(2**40)
    data = small.repeat(3, 0).repeat(3, 1).repeat(3, 2)
    write_volume(folder / "labels.zarr", data, SIZE, chunks=(4, 8, 8))
    return str(folder / "labels.zarr"), data


def make(volume: str, kind: str = "image", **more: Any) -> MultiscaleResult:
    return run(MultiscaleParameters.from_json({"volume": volume, "kind": kind, **more}), silent)


def files(volume: str) -> dict[str, bytes]:
    root = Path(volume)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def metadata(volume: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(volume) / "zarr.json").read_text())["attributes"]["ome"]
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, bytes], Path]:
    """A volume without levels, and the files that it has with them."""
    folder = tmp_path_factory.mktemp("whole")
    bare = image(folder, name="bare")
    done = str(shutil.copytree(bare, folder / "bare-done.zarr"))
    result = make(done)
    assert result.complete
    assert result.towers_made == result.towers > 8
    return bare, files(done), folder


@pytest.fixture
def volume(whole: tuple[str, dict[str, bytes], Path], tmp_path: Path) -> str:
    return str(shutil.copytree(whole[0], tmp_path / "image.zarr"))


def test_levels_of_an_image(tmp_path: Path) -> None:
    path = image(tmp_path)
    before = files(path)
    result = make(path)
    level = open_volume(path).read()
    group = zarr.open_group(path, mode="r")
    assert [entry.factor for entry in result.levels[1:]] == [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    for entry in result.levels[1:]:
        level = mean(level, entry.factor)
        array = group[entry.path]
        assert isinstance(array, zarr.Array)
        assert np.array_equal(np.asarray(array[:]), level), entry.path
        assert (array.chunks, array.metadata.dimension_names) == ((4, 8, 8), ("z", "y", "x"))
    assert open_volume(path).voxel_size_nm == SIZE
    after = files(path)
    assert {name: data for name, data in after.items() if name.startswith("0/")} == {
        name: data for name, data in before.items() if name.startswith("0/")
    }
    assert sorted(entry.name for entry in Path(path).iterdir()) == ["0", "1", "2", "3", "4", "zarr.json"]


def test_levels_of_labels(tmp_path: Path) -> None:
    path, data = labels(tmp_path)
    result = make(path, "labels", factors=[[1, 2, 2], [3, 3, 3]], chunks=[4, 8, 16], workers=3)
    group = zarr.open_group(path, mode="r")
    first = mode(data, (1, 2, 2))
    assert np.array_equal(np.asarray(group["1"][:]), first)
    assert np.array_equal(np.asarray(group["2"][:]), mode(first, (3, 3, 3)))
    assert group["2"].chunks == (4, 8, 16)
    assert result.levels[2].voxel_size_nm == (90.0, 48.0, 48.0)
    assert metadata(path)["multiscales"][0]["type"] == "mode"


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_chunk_of_nothing_but_0_is_no_file_and_one_of_minus_0_is(tmp_path: Path) -> None:
    data = np.ones((4, 8, 24), np.float32)
    data[..., 8:16], data[..., 16:] = 0.0, -0.0
    write_volume(tmp_path / "zeros.zarr", data, SIZE, chunks=(2, 4, 4))
    make(str(tmp_path / "zeros.zarr"), factors=[[2, 2, 2]])
    written = {path.name for path in (tmp_path / "zeros.zarr" / "1" / "c" / "0" / "0").iterdir()}
    assert written == {"0", "2"}
    array = zarr.open_group(tmp_path / "zeros.zarr", mode="r")["1"]
    assert isinstance(array, zarr.Array)
    assert np.signbit(np.asarray(array[:])).any(axis=(0, 1)).tolist() == [False] * 8 + [True] * 4


def test_places_and_sizes_are_exact(volume: str) -> None:
    """The centre of a voxel of level k is the mean of the centres of the voxels that it is made of."""
    zarr.consolidate_metadata(volume)
    file = Path(volume) / "zarr.json"
    content = json.loads(file.read_text())
    entry = content["attributes"]["ome"]["multiscales"][0]
    entry["axes"][0]["unit"] = "micrometer"
    entry["datasets"][0]["coordinateTransformations"] = [
        {"type": "scale", "scale": [0.03, 8.0, 8.0]},
        {"type": "translation", "translation": [1.0, 100.0, 0.0]},
    ]
    file.write_text(json.dumps(content))
    result = make(volume)
    ome = metadata(volume)
    assert "consolidated_metadata" not in json.loads(file.read_text()), "it would hide the levels"
    assert ome["version"] == "0.5"
    first, *others = ome["multiscales"][0]["datasets"]
    assert first == entry["datasets"][0]
    start, size = np.array([1.0, 100.0, 0.0]), np.array([0.03, 8.0, 8.0])
    for dataset, level in zip(others, result.levels[1:], strict=True):
        scale, translation = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": (size * level.total_factor).tolist()}
        middles = [np.mean([start[a] + size[a] * i for i in range(level.total_factor[a])]) for a in range(3)]
        assert translation["translation"] == pytest.approx(middles)
    assert result.levels[1].voxel_size_nm == (30.0, 16.0, 16.0)
    assert open_volume(volume).voxel_size_nm == SIZE


def test_again_is_nothing_to_do(volume: str, whole: tuple[str, dict[str, bytes], Path]) -> None:
    make(volume)
    times = {path: path.stat().st_mtime_ns for path in Path(volume).rglob("*")}
    again = make(volume, workers=2)
    assert (again.complete, again.towers_made) == (True, 0)
    assert make(volume, part={"index": 1, "of": 2}).complete
    assert {path: path.stat().st_mtime_ns for path in Path(volume).rglob("*")} == times
    assert files(volume) == whole[1]


def test_a_result_stands_as_long_as_the_volume_has_its_levels(volume: str, tmp_path: Path) -> None:
    part, whole = (make(volume, part=part).to_dict() for part in ({"index": 0, "of": 2}, None))
    assert stage_module.STAGE.stands(whole)
    (Path(volume) / whole["levels"][2]["path"] / "zarr.json").rename(tmp_path / "zarr.json")
    assert not stage_module.STAGE.stands(whole)
    shutil.rmtree(volume)
    assert not stage_module.STAGE.stands(whole)
    image(tmp_path)  # made anew
    assert not stage_module.STAGE.stands(whole)
    assert stage_module.STAGE.stands(part), "the last job builds what is missing"
    other = make(volume, levels=2).to_dict()
    assert stage_module.STAGE.stands(whole), "somebody wanted other levels in their place"
    make(volume, replace=True)
    assert stage_module.STAGE.stands(whole) and stage_module.STAGE.stands(other)
    assert stage_module.STAGE.stands(make(volume, levels=0, replace=True).to_dict())


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (3, 1)])
def test_killed_at_any_tower_it_goes_on(
    volume: str,
    whole: tuple[str, dict[str, bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    built: list[int] = []
    for _ in range(3):
        left = int(rng.integers(0, 4))

        def dies(*of: Any) -> None:
            nonlocal left
            left -= 1
            built.append(1)
            build_tower(*of)  # a kill between the chunks and the record
            if left < 0:
                raise Killed

        monkeypatch.setattr(stage_module, "build_tower", dies)
        with pytest.raises(Killed):
            make(volume, workers=workers)
        assert [entry["path"] for entry in metadata(volume)["multiscales"][0]["datasets"]] == ["0"]
        open_volume(volume).read()
    monkeypatch.setattr(stage_module, "build_tower", build_tower)
    result = make(volume)
    assert 0 < result.towers_made < result.towers, "what was recorded is not done again"
    assert files(volume) == whole[1]


@pytest.mark.parametrize(
    ("name", "after", "done"),
    [("replace_folder", 2, True), ("_write_metadata", 0, False), ("_write_metadata", 0, True), ("clear", 0, True)],
)
def test_killed_while_publishing_it_goes_on(
    volume: str,
    whole: tuple[str, dict[str, bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    after: int,
    done: bool,
) -> None:
    real: Callable[..., None] = getattr(storage, name)
    calls = 0

    def dies(*of: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            if done:
                real(*of)
            raise Killed
        real(*of)

    with monkeypatch.context() as patch:
        patch.setattr(storage, name, dies)
        with pytest.raises(Killed):
            make(volume)
    for entry in metadata(volume)["multiscales"][0]["datasets"]:
        assert (Path(volume) / entry["path"] / "zarr.json").is_file(), "named levels are there"
    assert make(volume).complete
    assert files(volume) == whole[1]


def test_several_jobs_give_the_same_bytes(volume: str, whole: tuple[str, dict[str, bytes], Path]) -> None:
    made = []
    errors: list[BaseException] = []

    def job(index: int) -> None:
        try:
            made.append(make(volume, part={"index": index, "of": 3}))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=job, args=(index,)) for index in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not any(result.complete for result in made)
    assert sum(result.towers_made for result in made) > 3
    assert make(volume, part={"index": 1, "of": 3}).towers_made == 0
    last = make(volume)
    assert last.complete
    assert last.towers_made == last.towers - sum(result.towers_made for result in made)
    assert files(volume) == whole[1]


def test_a_missing_part_is_made_by_the_last_job(volume: str, whole: tuple[str, dict[str, bytes], Path]) -> None:
    make(volume, part={"index": 0, "of": 2})
    assert make(volume).complete
    assert files(volume) == whole[1]


def test_one_that_completes_is_alone(volume: str) -> None:
    parameters = MultiscaleParameters(volume=volume, kind="image")
    store = stage_module._plan(parameters, open_volume(volume))
    with storage.hold(store, alone=False):
        assert not make(volume, part={"index": 0, "of": 2}).complete
        with pytest.raises(StateError, match=r"image.zarr: another process works on this output"):
            make(volume)
    with storage.hold(store, alone=True), pytest.raises(StateError, match="another process completes its levels"):
        make(volume, part={"index": 0, "of": 2})
    assert make(volume).complete


def test_other_levels_are_replaced_only_on_demand(volume: str, whole: tuple[str, dict[str, bytes], Path]) -> None:
    make(volume, factors=[[2, 2, 2]] * 5)
    before = files(volume)
    with pytest.raises(StateError, match=r"has other levels already \(1, 2, 3, 4, 5\); replace: true"):
        make(volume)
    assert files(volume) == before
    assert make(volume, replace=True).complete
    assert files(volume) == whole[1], "the fifth level is gone"
    assert make(volume, replace=True).towers_made > 0


def test_arrays_that_the_metadata_do_not_name_are_not_overwritten(volume: str) -> None:
    shutil.copytree(Path(volume) / "0", Path(volume) / "2")
    with pytest.raises(StateError, match=r"has other levels already \(2\)"):
        make(volume)


def test_a_folder_of_several_images_is_refused(volume: str) -> None:
    file = Path(volume) / "zarr.json"
    content = json.loads(file.read_text())
    content["attributes"]["ome"]["multiscales"] *= 2
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"image.zarr: describes 2 images"):
        make(volume, replace=True)


def test_levels_by_another_name_are_replaced_too(volume: str, whole: tuple[str, dict[str, bytes], Path]) -> None:
    """As other writers name them, and beside an array that lies outside, which is left alone."""
    folder = Path(volume)
    for target in (folder / "coarse", folder.parent / "mine"):
        shutil.copytree(folder / "0", target)
    content = json.loads((folder / "zarr.json").read_text())
    datasets = content["attributes"]["ome"]["multiscales"][0]["datasets"]
    datasets += [{**datasets[0], "path": "coarse"}, {**datasets[0], "path": "../mine"}]
    (folder / "zarr.json").write_text(json.dumps(content))
    make(volume, replace=True)
    assert files(volume) == whole[1]
    assert (folder.parent / "mine").is_dir()


def test_a_small_volume_needs_no_levels(tmp_path: Path) -> None:
    path = image(tmp_path, (4, 8, 8))
    before = files(path)
    result = make(path)
    assert (len(result.levels), result.complete, result.towers) == (1, True, 0)
    assert files(path) == before


def test_a_full_disk_leaves_the_volume_as_it_was(volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "mark", full)
    with pytest.raises(DataError, match=r"image.zarr: levels cannot be written \(No space left on device\)"):
        make(volume)
    assert len(metadata(volume)["multiscales"][0]["datasets"]) == 1


def test_a_damaged_chunk_is_named(volume: str) -> None:
    chunk = next(path for path in sorted(Path(volume, "0", "c").rglob("*")) if path.is_file())
    chunk.write_bytes(b"no chunk")
    with pytest.raises(DataError, match=r"image.zarr: .* cannot be read"):
        make(volume)


def test_bad_input_is_named(volume: str, tmp_path: Path) -> None:
    floats, wide = str(tmp_path / "floats.zarr"), str(tmp_path / "wide.zarr")
    write_volume(floats, np.zeros((8, 8, 8), np.float32), SIZE)
    write_volume(wide, np.zeros((8, 8, 8), np.uint64), SIZE)
    for path, kind, words in (
        (str(tmp_path / "none.zarr"), "image", "none.zarr: no such volume"),
        (floats, "labels", "floats.zarr: has dtype float32; expected integer labels"),
        (wide, "image", "wide.zarr: has dtype uint64; expected an image of up to 32 bits"),
    ):
        with pytest.raises(DataError, match=words):
            make(path, kind)
    for change, words in (
        ({"factors": [[1, 1, 1]]}, r"factors \(1, 1, 1\)"),
        ({"factors": [[8, 8, 8]]}, "whose product is 2 to 64"),
        ({"factors": [[2, 2, 0]]}, r"factors \(2, 2, 0\)"),
        ({"factors": [[2, 2, 2]], "levels": 1}, "expected one of them"),
        ({"chunks": [0, 8, 8]}, "chunks"),
        ({"kind": "mesh"}, "kind"),
    ):
        with pytest.raises(ParameterError, match=words):
            make(volume, **{"kind": "image", **change})  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="part 2 of 2: expected an index from 0 to 1"):
        Part(index=2, of=2)


def test_hdf5_is_refused(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = np.zeros((8, 8, 8), np.uint8)
    with pytest.raises(DataError, match="is not OME-Zarr; make it one with the stage ingest"):
        make(f"{tmp_path}/raw.h5:raw")
