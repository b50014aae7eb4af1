"""The training stage: it learns, resumes to the bit, and says plainly what is wrong."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError, DivergedError, FailureKind, ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.optimizers import OptimizerName
from apps.ffn.tracker import CURVE_COLUMNS, Row
from apps.ffn.trainer import Trainer
from apps.ffn.training_volumes import TrainingVolume
from apps.training.parameters import TrainingParameters
from apps.training.stage import run
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, TINY, needs_fib25, tiny_data
from tests.apps.training.samples import arrays, assert_same_training, parameters


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> TrainingParameters:
    """Of a training of 5 steps that is done; only to be read."""
    chosen = parameters(tmp_path_factory.mktemp("short"), steps=5)
    run(chosen, silent)
    return chosen


def checkpoint_of(chosen: TrainingParameters) -> str:
    return str(Path(chosen.output) / "checkpoint")


def test_training_learns_and_reports(tmp_path: Path) -> None:
    result = run(parameters(tmp_path, steps=150, learning_rate=0.02), silent)
    curve = pd.read_csv(result.curves)
    assert tuple(curve.columns) == CURVE_COLUMNS
    assert list(curve["step"]) == list(range(5, 151, 5))
    assert result.loss is not None
    assert result.loss < 0.5 * curve["loss"].iloc[0]
    assert result.loss == pytest.approx(curve["loss"][curve["step"] > 112.5].mean(), rel=1e-4)
    assert result.f1 is not None
    assert result.f1 > 0.5
    assert result.steps == 150
    assert result.fovs_per_second is not None
    assert result.fovs_per_second > 0
    loaded = load_checkpoint(result.checkpoint)
    assert (loaded.model, loaded.step, loaded.normalisation(None, None)) == (TINY, 150, (MEAN, STD))
    assert loaded.voxel_size_nm == (10.0, 10.0, 10.0)


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_every_optimiser_goes_on_from_its_checkpoint_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    fields: dict[str, Any] = {"optimizer": optimizer, "steps": 12, "checkpoint_every": 7, "learning_rate": 0.001}
    chosen = parameters(tmp_path, **fields)

    def copy(done: float, total: float, what: str = "") -> None:
        if done == 7:
            shutil.copytree(chosen.output, tmp_path / "parts")

    whole = run(chosen, copy)
    assert load_checkpoint(str(tmp_path / "parts" / "checkpoint")).step == 7
    parts = run(msgspec.structs.replace(chosen, output=str(tmp_path / "parts")), silent)
    assert_same_training(whole.checkpoint, parts.checkpoint)
    assert parts.loss == whole.loss


def test_a_schedule_goes_on_to_the_bit_and_is_not_stretched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"schedule": "cosine", "steps": 12, "checkpoint_every": 5}
    whole = run(parameters(tmp_path, output=str(tmp_path / "whole"), **fields), silent)
    step = Trainer.train_step

    def interrupted(trainer: Trainer) -> Row | None:
        if trainer.step == 8:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(parameters(tmp_path, **fields), silent)
    assert load_checkpoint(str(tmp_path / "out" / "checkpoint")).step == 5
    assert_same_training(whole.checkpoint, run(parameters(tmp_path, **fields), silent).checkpoint)
    constant = run(parameters(tmp_path, output=str(tmp_path / "constant"), steps=12, checkpoint_every=5), silent)
    assert constant.loss != whole.loss
    with pytest.raises(StateError, match="other parameters"):
        run(parameters(tmp_path, **{**fields, "steps": 20}), silent)


def test_the_curve_shows_the_rate_of_its_last_step(tmp_path: Path) -> None:
    """Warm-up over 10 steps, then a factor of a half every 10; a row ends with steps 5, 10, ... (numbers 4, 9, ...)."""
    fields: dict[str, Any] = {"warmup_steps": 10, "schedule": "step", "step_every": 10, "step_factor": 0.5}
    result = run(parameters(tmp_path, learning_rate=0.01, steps=30, **fields), silent)
    rates = pd.read_csv(result.curves)["learning_rate"]
    assert rates.tolist() == pytest.approx([0.004, 0.009, 0.01, 0.01, 0.005, 0.005])
    assert (pd.read_csv(result.curves)["fovs_per_second"] > 0).all()
    assert (result.ranks, result.skipped_steps) == (1, 0)


def test_other_backends_do_not_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ParameterError, match="training needs tensorflow"):
        run(parameters(tmp_path), silent)
    assert not (tmp_path / "out").exists()


def test_several_volumes_and_another_policy(tmp_path: Path) -> None:
    """Two volumes of different brightness, each with its own normalisation, one with a mask."""
    data = tiny_data(tmp_path, margin=8)
    mask = np.zeros((24, 32, 32), np.uint8)
    mask[:, :, :16] = 1
    write_volume(tmp_path / "mask.zarr", mask, (10.0, 10.0, 10.0))
    (plain,) = data.volumes
    masked = TrainingVolume(
        **{**plain.to_dict(), "mask": str(tmp_path / "mask.zarr"), "image_mean": 90.0, "image_std": 20.0}
    )
    fields: dict[str, Any] = {"volumes": (plain, masked), "policy": "max_pred_moves", "learning_rate": 0.02}
    result = run(parameters(tmp_path, steps=60, **fields), silent)
    assert result.masked_fraction is not None
    assert 0.05 < result.masked_fraction < 0.6
    assert result.loss is not None
    assert result.loss < 0.9 * pd.read_csv(result.curves)["loss"].iloc[0]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    chosen = parameters(tmp_path, steps=5)
    first = run(chosen, silent)
    calls: list[float] = []
    again = run(chosen, lambda done, total, what="": calls.append(done))
    assert again == first
    assert calls == []


def test_seed_decides(short: TrainingParameters, tmp_path: Path) -> None:
    chosen = [
        msgspec.structs.replace(short, output=str(tmp_path / str(seed)), seed=seed)
        for seed in (short.seed, short.seed + 1)
    ]
    checkpoints = [checkpoint_of(short), *(run(each, silent).checkpoint for each in chosen)]
    one, same, other = (arrays(checkpoint, "weights.npz")["conv0_a/weights"] for checkpoint in checkpoints)
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()


def test_divergence_is_an_error_of_its_kind(tmp_path: Path) -> None:
    huge = initial_weights(TINY, 0)
    huge["conv_lom/biases"][0] = 3e38
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=1, provenance={})
    save_checkpoint(tmp_path / "huge", info, huge, {})
    with pytest.raises(DivergedError, match="loss was inf at step 1") as caught:
        run(parameters(tmp_path, init=str(tmp_path / "huge")), silent)
    assert caught.value.kind is FailureKind.DIVERGED
    with pytest.raises(DivergedError, match="lower the learning rate"):
        run(parameters(tmp_path, output=str(tmp_path / "sgd"), optimizer="sgd", learning_rate=10.0), silent)


def test_init_starts_from_a_checkpoint(tmp_path: Path) -> None:
    first = run(parameters(tmp_path, steps=20), silent)
    fields: dict[str, Any] = {"init": first.checkpoint, "model": None, "image_mean": None, "image_std": None}
    adopted = run(parameters(tmp_path, output=str(tmp_path / "adopted"), steps=0, **fields), silent)
    assert (adopted.steps, adopted.loss, adopted.fovs_per_second) == (0, None, None)
    assert arrays(adopted.checkpoint, "weights.npz").keys() == arrays(first.checkpoint, "weights.npz").keys()
    assert load_checkpoint(adopted.checkpoint).normalisation(None, None) == (MEAN, STD)
    assert load_checkpoint(adopted.checkpoint).voxel_size_nm == (10.0, 10.0, 10.0)
    for name, value in arrays(first.checkpoint, "weights.npz").items():
        assert arrays(adopted.checkpoint, "weights.npz")[name].tobytes() == value.tobytes()
    on = run(parameters(tmp_path, output=str(tmp_path / "on"), steps=5, **fields), silent)
    assert on.loss is not None
    assert first.loss is not None
    assert on.loss < 1.2 * first.loss
    wider = ModelParameters(depth=2, features=4, fov=(11, 11, 11), deltas=(1, 1, 1))
    moved = run(parameters(tmp_path, output=str(tmp_path / "wider"), steps=1, **{**fields, "model": wider}), silent)
    assert load_checkpoint(moved.checkpoint).model == wider


def test_init_of_another_architecture_is_refused(short: TrainingParameters, tmp_path: Path) -> None:
    deeper = ModelParameters(depth=3, features=4, fov=(9, 9, 9), deltas=(2, 2, 2))
    with pytest.raises((ParameterError, DataError), match=r"architecture|leave model out"):
        run(parameters(tmp_path, output=str(tmp_path / "deeper"), init=checkpoint_of(short), model=deeper), silent)
    assert not (tmp_path / "deeper").exists()


@needs_fib25
def test_google_weights_are_adopted_without_a_step(tmp_path: Path) -> None:
    data = parameters(tmp_path)
    write_volume(tmp_path / "large.zarr", np.zeros((50, 50, 50), np.uint8), (10.0, 10.0, 10.0))
    write_volume(tmp_path / "large_labels.zarr", np.ones((50, 50, 50), np.uint32), (10.0, 10.0, 10.0))
    np.savez(tmp_path / "one.npz", zyx=np.array([[24, 24, 24]], np.int32))
    result = run(
        TrainingParameters(
            volumes=(
                TrainingVolume(
                    image=str(tmp_path / "large.zarr"),
                    labels=str(tmp_path / "large_labels.zarr"),
                    coordinates=str(tmp_path / "one.npz"),
                ),
            ),
            output=data.output,
            init=GOOGLE_CHECKPOINT,
            steps=0,
            batch_size=1,
            image_mean=128.0,
            image_std=33.0,
        ),
        silent,
    )
    assert result.parameters == 638_433
    assert (
        load_checkpoint(result.checkpoint).voxel_size_nm is None
    )  # google's says none, and has not seen these volumes
    original = load_checkpoint(GOOGLE_CHECKPOINT).weights
    for name, value in arrays(result.checkpoint, "weights.npz").items():
        assert value.tobytes() == original[name].tobytes()


def test_volumes_of_different_voxel_sizes_leave_it_open(tmp_path: Path) -> None:
    chosen = parameters(tmp_path, steps=1)
    (one,) = chosen.volumes
    other = msgspec.structs.replace(one, voxel_size_nm=(40.0, 10.0, 10.0))
    result = run(msgspec.structs.replace(chosen, volumes=(one, other)), silent)
    assert load_checkpoint(result.checkpoint).voxel_size_nm is None
    said = msgspec.structs.replace(chosen, volumes=(other,), output=str(tmp_path / "said"))
    assert load_checkpoint(run(said, silent).checkpoint).voxel_size_nm == (40.0, 10.0, 10.0)


def test_another_training_in_the_output_is_left_alone(short: TrainingParameters, tmp_path: Path) -> None:
    shutil.copytree(short.output, tmp_path / "out")
    here = msgspec.structs.replace(short, output=str(tmp_path / "out"))
    before = arrays(checkpoint_of(here), "weights.npz")["conv_lom/weights"].tobytes()
    with pytest.raises(StateError, match="other parameters"):
        run(msgspec.structs.replace(here, learning_rate=0.5), silent)
    with pytest.raises(StateError, match="a training of 5 steps"):
        run(msgspec.structs.replace(here, steps=4), silent)
    assert arrays(checkpoint_of(here), "weights.npz")["conv_lom/weights"].tobytes() == before


def test_other_coordinates_under_the_same_name_are_another_training(tmp_path: Path) -> None:
    run(parameters(tmp_path, steps=5), silent)
    chosen = parameters(tmp_path, steps=8)  # writes the data anew
    with np.load(tmp_path / "coordinates.npz") as file:
        np.savez(tmp_path / "coordinates.npz", **{**file, "zyx": file["zyx"][::-1]})
    with pytest.raises(StateError, match="other coordinates"):
        run(chosen, silent)
    assert load_checkpoint(str(tmp_path / "out" / "checkpoint")).step == 5


def test_two_processes_never_train_into_one_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StateError, match="another process"):
            run(parameters(tmp_path, steps=5), silent)
    assert not (tmp_path / "out" / "checkpoint").exists()
    run(parameters(tmp_path, steps=5), silent)


def test_weight_of_unlabelled_voxels_counts_in_the_loss(tmp_path: Path) -> None:
    """Weight 0 takes the membranes' share out of the first step's loss, which no update has touched yet."""
    fields: dict[str, Any] = {"steps": 1, "curve_every": 1}
    plain, hidden = (
        run(parameters(tmp_path, output=str(tmp_path / str(weight)), unlabelled_weight=weight, **fields), silent).loss
        for weight in (1.0, 0.0)
    )
    assert plain is not None
    assert hidden is not None
    assert hidden < plain


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"model": None}, "model, init"),
        ({"image_mean": None}, "image_mean"),
        ({"steps": 0}, "steps = 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"batch_size": 0}, "batch_size"),
        ({"image_std": 0.0}, "image_std"),
        ({"volumes": ()}, "volumes"),
        ({"warmup_steps": 40}, "warmup_steps = 40: expected fewer than steps = 40"),
        ({"schedule": "step"}, "step_every"),
        ({"step_every": 10}, "step_every = 10, schedule constant"),
        ({"step_factor": 1.0}, "step_factor"),
        ({"ema": 1.0}, "ema"),
        ({"clip": 0.0}, "clip"),
        ({"precision": "float64"}, "precision"),
        ({"policy": "random"}, "policy"),
        ({"scaling": "quadratic"}, "scaling"),
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        parameters(tmp_path, **fields)


@pytest.mark.parametrize("field", ["image", "labels", "coordinates", "mask"])
def test_missing_data_is_named_and_nothing_is_made(tmp_path: Path, field: str) -> None:
    data = tiny_data(tmp_path)
    values: dict[str, Any] = {"image": data.image, "labels": data.labels, "coordinates": data.coordinates}
    volume = TrainingVolume(**{**values, field: str(tmp_path / "none.zarr")})
    with pytest.raises(DataError, match=r"none\.zarr"):
        run(parameters(tmp_path, volumes=(volume,)), silent)
    with pytest.raises(DataError, match=r"none\.zarr"):
        run(parameters(tmp_path, init=str(tmp_path / "none.zarr")), silent)
    assert not (tmp_path / "out").exists()


def test_unwritable_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        run(parameters(tmp_path, output=str(tmp_path / "file" / "out")), silent)
