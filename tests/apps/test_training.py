"""The training stage: it learns, resumes to the bit, and says plainly what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError, DivergedError, FailureKind, ParameterError, StateError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.optimizers import learning_rate_at
from apps.ffn.tracker import CURVE_COLUMNS
from apps.ffn.trainer import Trainer
from apps.training.stage import TrainingParameters, run
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, TINY, needs_fib25, tiny_data

ROOT = Path(__file__).resolve().parents[2]


def parameters(folder: Path, **fields: Any) -> TrainingParameters:
    data = tiny_data(folder)
    values: dict[str, Any] = {
        "image": data.image,
        "labels": data.labels,
        "coordinates": data.coordinates,
        "output": str(folder / "out"),
        "model": TINY,
        "learning_rate": 0.01,
        "batch_size": 4,
        "steps": 40,
        "checkpoint_every": 10,
        "curve_every": 5,
        "seed": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    return TrainingParameters(**{**values, **fields})


def arrays(checkpoint: str | Path, file: str) -> dict[str, np.ndarray]:
    with np.load(Path(checkpoint) / file) as found:
        return {name: found[name] for name in found.files}


def assert_same_training(one: str | Path, other: str | Path) -> None:
    """Equal to the bit: weights, optimiser, canvases, places in the streams, learning curve (clock times apart)."""
    for file in ("weights.npz", "state.npz"):
        left, right = arrays(one, file), arrays(other, file)
        assert left.keys() == right.keys()
        for name in left.keys() - {"seconds"}:
            a, b = left[name], right[name]
            if name == "rows":
                a, b = a[:, :-1], b[:, :-1]
            assert a.tobytes() == b.tobytes(), name


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


def test_a_killed_training_ends_with_the_same_bits(tmp_path: Path) -> None:
    """kill -9 in the middle, and the same command again, against a training that was left alone."""
    steps = 250
    whole = run(parameters(tmp_path, output=str(tmp_path / "whole"), steps=steps), silent)
    file = tmp_path / "job" / "parameters.json"
    file.parent.mkdir()
    parameters(tmp_path, output=str(tmp_path / "killed"), steps=steps).save(file)
    command = [sys.executable, "-m", "apps.training", str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    model = tmp_path / "killed" / "checkpoint" / "model.json"
    deadline = time.monotonic() + 120
    while not model.exists() or json.loads(model.read_text())["step"] < 30:
        assert process.poll() is None, "the training ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads(model.read_text())["step"] < steps
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    assert_same_training(whole.checkpoint, tmp_path / "killed" / "checkpoint")
    one, other = (pd.read_csv(tmp_path / name / "curves.csv") for name in ("whole", "killed"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), other.drop(columns="seconds"))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw", "adagrad", "rmsprop"])
def test_every_optimiser_goes_on_from_its_checkpoint_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    fields: dict[str, Any] = {"optimizer": optimizer, "steps": 12, "checkpoint_every": 12, "learning_rate": 0.001}
    whole = run(parameters(tmp_path, output=str(tmp_path / "whole"), **fields), silent)
    first = parameters(tmp_path, output=str(tmp_path / "parts"), **{**fields, "steps": 7})
    run(first, silent)
    parts = run(parameters(tmp_path, output=str(tmp_path / "parts"), **fields), silent)
    assert_same_training(whole.checkpoint, parts.checkpoint)
    assert parts.loss == whole.loss


def test_a_schedule_goes_on_to_the_bit_and_is_not_stretched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields: dict[str, Any] = {"schedule": "cosine", "steps": 12, "checkpoint_every": 5}
    whole = run(parameters(tmp_path, output=str(tmp_path / "whole"), **fields), silent)
    step = Trainer.train_step

    def interrupted(trainer: Trainer) -> str | None:
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


def test_learning_rates_of_the_schedules() -> None:
    assert [learning_rate_at("constant", 0.1, step, 4) for step in (0, 3)] == [0.1, 0.1]
    rates = [learning_rate_at("cosine", 0.1, step, 4) for step in (0, 2, 4)]
    assert rates == pytest.approx([0.1, 0.05, 0.0])


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = run(parameters(tmp_path), silent)
    calls: list[float] = []
    again = run(parameters(tmp_path), lambda done, total, what="": calls.append(done))
    assert again == first
    assert calls == []


def test_seed_decides(tmp_path: Path) -> None:
    results = [
        run(parameters(tmp_path, output=str(tmp_path / name), seed=seed, steps=5), silent)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    one, same, other = (arrays(result.checkpoint, "weights.npz")["conv0_a/weights"] for result in results)
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
    for name, value in arrays(first.checkpoint, "weights.npz").items():
        assert arrays(adopted.checkpoint, "weights.npz")[name].tobytes() == value.tobytes()
    on = run(parameters(tmp_path, output=str(tmp_path / "on"), steps=5, **fields), silent)
    assert on.loss is not None
    assert first.loss is not None
    assert on.loss < 1.2 * first.loss
    wider = ModelParameters(depth=2, features=4, fov=(11, 11, 11), deltas=(1, 1, 1))
    moved = run(parameters(tmp_path, output=str(tmp_path / "wider"), steps=1, **{**fields, "model": wider}), silent)
    assert load_checkpoint(moved.checkpoint).model == wider


def test_init_of_another_architecture_is_refused(tmp_path: Path) -> None:
    first = run(parameters(tmp_path, steps=1), silent)
    deeper = ModelParameters(depth=3, features=4, fov=(9, 9, 9), deltas=(2, 2, 2))
    with pytest.raises((ParameterError, DataError), match=r"architecture|leave model out"):
        run(parameters(tmp_path, output=str(tmp_path / "deeper"), init=first.checkpoint, model=deeper), silent)
    assert not (tmp_path / "deeper").exists()


@needs_fib25
def test_google_weights_are_adopted_without_a_step(tmp_path: Path) -> None:
    data = parameters(tmp_path)
    write_volume(tmp_path / "large.zarr", np.zeros((50, 50, 50), np.uint8), (10.0, 10.0, 10.0))
    write_volume(tmp_path / "large_labels.zarr", np.ones((50, 50, 50), np.uint32), (10.0, 10.0, 10.0))
    np.savez(tmp_path / "one.npz", zyx=np.array([[24, 24, 24]], np.int32))
    result = run(
        TrainingParameters(
            image=str(tmp_path / "large.zarr"),
            labels=str(tmp_path / "large_labels.zarr"),
            coordinates=str(tmp_path / "one.npz"),
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
    original = load_checkpoint(GOOGLE_CHECKPOINT).weights
    for name, value in arrays(result.checkpoint, "weights.npz").items():
        assert value.tobytes() == original[name].tobytes()


def test_another_training_in_the_output_is_left_alone(tmp_path: Path) -> None:
    first = run(parameters(tmp_path, steps=5), silent)
    before = arrays(first.checkpoint, "weights.npz")["conv_lom/weights"].tobytes()
    with pytest.raises(StateError, match="other parameters"):
        run(parameters(tmp_path, steps=5, learning_rate=0.5), silent)
    with pytest.raises(StateError, match="a training of 5 steps"):
        run(parameters(tmp_path, steps=4), silent)
    assert arrays(first.checkpoint, "weights.npz")["conv_lom/weights"].tobytes() == before


def test_a_damaged_own_checkpoint_is_named(tmp_path: Path) -> None:
    first = run(parameters(tmp_path, steps=5), silent)
    state = Path(first.checkpoint) / "state.npz"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{first.checkpoint}: is a damaged checkpoint"):
        run(parameters(tmp_path), silent)


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
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        parameters(tmp_path, **fields)


@pytest.mark.parametrize("field", ["image", "labels", "coordinates", "init"])
def test_missing_data_is_named_and_nothing_is_made(tmp_path: Path, field: str) -> None:
    missing = str(tmp_path / "none.zarr")
    with pytest.raises(DataError, match=r"none\.zarr"):
        run(parameters(tmp_path, **{field: missing}), silent)
    assert not (tmp_path / "out").exists()


def test_unwritable_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        run(parameters(tmp_path, output=str(tmp_path / "file" / "out")), silent)
