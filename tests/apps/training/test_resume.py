"""A training that is killed and run again is the training that was left alone, to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError, ParameterError, StateError
from apps.core.progress import silent
from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint
from apps.ffn.model import initial_weights
from apps.ffn.ranks import OneRank
from apps.training.parameters import TrainingEvaluation, TrainingParameters
from apps.training.saving import read_training, save_training
from apps.training.stage import run
from tests.apps.ffn.test_summaries import read_scalars
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data
from tests.apps.training.samples import arrays, assert_same_training, parameters

ROOT = Path(__file__).resolve().parents[3]
STEPS = 120


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adam", "schedule": "cosine", "warmup_steps": 20, "ema": 0.95},
        {"optimizer": "momentum", "schedule": "step", "step_every": 40, "policy": "max_pred_moves", "clip": None},
    ],
    ids=["adam, cosine, warm-up, average", "momentum, step, max_pred_moves"],
)
def test_kill_9_in_the_middle_ends_with_the_same_bits(tmp_path: Path, fields: dict[str, Any]) -> None:
    held_out = tiny_data(tmp_path, margin=8).held_out_volumes
    common: dict[str, Any] = {
        **fields,
        "steps": STEPS,
        "learning_rate": 0.004,
        "evaluation": TrainingEvaluation(volumes=held_out, every=40, canvases=5),
    }
    whole = run(parameters(tmp_path, output=str(tmp_path / "whole"), **common), silent)
    file = tmp_path / "job" / "parameters.json"
    file.parent.mkdir()
    parameters(tmp_path, output=str(tmp_path / "killed"), **common).save(file)
    command = [sys.executable, "-m", "apps.training", str(file)]
    killed = tmp_path / "killed"
    kill(command, lambda: steps_of(killed) >= 20)
    assert steps_of(killed) < STEPS
    # In this process, which has loaded TensorFlow; of the killed one there is nothing but its files.
    run(TrainingParameters.load(file), silent)
    assert_same_training(whole.checkpoint, killed / "checkpoint")
    for table in ("curves.csv", "evaluations.csv"):
        one, other = (pd.read_csv(tmp_path / name / table) for name in ("whole", "killed"))
        clocks = [name for name in ("seconds", "fovs_per_second") if name in one]
        pd.testing.assert_frame_equal(one.drop(columns=clocks), other.drop(columns=clocks))
        assert other["step"].is_unique
    clocks = ["training/seconds", "training/fovs_per_second", "evaluation/seconds"]
    left, right = (
        [scalar for scalar in read_scalars(tmp_path / name / "events") if scalar[1] not in clocks]
        for name in ("whole", "killed")
    )
    assert left == right
    assert not [path for path in killed.iterdir() if path.name.startswith(".") and path.name != ".lock"]


def steps_of(output: Path) -> int:
    """Steps of the checkpoint in `output`; 0 where there is none."""
    model = output / "checkpoint" / "model.json"
    return int(json.loads(model.read_text())["step"]) if model.is_file() else 0


def kill(command: list[str], when: Callable[[], bool]) -> None:
    """Start the command and send SIGKILL as soon as `when` says so."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_budget_raised_twice_ends_with_the_bits_of_one_run(tmp_path: Path) -> None:
    """Rungs of a search: 10, 30, then all 90 steps of a schedule laid out over 90, warmed up past the first rung.

    The evaluations at 10 and 30 are those of their rungs, and not of a run to 90, which has them every 25 steps.
    """
    judged = TrainingEvaluation(volumes=tiny_data(tmp_path).held_out_volumes, every=25, canvases=3)
    fields: dict[str, Any] = {
        "schedule": "cosine",
        "warmup_steps": 15,
        "ema": 0.9,
        "evaluation": judged,
        "curve_every": 8,
    }
    once = run(parameters(tmp_path, output=str(tmp_path / "once"), steps=90, **fields), silent)
    for rung, steps in enumerate((10, 30, 90)):
        result = run(parameters(tmp_path, steps=steps, schedule_steps=90, **fields), silent)
        assert result.steps == steps == steps_of(tmp_path / "out")
        assert result.evaluation is not None
        assert result.evaluation.step == steps
        written = pd.read_csv(tmp_path / "out" / "evaluations.csv")["step"].tolist()
        assert written == [[10], [25, 30], [25, 50, 75, 90]][rung]
    assert_same_training(once.checkpoint, result.checkpoint)
    curves = [pd.read_csv(tmp_path / name / "curves.csv") for name in ("once", "out")]
    one, other = (curve.drop(columns=["seconds", "fovs_per_second"]) for curve in curves)
    pd.testing.assert_frame_equal(one, other)
    for field in ("loss", "f1", "steps", "skipped_steps"):
        assert getattr(result, field) == getattr(once, field)


