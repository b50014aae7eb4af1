"""The user's files, looked at before any job: `ensemble run --dry-run` names what is wrong, and ends with 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from apps.core.volumes import VoxelSize, write_volume
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.model import ModelParameters
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.inputs import wrong_inputs
from tests.ensemble.test_cli import call

PIPELINE = Path(__file__).parents[3] / "pipelines" / "connectome.yml"
SHAPE = (96, 128, 128)
BOX: dict[str, Any] = {"offset": [0, 0, 0], "shape": [96, 128, 128]}
GRID: dict[str, Any] = {"box": BOX, "shape": [64, 64, 64], "overlap": [32, 32, 32]}  # what the published network needs
Steps = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Volumes, a good one and bad ones, and folders that are no models."""
    folder = tmp_path_factory.mktemp("data")
    nan = np.ones((8, 8, 8), np.float32)
    nan[3, 4, 5] = np.nan
    write_volume(folder / "good.zarr", np.ones(SHAPE, np.uint8), (10.0, 10.0, 10.0))
    write_volume(folder / "coarse.zarr", np.ones(SHAPE, np.uint32), (40.0, 10.0, 10.0))
    write_volume(folder / "small.zarr", np.ones((8, 8, 8), np.uint8), (10.0, 10.0, 10.0))
    write_volume(folder / "nan.zarr", nan, (10.0, 10.0, 10.0))
    write_volume(folder / "axes.zarr", np.ones((8, 8, 8), np.uint8), (10.0, 10.0, 10.0))
    description = json.loads((folder / "axes.zarr" / "zarr.json").read_text())
    axes = description["attributes"]["ome"]["multiscales"][0]["axes"]
    axes[0]["name"], axes[2]["name"] = "x", "z"
    (folder / "axes.zarr" / "zarr.json").write_text(json.dumps(description))
    with h5py.File(folder / "em.h5", "w") as file:
        file["raw"], file["flat"] = np.ones(SHAPE, np.uint8), np.ones((5, 5), np.uint8)
    (folder / "folder").mkdir()
    (folder / "google.index").write_text("")
    return folder


def dry_run(
    capsys: pytest.CaptureFixture[str], folder: Path, change: Callable[[Steps], Any], *more: str
) -> tuple[int, str]:
    """Exit code and standard error of a dry run of the shipped pipeline, with the parameters of its steps changed."""
    content = yaml.safe_load(PIPELINE.read_text())
    change({name: step["parameters"] for name, step in content["steps"].items()})
    file = folder / "flow.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    code, _, err = call(capsys, "run", str(file), "--dry-run", "--home", str(folder / "home"), *more)
    return code, err


@pytest.mark.parametrize(
    ("step", "parameter", "value", "message"),
    [
        ("inference", "image", "{}/none.zarr", "step inference: image {}/none.zarr: is not there"),
        ("inference", "image", "{}/em.h5:grey", "em.h5: has no dataset 'grey'; it has flat, raw"),
        ("inference", "image", "{}/em.h5:flat", "has 2 dimensions (5, 5)"),
        ("inference", "image", "{}/axes.zarr", "axes.zarr: has the axes ['x', 'y', 'z']; expected z, y, x"),
        ("inference", "image", "{}/coarse.zarr", "coarse.zarr: has dtype uint32; expected uint8"),
        ("inference", "image", "{}/small.zarr", "grid.box 0:96,0:128,0:128 (zyx): leaves the volume {}/small.zarr"),
        ("synapses", "image", "{}/nan.zarr", "step synapses: image: {}/nan.zarr: holds NaN or infinite voxels"),
        ("meshes", "segmentation", "{}/nan.zarr", "nan.zarr: has dtype float32; expected integers"),
        (
            "inference",
            "model",
            "{}/none",
            "model {}/none: is not there; expected a checkpoint's folder (`ensemble models",
        ),
        (
            "synapses",
            "model",
            "{}/none",
            "model {}/none: is not there; expected the folder `model` that `action: train` of the stage synapses",
        ),
        ("inference", "model", "{}/folder", "folder: is no trained model, it has no model.json"),
        ("ffn", "init", "{}/none", "step ffn: init {}/none: is not there"),
        (
            "inference",
            "grid",
            {"box": {"offset": [0, 0, 9], "shape": [96, 128, 128]}},
            "leaves the volume ${{tissue.image}}",
        ),
    ],
)
def test_wrong_input_is_named_before_any_job(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    tmp_path: Path,
    step: str,
    parameter: str,
    value: Any,
    message: str,
) -> None:
    given = value.format(data) if isinstance(value, str) else {**value, "shape": [64, 64, 64], "overlap": [24, 24, 24]}
    code, err = dry_run(capsys, tmp_path, lambda steps: steps[step].update({parameter: given}))
    assert code == 2 and err.startswith("ensemble: ") and "Traceback" not in err
    assert message.format(data) in err
    assert not (tmp_path / "home").exists()


