"""A network from elsewhere: registered whole or not at all, and deployed as any other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.core.errors import DataError, EnsembleError, ParameterError
from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint, read_info, read_state, save_checkpoint
from apps.ffn.model import initial_weights
from apps.ffn.settings import InferenceSettings
from ensemble.cli.main import _run
from ensemble.deployment import Resources, deployment_of, plan_deployment
from ensemble.model_import import add_model
from ensemble.models import Model, aliases, checkpoint_of, find_model, list_names, versions
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, TINY, needs_fib25

VOXEL = (40.0, 8.0, 8.0)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint folder of this project, of no known voxel size."""
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=7, provenance={"seed": 1})
    save_checkpoint(tmp_path / "own", info, initial_weights(TINY, 1), {"step": np.array(7)})
    return tmp_path / "own"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and what was printed."""
    code = _run([str(argument) for argument in arguments], debug=False)
    captured = capsys.readouterr()
    return code or 0, captured.out + captured.err


def planned(home: Path, model: Model, folder: Path) -> Any:
    """The plan of its deployment over a small HDF5 image."""
    with h5py.File(folder / "em.h5", "w") as file:
        file["raw"] = np.zeros((40, 80, 80), np.uint8)
    deployment = deployment_of(
        home, model, image=f"{folder}/em.h5:raw", output=folder / "out.zarr", voxel_size_nm=(10.0, 10.0, 10.0)
    )
    return plan_deployment(deployment, Resources(node_memory=8 << 30))


def test_an_own_checkpoint_is_registered_byte_by_byte(own: Path, home: Path) -> None:
    model = add_model(home, "mine", str(own))
    folder = checkpoint_of(home, model)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in own.iterdir()}
    assert (model.voxel_size_nm, model.image_mean, model.image_std, model.campaign) == (None, MEAN, STD, None)
    assert InferenceSettings.from_json(model.inference) == InferenceSettings()
    assert str(own) in model.reason


def test_what_is_said_of_it_is_in_the_checkpoint_too(own: Path, home: Path) -> None:
    model = add_model(home, "mine", str(own), voxel_size_nm=VOXEL, normalisation=(100.0, None), deltas=(1, 2, 2))
    folder = checkpoint_of(home, model)
    info = read_info(folder)
    assert (info.voxel_size_nm, info.image_mean, info.image_std, info.model.deltas) == (VOXEL, 100.0, STD, (1, 2, 2))
    assert (model.voxel_size_nm, model.image_mean, info.step, info.provenance) == (VOXEL, 100.0, 7, {"seed": 1})
    assert int(read_state(folder)["step"]) == 7
    again = add_model(home, "other", str(folder))  # what a checkpoint says of its voxels is taken
    assert again.voxel_size_nm == VOXEL


def test_the_same_again_makes_nothing_new_and_moves_every_alias(own: Path, home: Path) -> None:
    first = add_model(home, "mine", str(own))
    assert add_model(home, "mine", str(own), voxel_size_nm=VOXEL, pointing=("best",)).version == 2
    assert add_model(home, "mine", str(own), pointing=("best", "small")) == first
    assert aliases(home, "mine") == {"champion": 1, "best": 1, "small": 1}
    assert len(versions(home, "mine")) == 2


@needs_fib25
def test_the_same_by_another_way_is_no_other_model(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version would take the aliases, and a pipeline that names one would flood anew."""
    (tmp_path / "link").symlink_to(Path(GOOGLE_CHECKPOINT).parent)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    prefix = Path(GOOGLE_CHECKPOINT).name
    for way in (GOOGLE_CHECKPOINT, f"{tmp_path}/link/{prefix}", f"../link/{prefix}"):
        assert add_model(home, "fib25", way, normalisation=(MEAN, STD)).version == 1


@needs_fib25
def test_of_the_folder_of_a_google_checkpoint_the_prefix_is_said(home: Path) -> None:
    folder = Path(GOOGLE_CHECKPOINT).parent
    with pytest.raises(DataError, match=f"give the prefix of one, as {re.escape(str(GOOGLE_CHECKPOINT))}"):
        add_model(home, "fib25", str(folder), normalisation=(MEAN, STD))
    assert list_names(home) == []