def test_the_schedule_a_training_was_laid_out_over_is_kept(tmp_path: Path) -> None:
    """Where the rate depends on it, another length is another training, and so are fewer steps than it has done."""
    fields: dict[str, Any] = {"schedule": "cosine", "schedule_steps": 12}
    first = parameters(tmp_path, steps=5, **fields)
    assert first.learning_rates(1).steps == 12
    run(first, silent)
    for other in ({**fields, "schedule_steps": 11}, {"schedule": "cosine"}):
        with pytest.raises(StateError, match="other parameters"):
            run(parameters(tmp_path, steps=10, **other), silent)
    with pytest.raises(StateError, match="holds a training of 5 steps"):
        run(parameters(tmp_path, steps=4, **fields), silent)
    assert steps_of(tmp_path / "out") == 5
    # The whole length, which is what no schedule_steps says.
    assert run(parameters(tmp_path, steps=12, schedule="cosine"), silent).steps == 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 50, "schedule_steps": 40}, r"schedule_steps = 40: expected at least steps = 50"),
        (
            {"steps": 10, "schedule_steps": 40, "warmup_steps": 40},
            "warmup_steps = 40: expected fewer than schedule_steps",
        ),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps = 10: expected fewer than steps = 10"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parameters(tmp_path, **fields)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_goes_on_to_the_bit(tmp_path: Path, precision: str) -> None:
    chosen = parameters(tmp_path, precision=precision, steps=12, checkpoint_every=7, ema=0.9)

    def copy(done: float, total: float, what: str = "") -> None:
        if done == 7:
            shutil.copytree(chosen.output, tmp_path / "parts")

    whole = run(chosen, copy)
    assert steps_of(tmp_path / "parts") == 7
    parts = run(msgspec.structs.replace(chosen, output=str(tmp_path / "parts")), silent)
    assert_same_training(whole.checkpoint, parts.checkpoint)


def test_the_average_is_what_is_used_and_the_raw_weights_are_what_goes_on(tmp_path: Path) -> None:
    plain = run(parameters(tmp_path, output=str(tmp_path / "plain"), steps=20), silent)
    averaged = run(parameters(tmp_path, ema=0.9, steps=20), silent)
    state, used = arrays(averaged.checkpoint, "state.npz"), load_checkpoint(averaged.checkpoint).weights
    for name, value in arrays(plain.checkpoint, "weights.npz").items():
        np.testing.assert_array_equal(state[f"raw:{name}"], value)
    assert any((used[name] != state[f"raw:{name}"]).any() for name in used)


class FakeRank(OneRank):
    """Rank 0 of several, the others of which do nothing."""

    def __init__(self, size: int, agreeing: bool = True) -> None:
        self.size = size
        self._agreeing = agreeing
        self.said: dict[str, str] = {}

    def agree(self, what: str, value: str) -> None:
        self.said[what] = value
        if not self._agreeing:
            raise ParameterError(f"{what}: not the same on all ranks")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> TrainingParameters:
    """Of a training of 5 steps that is done.  Only to be read: `copied` gives one to go on with."""
    chosen = parameters(tmp_path_factory.mktemp("short"), steps=5)
    run(chosen, silent)
    return chosen


@pytest.fixture
def copied(short: TrainingParameters, tmp_path: Path) -> TrainingParameters:
    """Of a training to 40 steps, the first 5 of which are done."""
    shutil.copytree(short.output, tmp_path / "out")
    return msgspec.structs.replace(short, output=str(tmp_path / "out"), steps=40)


def test_another_number_of_ranks_is_refused(short: TrainingParameters) -> None:
    with pytest.raises(StateError, match=r"a training of 1 rank\(s\), this run has 2"):
        read_training(Path(short.output) / "checkpoint", FakeRank(2))


def test_ranks_of_different_weights_save_nothing(tmp_path: Path) -> None:
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=1, provenance={})
    weights, target = initial_weights(TINY, 0), tmp_path / "checkpoint"
    with pytest.raises(ParameterError, match="weights"):
        save_training(target, info, weights, {}, {}, FakeRank(2, agreeing=False))
    assert not list(tmp_path.iterdir())
    said = []
    for seed in (0, 0, 1):
        ranks = FakeRank(2, agreeing=False)
        with pytest.raises(ParameterError):
            save_training(target, info, initial_weights(TINY, seed), {}, {}, ranks)
        said.append(ranks.said["weights"])
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("file", ["state.npz", "weights.npz", "streams-00000.npz"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_checkpoint_is_named_and_left_alone(copied: TrainingParameters, file: str, damage: str) -> None:
    checkpoint = Path(copied.output) / "checkpoint"
    path = checkpoint / file
    content = path.read_bytes()[:-100]
    path.unlink()
    if damage == "cut short":
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{checkpoint}: is a damaged checkpoint"):
        run(copied, silent)
    assert path.is_file() == (damage == "cut short")


def test_a_checkpoint_that_was_not_trained_is_no_training_to_go_on_with(tmp_path: Path) -> None:
    info = CheckpointInfo(model=TINY, image_mean=MEAN, image_std=STD, step=0, provenance={})
    save_training(tmp_path / "one", info, initial_weights(TINY, 0), {}, {}, OneRank())
    (tmp_path / "one" / "state.npz").unlink()
    np.savez(tmp_path / "one" / "state.npz")
    with pytest.raises(DataError, match="no training to go on with"):
        read_training(tmp_path / "one", OneRank())