def test_what_lies_deeper_in_the_parameters_is_looked_at_too(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    volume = {"image": f"{data}/good.zarr", "labels": f"{data}/small.zarr", "coordinates": f"{data}/none.npz"}
    code, err = dry_run(capsys, tmp_path, lambda steps: steps["ffn"].update(volumes=[volume]))
    assert code == 2
    assert f"step ffn: volumes.0.coordinates {data}/none.npz: is not there" in err
    assert f"labels {data}/small.zarr: has shape (8, 8, 8); expected that of the image" in err


def test_labels_have_the_shape_of_their_image(data: Path) -> None:
    parameters = {"image": f"{data}/good.zarr", "labels": f"{data}/small.zarr"}
    (sentence,) = wrong_inputs(_one("ingest", parameters))
    assert "small.zarr: has shape (8, 8, 8); expected that of the image, (96, 128, 128)" in sentence


@pytest.mark.parametrize(
    ("stage", "name", "more"),
    [
        ("ingest", "labels", {}),
        ("agglomeration", "segmentation", {"model": "{}/google"}),
        ("synapses", "segmentation", {"model": "{}/google.index"}),
    ],
)
def test_voxels_are_compared_where_the_stage_does(data: Path, stage: str, name: str, more: dict[str, str]) -> None:
    given = {"image": "{}/good.zarr", name: "{}/coarse.zarr", **more}
    (sentence,) = wrong_inputs(_one(stage, {key: value.format(data) for key, value in given.items()}))
    assert "coarse.zarr: has voxels of 40 x 10 x 10 nm (zyx), and the image" in sentence


@pytest.mark.parametrize(
    ("stage", "size", "more"),
    [
        ("ingest", (40.0, 10.0, 10.0), {"voxel_size_nm": [10, 10, 10]}),  # which says what is right
        ("agglomeration", (1.0, 1.0, 1.0), {"model": "{}/google"}),  # made of an HDF5 volume, which does not say
        ("agglomeration", (10.0005, 10.0, 10.0), {"model": "{}/google"}),
        ("synapses", (10.05, 10.0, 10.0), {"model": "{}/google.index"}),
        ("evaluation", (40.0, 10.0, 10.0), {}),
    ],
)
def test_voxels_that_the_stage_takes_are_not_refused(
    data: Path, tmp_path: Path, stage: str, size: VoxelSize, more: dict[str, Any]
) -> None:
    write_volume(tmp_path / "ids.zarr", np.ones(SHAPE, np.uint32), size)
    name = "labels" if stage in ("ingest", "evaluation") else "segmentation"
    more = {key: value.format(data) if isinstance(value, str) else value for key, value in more.items()}
    assert wrong_inputs(_one(stage, {"image": f"{data}/good.zarr", name: f"{tmp_path}/ids.zarr", **more})) == []


def test_a_box_with_a_reference_in_it_is_left_to_the_run(data: Path) -> None:
    grid = {**GRID, "box": {**BOX, "shape": "${ing.shape}"}}
    first = {"stage": "ingest", "parameters": {"image": f"{data}/good.zarr"}}
    second = {"image": "${ing.image}", "model": f"{data}/google", "grid": grid}
    steps = {"ing": first, "inference": {"stage": "inference", "parameters": second}}
    assert wrong_inputs(Pipeline.from_json({"name": "a", "steps": steps})) == []


@pytest.mark.parametrize(("after", "piece", "wrong"), [(["make"], 64, 0), ([], "${make.shape}", 0), ([], 64, 1)])
def test_what_another_step_makes_anew_is_not_judged_by_what_lies_there(
    data: Path, after: list[str], piece: int | str, wrong: int
) -> None:
    """The image lies in the first step's output, of yesterday: the box leaves it."""
    grid = {**GRID, "shape": [piece] * 3 if isinstance(piece, int) else piece}
    parameters = {"image": f"{data}/small.zarr", "model": f"{data}/google", "grid": grid}
    make = {"stage": "phantom", "parameters": {"output": f"{data}"}}
    last = {"stage": "inference", "parameters": parameters, "after": after}
    assert len(wrong_inputs(Pipeline.from_json({"name": "a", "steps": {"make": make, "last": last}}))) == wrong


def _training(**fields: Any) -> dict[str, Any]:
    """A step that trains on the image of the step `made`."""
    volume = {"image": "${made.image}", "labels": "${made.labels}", "coordinates": "${made.output}/c.npz"}
    given = {"volumes": [volume], "image_mean": 1.0, "image_std": 1.0, **fields}
    return {"stage": "training", "parameters": given}


def _flooding(data: Path, model: str, first: Steps, **fields: Any) -> list[str]:
    """What is wrong with a pipeline of a phantom, more steps, and an inference on the volume `good`, with `model`."""
    made = {"stage": "phantom", "parameters": {"shape": list(SHAPE)}}
    given = {"image": f"{data}/good.zarr", "model": model, "grid": GRID, **fields}
    steps = {"made": made, **first, "last": {"stage": "inference", "parameters": given}}
    return wrong_inputs(Pipeline.from_json({"name": "a", "steps": steps}))


def _checkpoint(folder: Path, voxel_size_nm: VoxelSize) -> str:
    """Of a network with a field of view of 17; its weights nobody looks at."""
    info = CheckpointInfo(
        model=ModelParameters(), image_mean=1, image_std=1, step=1, provenance={}, voxel_size_nm=voxel_size_nm
    )
    save_checkpoint(folder, info, {}, {})
    return str(folder)


def test_an_overlap_smaller_than_the_field_of_view_needs_is_named(data: Path, tmp_path: Path) -> None:
    """The field of view is that given, that of the checkpoint, or that of the step which trains the network."""
    wide = {"fov": [27, 27, 27], "deltas": [8, 8, 8]}
    grid = {**GRID, "overlap": [2, 2, 2]}
    checkpoint = _checkpoint(tmp_path / "checkpoint", (10.0, 10.0, 10.0))
    trained = "${ffn.checkpoint}"
    wrong: list[tuple[str, Steps, dict[str, Any], int]] = [
        (f"{data}/google", {}, {}, 33),
        (checkpoint, {}, {}, 17),
        (checkpoint, {}, {"fov": [27, 27, 27]}, 27),
        (trained, {"ffn": _training(model=wide)}, {}, 27),
        (trained, {"ffn": _training(model={})}, {}, 17),
        ("${ffn.output}/checkpoint", {"ffn": _training(init=f"{data}/google")}, {}, 33),
        (trained, {"ffn": _training(init=checkpoint)}, {}, 17),
        (trained, {"first": _training(model=wide), "ffn": _training(init="${first.checkpoint}")}, {}, 27),
    ]
    for model, first, fields, fov in wrong:
        (sentence,) = _flooding(data, model, first, grid=grid, **fields)
        assert sentence.startswith("step last: grid: overlap (2, 2, 2): is 2 along z; the model's field of view")
        assert f"{(fov,) * 3} (zyx) needs {fov - 1} at least" in sentence
        assert _flooding(data, model, first, **fields) == []
    fits: list[tuple[str, Steps, dict[str, Any]]] = [
        (f"{data}/google", {}, {"fov": [3, 3, 3]}),
        (trained, {"ffn": _training(init=f"{data}/google", init_fov=[3, 3, 3])}, {}),
        (trained, {"ffn": _training(model={"fov": "${made.shape}"})}, {}),  # not known yet
        (f"{data}/google", {}, {"grid": {**grid, "shape": list(SHAPE)}}),  # one subvolume
    ]
    for model, first, fields in fits:
        assert _flooding(data, model, first, **{"grid": grid, **fields}) == []


def test_an_ingest_that_is_not_given_all_that_is_asked_of_it_is_named(data: Path) -> None:
    def wrong(**parameters: Any) -> list[str]:
        ingest = {"stage": "ingest", "parameters": {"image": f"{data}/em.h5:raw", **parameters}}
        evaluation = {
            "stage": "evaluation",
            "parameters": {"segmentation": f"{data}/em.h5:raw", "labels": "${ing.labels}"},
        }
        return wrong_inputs(Pipeline.from_json({"name": "p", "steps": {"ing": ingest, "scores": evaluation}}))

    size, labels = {"voxel_size_nm": [10, 10, 10]}, {"labels": f"{data}/em.h5:raw"}
    assert wrong(**size, **labels) == []
    (sentence,) = wrong(**labels)
    assert sentence.startswith("step ing: image ") and "does not say its voxel size; give `voxel_size_nm`" in sentence
    (sentence,) = wrong(**size, labels=None)
    assert sentence.startswith("step scores: ${ing.labels}: the step ing has no `labels`")


def test_of_a_box_as_large_as_a_volume_the_overlap_is_known_too(data: Path) -> None:
    """Where it is known how large that will be."""
    grid = {**GRID, "box": {**BOX, "shape": "${ing.shape}"}, "overlap": [2, 2, 2]}
    parameters = {"image": f"{data}/em.h5:raw", "voxel_size_nm": [10, 10, 10]}

    def wrong(**more: Any) -> list[str]:
        ingest = {"ing": {"stage": "ingest", "parameters": {**parameters, **more}}}
        return _flooding(data, f"{data}/google", ingest, image="${ing.image}", grid=grid)

    (sentence,) = wrong()
    assert "step last: grid: overlap (2, 2, 2): is 2 along z" in sentence
    assert wrong(box={"offset": [0, 0, 0], "shape": list(SHAPE)}) == [sentence]
    assert wrong(box="${made.box}") == []


def test_an_overlap_is_refused_by_a_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    narrow = {**GRID, "overlap": [2, 2, 2]}
    code, err = dry_run(capsys, tmp_path, lambda steps: steps["inference"].update(grid=narrow))
    assert code == 2 and "step inference: grid: overlap (2, 2, 2): is 2 along z" in err and "needs 12" in err


def test_an_image_of_other_voxels_than_the_network_was_trained_at_is_named(data: Path, tmp_path: Path) -> None:
    """They are what the checkpoint says, or what the images have that a step trains it on."""
    write_volume(tmp_path / "thick.zarr", np.ones(SHAPE, np.uint8), (40.0, 20.0, 20.0))
    thick, trained = f"{tmp_path}/thick.zarr", {"ffn": _training(model={})}
    checkpoint = _checkpoint(tmp_path / "checkpoint", (10.0, 10.0, 10.0))
    adopting = {"ffn": _training(init=checkpoint, steps=0)}
    for model, first in ((checkpoint, {}), ("${ffn.checkpoint}", trained), ("${ffn.checkpoint}", adopting)):
        (sentence,) = _flooding(data, model, first, image=thick)
        assert f"image {thick}: has voxels of 40 x 20 x 20 nm, and model {model} was trained at 10 x 10" in sentence
        assert _flooding(data, model, first, image=thick, any_voxel_size=True) == []
        assert _flooding(data, model, first) == _flooding(data, model, first, image=f"{data}/em.h5:raw") == []
        ingest = {"stage": "ingest", "parameters": {"image": f"{data}/em.h5:raw", "voxel_size_nm": [40, 20, 20]}}
        (sentence,) = _flooding(data, model, {**first, "ing": ingest}, image="${ing.image}")
        assert "image ${ing.image}: has voxels of 40 x 20 x 20 nm" in sentence
    agglomeration = {"image": thick, "segmentation": thick, "model": checkpoint}
    (sentence,) = wrong_inputs(_one("agglomeration", agglomeration))
    assert "thick.zarr: has voxels of 40 x 20 x 20 nm" in sentence


def test_a_name_that_cannot_be_looked_up_is_said(data: Path) -> None:
    for parameter in ("image", "model"):
        given = {"image": f"{data}/good.zarr", "model": f"{data}/google", "grid": GRID}
        given[parameter] = f"{data}/{'n' * 300}"
        (sentence,) = wrong_inputs(_one("inference", given))
        assert f"{parameter} {data}/nnn" in sentence and "cannot be looked at (File name too long)" in sentence


def test_of_an_image_to_compare_with_only_the_box_has_to_be_finite(data: Path) -> None:
    box = {"offset": [0, 0, 0], "shape": [2, 8, 8]}
    parameters = {"image": f"{data}/nan.zarr", "labels": f"{data}/small.zarr", "box": box, "baselines": True}
    assert wrong_inputs(_one("evaluation", parameters)) == []


def test_good_inputs_pass(data: Path) -> None:
    for image in ("good.zarr", "em.h5:raw"):
        parameters = {"image": f"{data}/{image}", "model": f"{data}/google", "grid": GRID}
        assert wrong_inputs(_one("inference", parameters)) == []


def test_what_an_earlier_step_may_make_is_not_missed(data: Path) -> None:
    step = {"stage": "meshes", "parameters": {"segmentation": f"{data}/later.zarr"}}
    first = {"stage": "simulation", "parameters": {"seconds": 1}}
    for after, wrong in (([], 1), (["first"], 0)):
        pipeline = Pipeline.from_json({"name": "a", "steps": {"first": first, "meshes": {**step, "after": after}}})
        assert len(wrong_inputs(pipeline)) == wrong


def test_an_output_that_is_the_place_of_another_step_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = ("--out", str(out))
    code, err = dry_run(capsys, tmp_path, lambda steps: steps["meshes"].update(output=f"{out}/skeletons"), *more)
    assert code == 2 and f"step skeletons: has the output {out}/skeletons of step meshes" in err


def _one(stage: str, parameters: dict[str, Any]) -> Pipeline:
    return Pipeline.from_json({"name": "a", "steps": {"only": {"stage": stage, "parameters": parameters}}})
