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

from apps.core.volumes import write_volume
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.inputs import wrong_inputs
from tests.ensemble.test_cli import call

PIPELINE = Path(__file__).parents[3] / "pipelines" / "connectome.yml"
SHAPE = (96, 128, 128)
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
    volume = {"image": f"{data}/good.zarr", "labels": f"{data}/coarse.zarr", "coordinates": f"{data}/none.npz"}
    code, err = dry_run(capsys, tmp_path, lambda steps: steps["ffn"].update(volumes=[volume]))
    assert code == 2
    assert f"step ffn: volumes.0.coordinates {data}/none.npz: is not there" in err
    assert "coarse.zarr: has voxels of 40 x 10 x 10 nm (zyx), and the image" in err


def test_labels_have_the_shape_of_their_image(data: Path) -> None:
    parameters = {"image": f"{data}/good.zarr", "labels": f"{data}/small.zarr"}
    (sentence,) = wrong_inputs(_one("ingest", parameters))
    assert "small.zarr: has shape (8, 8, 8); expected that of the image, (96, 128, 128)" in sentence


def test_good_inputs_pass(data: Path) -> None:
    grid = {"box": {"offset": [0, 0, 0], "shape": list(SHAPE)}, "shape": [64, 64, 64], "overlap": [24, 24, 24]}
    for image in ("good.zarr", "em.h5:raw"):
        parameters = {"image": f"{data}/{image}", "model": f"{data}/google", "grid": grid}
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
