"""The interchange stage: what goes out to google/ffn's files comes back, and lies where it lay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError, UserError
from apps.core.progress import silent
from apps.core.stage import run_file
from apps.core.volumes import open_volume, write_volume
from apps.ffn.google_results import Origin, read_google_result, write_google_result
from apps.interchange.stage import STAGE, InterchangeParameters, InterchangeResult, run
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, needs_fib25

CORNER = (30, 20, 10)
VOXEL_SIZE = (8.0, 4.0, 4.0)


@pytest.fixture
def labels() -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Two objects in 4 x 5 x 6 voxels: id 2 of 4 voxels, id 7 of 6."""
    made = np.zeros((4, 5, 6), np.uint32)
    made[0, 1:3, 1:3] = 2
    made[3, 4] = 7
    return made


def convert(conversion: str, source: Any, output: Any, **fields: Any) -> InterchangeResult:
    parameters = InterchangeParameters(conversion=conversion, source=str(source), output=str(output), **fields)  # type: ignore[arg-type]
    return run(parameters, silent)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_google_result_becomes_what_inference_writes(labels: Any, tmp_path: Path) -> None:
    source = write_google_result(
        tmp_path / "google",
        CORNER,
        labels,
        {2: Origin((0, 1, 2), 3, 0.5), 7: Origin((3, 4, 5), 9, 2.0)},
        {"inference-calls": 12},
        b"\x8a\x01\x0bPolicyPeaks",
    )
    output = tmp_path / "out" / "box.zarr"
    result = convert("from_google_result", source, output, voxel_size_nm=VOXEL_SIZE)
    volume = open_volume(str(output))
    assert (volume.dtype, volume.voxel_size_nm) == (np.uint32, VOXEL_SIZE)
    np.testing.assert_array_equal(volume.read(), labels)
    assert result == InterchangeResult(
        outputs=(str(output),),
        tables=(str(tmp_path / "out" / "box.parquet"),),
        boxes=(Box.of(CORNER, (4, 5, 6)),),
        objects=2,
        voxels=10,
        steps=12,
        runs=({"request": {"seed_policy": "PolicyPeaks"}, "counters": {"inference-calls": 12.0}},),
    )
    table = pq.read_table(result.tables[0])
    assert [str(field.type) for field in table.schema] == ["uint32", *["int64"] * 11]
    assert table.to_pydict() == {
        "id": [2, 7],
        "z": [30, 33],
        "y": [21, 24],
        "x": [12, 15],
        "low_z": [30, 33],
        "low_y": [21, 24],
        "low_x": [11, 10],
        "high_z": [30, 33],
        "high_y": [22, 24],
        "high_x": [12, 15],
        "voxels": [4, 6],
        "steps": [3, 9],
    }
    before = files_below(tmp_path)
    convert("from_google_result", source, output, voxel_size_nm=VOXEL_SIZE)
    assert files_below(tmp_path) == before


def test_there_and_back(labels: Any, tmp_path: Path) -> None:
    origins = {2: Origin((0, 1, 2), 3, 0.0), 7: Origin((3, 4, 5), 9, 0.0)}
    source = write_google_result(tmp_path / "google", CORNER, labels, origins)
    convert("from_google_result", source, tmp_path / "box.zarr")
    result = convert("to_google_result", tmp_path / "box.zarr", tmp_path / "back", corner=CORNER)
    assert result.outputs == (str(tmp_path / "back" / "10" / "20" / "seg-10_20_30.npz"),)
    assert (result.objects, result.voxels, result.steps) == (2, 10, 12)
    assert Path(result.outputs[0]).read_bytes() == source.read_bytes()


def test_a_folder_of_results(labels: Any, tmp_path: Path) -> None:
    write_google_result(tmp_path / "google", (0, 0, 0), labels, {})
    write_google_result(tmp_path / "google", CORNER, labels.astype(np.uint64) * 2**40, {})
    result = convert("from_google_result", tmp_path / "google", tmp_path / "out")
    assert result.outputs == tuple(str(tmp_path / "out" / f"seg-{n}.zarr") for n in ("0_0_0", "10_20_30"))
    assert [box.offset for box in result.boxes] == [(0, 0, 0), CORNER]
    assert open_volume(result.outputs[0]).dtype == np.uint32
    assert open_volume(result.outputs[1]).dtype == np.uint64
    # Without origins: the first voxels.
    second = pq.read_table(result.tables[1]).to_pydict()
    assert second["id"] == [2 * 2**40, 7 * 2**40]
    assert list(zip(second["z"], second["y"], second["x"], second["steps"], strict=True)) == [
        (30, 21, 11, 0),
        (33, 24, 10, 0),
    ]


