"""Registered models in a pipeline: which version a name stands for, and what is said of names that stand for none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.core.errors import ParameterError
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.hand_set import bright_is_object
from ensemble.models import CHAMPION, register_model
from ensemble.pipeline.chain import write_report
from ensemble.pipeline.definition import Pipeline, load_pipeline
from ensemble.pipeline.engine import Engine
from ensemble.pipeline.registered import registered_models
from tests.apps.test_inference import MODEL
from tests.ensemble.pipeline.in_process import StageJobs

GRID = {"box": {"offset": [0, 0, 0], "shape": [32, 32, 32]}, "shape": [32, 32, 32]}
INFERENCE = {"segment": 0.7, "min_size": 7}


def register(home: Path, image_mean: float, *aliases: str) -> None:
    """The network's next version, which differs from the others in that number."""
    source = home / "trained"
    info = CheckpointInfo(model=MODEL, image_mean=image_mean, image_std=40.0, step=1, provenance={})
    save_checkpoint(source, info, bright_is_object(MODEL), {})
    register_model(
        home,
        "demo",
        source,
        row={},
        reason="set by hand",
        inference=INFERENCE,
        normalisation=(image_mean, 40.0),
        voxel_size_nm=None,
        pointing=aliases,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A registry with two versions, of which the second is the champion."""
    made = tmp_path / "home"
    register(made, 110.0, "first")
    register(made, 120.0, CHAMPION)
    return made


def load(home: Path, model: Any, stage: str = "inference", **parameters: Any) -> Pipeline:
    """A pipeline of one step with that model."""
    needed: dict[str, Any] = {"grid": GRID} if stage == "inference" else {"segmentation": "./s.zarr"}
    step = {"stage": stage, "parameters": {"image": "./em.zarr", "model": model, **needed, **parameters}}
    file = home.parent / "flow.yml"
    file.write_text(yaml.safe_dump({"steps": {"flood": step}}))
    return load_pipeline(file, home)[0]


def key(pipeline: Pipeline, out: Path) -> str:
    (task,) = Engine(pipeline, out, StageJobs()).look().plans["flood"].tasks
    return task.key


@pytest.mark.parametrize("stage", ["inference", "agglomeration"])
@pytest.mark.parametrize(("name", "version"), [("demo", 2), ("demo:1", 1), ("demo@first", 1), ("demo@champion", 2)])
def test_a_name_becomes_the_folder_of_its_version(home: Path, stage: str, name: str, version: int) -> None:
    pipeline = load(home, name, stage)
    parameters = pipeline.steps["flood"].parameters
    assert parameters["model"] == str(home / "models" / "demo" / str(version) / "checkpoint")
    assert parameters["settings"] == INFERENCE
    assert dict(registered_models(pipeline)) == {"flood": f"demo:{version}"}


def test_the_report_says_which_version_a_step_took(home: Path, tmp_path: Path) -> None:
    pipeline = load(home, "demo@champion")
    look = Engine(pipeline, tmp_path / "out", StageJobs()).look()
    page = write_report(tmp_path / "report.html", pipeline, look, {"flood": 0.0}).read_text()
    assert "flood: model" in page and "demo:2" in page


def test_the_steps_own_settings_go_over_those_that_the_model_was_scored_with(home: Path) -> None:
    parameters = load(home, "demo", settings={"min_size": 50, "reverse_seeds": True}).steps["flood"].parameters
    assert parameters["settings"] == {"segment": 0.7, "min_size": 50, "reverse_seeds": True}


@pytest.mark.parametrize("model", ["./trained", "/there/model.ckpt-27", "../home/trained"])
def test_a_folder_stays_what_it_is(home: Path, model: str) -> None:
    pipeline = load(home, model)
    assert pipeline.steps["flood"].parameters.keys() == {"image", "model", "grid"}
    assert pipeline.steps["flood"].parameters["model"].startswith("/") and not dict(registered_models(pipeline))


def test_a_step_may_take_what_an_earlier_one_trains(home: Path) -> None:
    train = {"stage": "simulation", "parameters": {"seconds": 1}}
    step = {"stage": "inference", "parameters": {"image": "./em.zarr", "model": "${train.output}", "grid": GRID}}
    file = home.parent / "flow.yml"
    file.write_text(yaml.safe_dump({"steps": {"train": train, "flood": step}}, sort_keys=False))
    assert load_pipeline(file, home)[0].steps["flood"].parameters["model"] == "${train.output}"


def test_a_python_file_names_models_too(home: Path) -> None:
    file = home.parent / "flow.py"
    file.write_text(
        "from ensemble.pipeline.definition import Pipeline, Step\n"
        f"flood = Step(stage='inference', parameters={{'image': './em.zarr', 'model': 'demo:1', 'grid': {GRID}}})\n"
        "pipeline = Pipeline(name='mine', steps={'flood': flood})\n"
    )
    parameters = load_pipeline(file, home)[0].steps["flood"].parameters
    assert parameters["model"] == str(home / "models" / "demo" / "1" / "checkpoint")


def test_a_jobs_key_is_of_the_version_and_not_of_what_it_is_called(home: Path, tmp_path: Path) -> None:
    first, champion = (key(load(home, name), tmp_path / "out") for name in ("demo@first", "demo@champion"))
    assert key(load(home, "demo:1"), tmp_path / "out") == first != champion
    register(home, 110.0, CHAMPION)
    assert key(load(home, "demo@champion"), tmp_path / "out") == first, "the alias has moved"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "dem",
            r"step flood: model 'dem': no such model; there are: demo; `ensemble models list` has those of .*home",
        ),
        ("demo:9", r"step flood: model demo: has no version 9; it has: 1, 2; `ensemble models list`"),
        ("demo@best", r"has no alias 'best'; it has: first, champion; "),
        ("demo:x", r"expected NAME, NAME:VERSION \(a number\) or NAME@ALIAS"),
        ("em.zarr", r"model 'em.zarr': no such model; .* a folder begins with \./ or /"),
    ],
)
def test_of_a_name_that_stands_for_nothing_it_is_said_what_there_is(home: Path, name: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        load(home, name)


def test_a_model_whose_files_were_changed_is_not_used(home: Path) -> None:
    (home / "models" / "demo" / "2" / "checkpoint" / "weights.npz").write_bytes(b"other")
    with pytest.raises(ParameterError, match=r"step flood: .*2/checkpoint: is not the checkpoint that was registered"):
        load(home, "demo")
