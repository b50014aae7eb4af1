"""The shipped pipeline for a volume of one's own: with a registered network, checked as a user would, and run whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from apps.core.volumes import content_hash, open_volume
from apps.ffn.backend import start_tensorflow
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint, weights_digest
from apps.ffn.hand_set import bright_is_object
from apps.synapses.model import ModelInfo
from apps.synapses.network import NetworkParameters, build
from apps.unet.storage import save_model
from apps.unet.weights import get_weights
from ensemble.models import register_model
from ensemble.pipeline.definition import Pipeline, load_pipeline
from ensemble.pipeline.engine import Engine, Look
from tests.apps.test_inference import MODEL
from tests.ensemble.pipeline.in_process import StageJobs
from tests.ensemble.test_cli import call

SHIPPED = Path(__file__).resolve().parents[3] / "pipelines" / "own_volume.yml"
SHAPE = (20, 32, 48)
VOXEL_NM = (10.0, 10.0, 10.0)
OPTIONAL = {"synapse_training", "evaluation"}


def shipped(optional: bool) -> dict[str, Any]:
    """The pipeline as plain YAML; with all that is optional, or without."""
    text = SHIPPED.read_text()
    if optional:
        text = re.sub(r"^( *)#: ", r"\1", text, flags=re.MULTILINE)
        text = text.replace("&synapse_model ./synapses/model", '&synapse_model "${synapse_training.model}"')
    content: dict[str, Any] = yaml.safe_load(text)
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of two bright tubes along x with its labels and clefts, and a registry with a network for it."""
    made = tmp_path_factory.mktemp("own")
    labels, clefts = np.zeros(SHAPE, np.uint32), np.zeros(SHAPE, np.uint8)
    labels[4:16, 2:14], labels[4:16, 18:30] = 1, 2
    clefts[6:10, 14:18, 8:24] = 1
    image = np.where(labels > 0, 160, 60) + np.random.default_rng(3).normal(0, 8, SHAPE)
    for name in ("em", "lesson"):
        with h5py.File(made / f"{name}.h5", "w") as file:
            file["raw"], file["labels"], file["clefts"] = image.astype(np.uint8), labels, clefts
            file["vesicles"] = np.roll(clefts, 4, axis=1)
    info = CheckpointInfo(model=MODEL, image_mean=120.0, image_std=40.0, step=1, provenance={})
    save_checkpoint(made / "checkpoint", info, bright_is_object(MODEL), {})
    register_model(
        made / "home",
        "demo",
        made / "checkpoint",
        row={},
        reason="set by hand",
        inference={"segment": 0.7, "min_size": 7},
        normalisation=(120.0, 40.0),
        voxel_size_nm=VOXEL_NM,
    )
    all_is_cleft(made / "synapses" / "model")
    return made


def all_is_cleft(folder: Path) -> None:
    """A network for synapses whose answer is known without training."""
    start_tensorflow(1)
    network = NetworkParameters(channels=4, poolings=1)
    weights = {name: np.zeros_like(value) for name, value in get_weights(build(network, 1)).items()}
    weights["logits/bias"][:] = 5.0
    info = ModelInfo(
        checksum=weights_digest(weights),
        steps=1,
        loss=0,
        provenance={},
        network=network,
        outputs=("cleft",),
        voxel_size_nm=VOXEL_NM,
        validation={"cleft": None},
    )
    save_model(folder, info, weights)


def small(folder: Path, content: dict[str, Any]) -> Path:
    """The pipeline for a small volume, in its folder; whatever its place among `vars`, it is in the steps by now."""
    steps = content["steps"]
    for step in ("forward", "reverse", "consensus", "reconciliation"):
        steps[step]["parameters"]["grid"] |= {"shape": [32, 32, 32], "overlap": [12, 12, 12]}
    for step in ("forward", "reverse", "agglomeration"):
        steps[step]["parameters"]["settings"]["min_size"] = 50
    steps["consensus"]["parameters"]["min_voxels"] = 50
    steps["synapses"]["parameters"]["tile"] = [32, 32, 32]
    steps["volume"]["parameters"]["labels"] = "./em.h5:labels"
    for step in steps.values():
        step["parts"] = 1  # tests of the stages and of their planner share them
    steps["skeletons"]["parameters"] |= {"min_voxels": 100, "min_length_nm": 100}
    for step in ("image_levels", "segmentation_levels"):
        steps[step]["parameters"]["chunks"] = [16, 16, 16]
    file = folder / "small.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_the_file_as_it_is_shipped_is_good_for_a_volume_that_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of it, in which nothing is changed."""
    monkeypatch.setenv("ENSEMBLE_HOME", str(folder / "home"))
    copy = folder / "mine.yml"
    copy.write_text(SHIPPED.read_text())
    code, out, err = call(capsys, "run", str(copy), "--dry-run")
    assert (code, err) == (0, "")
    assert "pipeline mine" in out and "consensus" in out and "forward: model demo:1, " in out
    assert not OPTIONAL & shipped(optional=False)["steps"].keys()
    (folder / "em.h5").rename(folder / "gone.h5")
    code, _, err = call(capsys, "run", str(copy), "--dry-run")
    (folder / "gone.h5").rename(folder / "em.h5")
    assert code == 2 and f"step volume: image {folder}/em.h5:raw: is not there" in err