def test_a_box_of_labels_goes_out_with_its_objects_only(labels: Any, tmp_path: Path) -> None:
    """The box is in voxels of the volume, as are seeds; origins of google/ffn's are within the subvolume."""
    source = write_google_result(
        tmp_path / "google", CORNER, labels, {2: Origin((0, 1, 2), 3, 0.0), 7: Origin((3, 4, 5), 9, 0.0)}
    )
    convert("from_google_result", source, tmp_path / "box.zarr")
    box = Box.of((32, 23, 11), (2, 2, 5))
    result = convert("to_google_result", tmp_path / "box.zarr", tmp_path / "part", corner=CORNER, box=box)
    assert result.outputs[0].endswith("11/23/seg-11_23_32.npz")
    found = read_google_result(result.outputs[0])
    np.testing.assert_array_equal(found.labels, labels[2:4, 3:5, 1:6])
    assert found.origins == {7: Origin((1, 1, 4), 9, 0.0)}
    assert (found.corner, result.objects, result.voxels) == ((32, 23, 11), 1, 5)


def test_labels_without_a_table_go_out_without_origins(labels: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["bodies"] = labels.astype(np.int64)
    result = convert("to_google_result", f"{tmp_path}/labels.h5:bodies", tmp_path / "out")
    found = read_google_result(result.outputs[0])
    assert (found.corner, found.origins) == ((0, 0, 0), {})
    np.testing.assert_array_equal(found.labels, labels)


def test_a_volume_goes_to_hdf5_beside_what_is_there(labels: Any, tmp_path: Path) -> None:
    write_volume(tmp_path / "labels.zarr", labels, VOXEL_SIZE)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["raw"] = np.arange(5)
        file["groups/old"] = np.arange(3)
        file["groups/bodies"] = np.arange(7)
        file.attrs["author"] = "me"
    for _ in range(2):  # the second time the dataset is there
        result = convert("to_hdf5", tmp_path / "labels.zarr", f"{tmp_path}/train.h5:groups/bodies")
    assert result.outputs == (f"{tmp_path}/train.h5:groups/bodies",)
    with h5py.File(tmp_path / "train.h5") as file:
        np.testing.assert_array_equal(file["groups/bodies"][:], labels)
        assert file["groups/bodies"].dtype == np.uint32
        assert (file["raw"].shape, file["groups/old"].shape, file.attrs["author"]) == ((5,), (3,), "me")
    np.testing.assert_array_equal(open_volume(result.outputs[0]).read(), labels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.zarr", "train.h5"]


def test_hdf5_is_written_in_slabs_of_a_box(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (150, 4, 5)).astype(np.uint8)
    write_volume(tmp_path / "image.zarr", image, VOXEL_SIZE)
    box = Box.of((3, 1, 2), (140, 2, 3))
    name = f"{tmp_path}/new/raw.h5:raw"
    convert("to_hdf5", tmp_path / "image.zarr", name, box=box)
    np.testing.assert_array_equal(open_volume(name).read(), image[box.slices()])
    first = (tmp_path / "new/raw.h5").read_bytes()
    convert("to_hdf5", tmp_path / "image.zarr", name, box=box)
    assert (tmp_path / "new/raw.h5").read_bytes() == first


@needs_fib25
def test_a_google_checkpoint_becomes_one_of_ours(tmp_path: Path) -> None:
    from apps.ffn.checkpoint import load_checkpoint

    said: dict[str, Any] = {"image_mean": 128, "image_std": 33, "voxel_size_nm": VOXEL_SIZE}
    for _ in range(2):
        result = convert("from_google_checkpoint", GOOGLE_CHECKPOINT, tmp_path / "ffn", **said)
    assert result.steps == 27465036
    ours, googles = load_checkpoint(str(tmp_path / "ffn")), load_checkpoint(GOOGLE_CHECKPOINT)
    assert ours.model == googles.model
    assert (ours.model.fov, ours.model.deltas, ours.model.depth) == ((33, 33, 33), (8, 8, 8), 12)
    assert (ours.image_mean, ours.image_std, ours.step, ours.voxel_size_nm) == (128, 33, 27465036, VOXEL_SIZE)
    assert list(ours.weights) == list(googles.weights)
    for name, values in googles.weights.items():
        np.testing.assert_array_equal(ours.weights[name], values)


def test_an_import_does_not_overwrite_a_training(tmp_path: Path) -> None:
    from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
    from apps.ffn.model import initial_weights
    from tests.apps.ffn.tiny import TINY

    info = CheckpointInfo(model=TINY, image_mean=0, image_std=1, step=3, provenance={"training_hash": "x"})
    save_checkpoint(tmp_path / "trained", info, initial_weights(TINY, seed=0), {})
    before = files_below(tmp_path)
    for output in ("trained", "."):
        with pytest.raises(DataError, match=r"no imported checkpoint|is not a checkpoint"):
            convert("from_google_checkpoint", GOOGLE_CHECKPOINT, tmp_path / output, image_mean=128, image_std=33)
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conversion": "to_hdf5", "output": "x.zarr"}, "FILE.h5:DATASET"),
        ({"conversion": "to_hdf5", "output": "x.h5"}, "FILE.h5:DATASET"),
        ({"conversion": "to_hdf5", "output": "x.h5:a", "corner": (0, 0, 0)}, "corner: to_hdf5 does not take"),
        ({"conversion": "from_google_checkpoint", "output": "x"}, "image_mean, image_std"),
        ({"conversion": "from_google_checkpoint", "output": "x", "image_mean": 1.0}, "image_mean, image_std"),
        ({"conversion": "to_google_result", "output": "x", "image_mean": 1.0}, "image_mean: to_google_result"),
        ({"conversion": "to_hdf5", "output": "x.h5:a", "voxel_size_nm": (1.0, 1.0, 1.0)}, "voxel_size_nm: to_hdf5"),
        ({"conversion": "from_google_result", "output": "x.zarr", "voxel_size_nm": (0.0, 1.0, 1.0)}, "positive"),
        ({"conversion": "magic", "output": "x"}, "conversion"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        InterchangeParameters(source="s", **fields)


def test_sources_that_cannot_work_are_named(labels: Any, tmp_path: Path) -> None:
    result = write_google_result(tmp_path / "google", CORNER, labels, {})
    write_volume(tmp_path / "labels.zarr", labels, VOXEL_SIZE)
    write_volume(tmp_path / "floats.zarr", labels.astype(np.float32), VOXEL_SIZE)
    write_volume(tmp_path / "negative.zarr", labels.astype(np.int32) - 1, VOXEL_SIZE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file["a/b"] = 1
    before = files_below(tmp_path)
    out, outside = tmp_path / "out", Box.of((0, 0, 0), (9, 9, 9))
    cases: list[tuple[str, Any, Any, dict[str, Any], str]] = [
        ("from_google_result", tmp_path / "none.npz", tmp_path / "x.zarr", {}, "none.npz: no such file"),
        ("from_google_result", tmp_path / "empty", out, {}, "holds no google/ffn results"),
        ("from_google_result", result, out, {}, "ends in .zarr"),
        ("from_google_result", tmp_path / "google", out, {"corner": CORNER}, "say their own"),
        ("to_google_result", tmp_path / "none.zarr", out, {}, "no such volume"),
        ("to_google_result", tmp_path / "floats.zarr", out, {}, "expected labels"),
        ("to_google_result", tmp_path / "negative.zarr", out, {}, "negative labels"),
        ("to_google_result", tmp_path / "labels.zarr", out, {"box": outside}, "leaves the labels"),
        ("to_google_result", tmp_path / "labels.zarr", out, {"objects": "none.parquet"}, "no such file"),
        ("to_google_result", tmp_path / "labels.zarr", out, {"objects": f"{tmp_path}/bad.parquet"}, "is not a table"),
        ("to_hdf5", tmp_path / "labels.zarr", f"{tmp_path}/x.h5:a", {"box": outside}, "leaves the volume"),
        ("to_hdf5", tmp_path / "labels.zarr", f"{tmp_path}/bad.h5:a", {}, "cannot be written"),
        ("to_hdf5", tmp_path / "labels.zarr", f"{tmp_path}/group.h5:a", {}, "is a group"),
        ("to_hdf5", tmp_path / "labels.zarr", f"{tmp_path}/group.h5:a/b/c", {}, "cannot be written"),
        ("from_google_checkpoint", tmp_path, out, {"image_mean": 1, "image_std": 1}, "is a folder"),
        ("from_google_checkpoint", tmp_path / "none", out, {"image_mean": 1, "image_std": 1}, "no such checkpoint"),
    ]
    for conversion, source, output, fields, message in cases:
        with pytest.raises(UserError, match=message):
            convert(conversion, source, output, **fields)
    assert files_below(tmp_path) == before


def test_the_stage_runs_from_a_file(labels: Any, tmp_path: Path) -> None:
    source = write_google_result(tmp_path / "google", CORNER, labels, {})
    parameters = InterchangeParameters.from_json(
        {**STAGE.example, "source": str(source), "output": str(tmp_path / "box.zarr")}
    )
    parameters.save(tmp_path / "parameters.json")
    assert run_file(STAGE, tmp_path / "parameters.json").objects == 2
    assert (tmp_path / "result.json").is_file()