@needs_fib25
def test_the_published_network_is_deployed(home: Path, tmp_path: Path) -> None:
    settings = InferenceSettings(mode="fast")
    model = add_model(
        home, "fib25", GOOGLE_CHECKPOINT, voxel_size_nm=(10, 10, 10), normalisation=(MEAN, STD), inference=settings
    )
    registered, published = load_checkpoint(str(checkpoint_of(home, model))), load_checkpoint(GOOGLE_CHECKPOINT)
    assert (registered.model, registered.step) == (published.model, published.step)
    assert all(np.array_equal(registered.weights[name], value) for name, value in published.weights.items())
    assert registered.normalisation(None, None) == (MEAN, STD)
    plan = planned(home, model, tmp_path)
    assert (plan.grid.box.shape, plan.voxel_size_nm) == ((40, 80, 80), (10, 10, 10))
    assert plan.asked["inference settings"] == model.inference
    assert model.inference["mode"] == "fast"


def test_a_deployment_is_planned_by_command(own: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(own.parent / "em.h5", "w") as file:
        file["raw"] = np.zeros((40, 80, 80), np.uint8)
    settings = own.parent / "settings.json"
    settings.write_text(json.dumps({"min_size": 50}))
    code, text = call(
        capsys, "models", "add", "mine", own, "--home", home, "--voxel-size", "40,8,8", "--inference", settings,
        "--alias", "a", "--alias", "b",
    )  # fmt: skip
    assert (code, "registered mine:1 as mine@a, mine@b" in text) == (0, True)
    assert find_model(home, "mine@b").inference["min_size"] == 50
    assert "added from" in call(capsys, "models", "list", "--home", home)[1]
    image, out = f"{own.parent}/em.h5:raw", own.parent / "out.zarr"
    dry = ["deploy", "mine@a", "--home", home, "--image", image, "--out", out, "--dry-run", "--voxel-size"]
    code, text = call(capsys, *dry, "40,8,8")
    assert (code, "model           mine:1" in text, "not known: nobody has measured" in text) == (0, True, True)
    code, text = call(capsys, *dry, "10,10,10")
    assert (code, "was trained at 40 x 8 x 8 nm" in text) == (2, True)


def test_a_voxel_size_that_nobody_said_is_noted(own: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = call(capsys, "models", "add", "mine", own, "--home", home, "--inference", '{"mode": "fast"}')
    assert (code, "note: nothing says which voxel size" in text) == (0, True)
    model = find_model(home, "mine")
    assert model.inference["mode"] == "fast"
    assert planned(home, model, own.parent).voxel_size_nm == (10.0, 10.0, 10.0)


BAD = {
    "nothing there": (["mine", "{dir}/none"], "none: no such checkpoint; expected"),
    "no checkpoint": (["mine", "{dir}"], "is not a checkpoint, it has no model.json"),
    "damaged": (["mine", "{dir}/damaged"], "is a damaged checkpoint (weights.npz"),
    "name": (["a/b", "{dir}/own"], "model name 'a/b': expected letters"),
    "alias": (["mine", "{dir}/own", "--alias", "best", "--alias", "-"], "alias name '-': expected letters"),
    "voxel size": (["mine", "{dir}/own", "--voxel-size", "0,8,8"], "expected positive nanometres"),
    "spread": (["mine", "{dir}/own", "--image-std", "0"], "image_std = 0.0"),
    "no number": (["mine", "{dir}/own", "--image-mean", "nan"], "expected finite numbers"),
    "field of view": (["mine", "{dir}/own", "--fov", "8,9,9"], "expected odd extents"),
    "settings": (["mine", "{dir}/own", "--inference", '{"mod": "fast"}'], "did you mean 'mode'"),
    "settings file": (["mine", "{dir}/own", "--inference", "{dir}/none.json"], "none.json: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_sentence_and_registers_nothing(
    case: str, own: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = own.parent / "damaged"
    damaged.mkdir()
    (damaged / "model.json").write_bytes((own / "model.json").read_bytes())
    (damaged / "weights.npz").write_bytes((own / "weights.npz").read_bytes()[:-100])
    arguments, sentence = BAD[case]
    given = [argument.replace("{dir}", str(own.parent)) for argument in arguments]
    code, text = call(capsys, "models", "add", *given, "--home", home)
    assert (code, sentence in text, "Traceback" in text) == (2, True, False), text
    assert list_names(home) == []


@needs_fib25
def test_a_google_checkpoint_needs_mean_and_deviation(home: Path) -> None:
    with pytest.raises(ParameterError, match="does not hold them; give both"):
        add_model(home, "fib25", GOOGLE_CHECKPOINT, normalisation=(MEAN, None))
    with pytest.raises(DataError, match=r"without \.index"):
        add_model(home, "fib25", f"{GOOGLE_CHECKPOINT}.index")
    assert list_names(home) == []


def test_a_copy_that_fails_registers_nothing(own: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ensemble.model_import.shutil.copyfile", full)
    with pytest.raises(EnsembleError, match=r"cannot be copied .*No space left"):
        add_model(home, "mine", str(own))
    assert list_names(home) == []