def test_what_is_optional_in_it_is_good_too(folder: Path) -> None:
    content = shipped(optional=True)
    assert content["steps"].keys() > OPTIONAL
    file = folder / "all.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    pipeline, _ = load_pipeline(file, folder / "home")
    assert pipeline.needs("synapses") == ("volume", "agglomeration", "synapse_training")
    look = Engine(pipeline, folder / "out-of-all", StageJobs()).look()
    assert look.broken == {}


def test_a_line_changed_among_vars_reaches_every_step_that_it_is_of(folder: Path) -> None:
    text = SHIPPED.read_text().replace("min_size 1000", "min_size 300").replace("&jobs 4", "&jobs 3")
    text = text.replace("&masks []", "&masks [{volume: ./vessels.zarr}]").replace("demo@champion", "./checkpoint")
    (folder / "edited.yml").write_text(text)
    pipeline, _ = load_pipeline(folder / "edited.yml", folder / "home")
    steps = {name: step.parameters for name, step in pipeline.steps.items()}
    for name in ("forward", "reverse", "agglomeration"):
        assert steps[name]["model"] == str(folder / "checkpoint")
        assert steps[name]["masks"] == [{"volume": str(folder / "vessels.zarr")}]
    assert steps["forward"]["settings"] == {"min_size": 300}
    assert steps["reverse"]["settings"] == {"min_size": 300, "reverse_seeds": True}
    assert steps["consensus"]["min_voxels"] == 300
    assert {step.parts for step in pipeline.steps.values()} == {1, 3}


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    content = shipped(optional=True)
    del content["steps"]["synapse_training"]
    content["steps"]["synapses"]["parameters"]["model"] = "./synapses/model"
    return load_pipeline(small(folder, content), folder / "home")[0]


@pytest.fixture(scope="module")
def look(folder: Path, pipeline: Pipeline) -> Look:
    """The whole of it, done."""
    (folder / "out").mkdir()
    look = Engine(pipeline, folder / "out", StageJobs()).run()
    assert look.settled, [outcome.message for step in look.plans for outcome in look.failed(step)]
    return look


def test_a_volume_in_hdf5_becomes_objects_with_the_registered_network(folder: Path, look: Look) -> None:
    assert open_volume(look.plans["volume"].values["image"]).voxel_size_nm == VOXEL_NM
    found = open_volume(look.plans["agglomeration"].values["segmentation"])
    assert found.shape == SHAPE and found.voxel_size_nm == VOXEL_NM
    scores = look.plans["evaluation"].values["scores"]
    assert scores["objects"] == 2 and scores["vi"] < 0.5
    agreed = look.plans["consensus"].values
    assert agreed["objects"] >= max(agreed["first_objects"], agreed["second_objects"]) >= 4, "two in each subvolume"
    for name in ("forward", "reverse"):
        (task,) = look.plans[name].tasks
        assert task.parameters["model"] == str(folder / "home" / "models" / "demo" / "1" / "checkpoint")
        assert task.parameters["settings"] == {
            "segment": 0.7,
            "min_size": 50,
            **({"reverse_seeds": True} if name == "reverse" else {}),
        }


def test_all_that_is_made_of_the_objects_is_there(folder: Path, look: Look) -> None:
    out = folder / "out"
    assert look.plans["synapses"].values["count"] == 1, "all of the volume"
    assert len(pd.read_parquet(out / "connectome" / "neurons.parquet")) == 2
    assert look.plans["meshes"].values["objects"] == look.plans["skeletons"].values["objects"] == 2
    for volume in (look.plans["volume"].values["image"], out / "agglomeration.zarr"):
        assert (Path(volume) / "1").is_dir(), "a coarser level"
    with h5py.File(folder / "em.h5") as file:
        assert sorted(file) == ["clefts", "labels", "raw", "vesicles"], "nothing was written to the user's own"


def test_run_again_nothing_is_done_and_the_same_is_there(folder: Path, pipeline: Pipeline, look: Look) -> None:
    before = content_hash(open_volume(look.plans["agglomeration"].values["segmentation"]))
    jobs = StageJobs()
    for plan in look.plans.values():
        jobs.ended |= {task.key: look.outcomes[task.key] for task in plan.tasks if task.key in look.outcomes}
    again = Engine(pipeline, folder / "out", jobs).run()
    assert again.settled and jobs.submitted == []
    assert content_hash(open_volume(again.plans["agglomeration"].values["segmentation"])) == before
