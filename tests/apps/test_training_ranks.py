"""`mpiexec -n 2 python -m apps.training parameters.json`: two real ranks train one network."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.ffn.model import initial_weights
from apps.ffn.settings import InferenceSettings
from apps.training.parameters import TrainingEvaluation
from apps.training.stage import TrainingParameters
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data
from tests.rank_runs import Launcher, kill, needs_horovod, run, start

PROGRAM = Path(__file__).with_name("ranks_training.py")

pytestmark = needs_horovod


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_data(tmp_path_factory.mktemp("data"))


def write(folder: Path, data: Any, **fields: Any) -> Path:
    """The parameters file of a training into `folder / "out"`, in `folder`."""
    values: dict[str, Any] = {
        "volumes": data.volumes,
        "output": str(folder / "out"),
        "model": TINY,
        "learning_rate": 0.01,
        "batch_size": 2,
        "steps": 12,
        "checkpoint_every": 4,
        "curve_every": 3,
        "seed": 3,
        "image_mean": MEAN,
        "image_std": STD,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "parameters.json"
    TrainingParameters(**{**values, **fields}).save(file)
    return file


def train(file: Path, size: int = 2, launcher: Launcher = "mpiexec") -> dict[str, Any]:
    """Run the stage; returns its record."""
    ended = run(size, ["-m", "apps.training", file], launcher)
    assert ended.code == 0, ended.out + ended.error
    return read(file.parent / "result.json")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def weights(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "out" / "checkpoint" / "weights.npz") as found:
        return {name: found[name] for name in found.files}


def assert_equal_bits(one: Path, other: Path) -> None:
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].tobytes() == right[name].tobytes(), name


@pytest.fixture(scope="module")
def trained(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training that was left alone, under mpiexec, with what each rank saw."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder, data)
    ended = run(2, [PROGRAM, "shares", folder])
    assert ended.code == 0, ended.out + ended.error
    return folder


def test_the_record_tells_the_ranks_and_their_throughput(trained: Path) -> None:
    record = read(trained / "result.json")
    assert record["ranks"] == record["result"]["ranks"] == 2
    assert record["result"]["steps"] == 12
    assert record["result"]["fovs_per_second"] > 0
    assert not (trained / "failure.json").exists()


def test_ranks_train_on_examples_of_their_own_and_keep_equal_weights(trained: Path) -> None:
    first, second = (read(trained / f"{rank}.json") for rank in range(2))
    assert len(first["seen"]) == len(second["seen"]) == 12
    assert not set(first["seen"]) & set(second["seen"])
    assert first["weights"] == second["weights"]
    assert first["loss"] == second["loss"]


def test_horovodrun_trains_the_same_network(trained: Path, data: Any, tmp_path: Path) -> None:
    assert train(write(tmp_path, data), launcher="horovodrun")["ranks"] == 2
    assert_equal_bits(trained, tmp_path)


def test_killed_ranks_go_on_to_the_same_bits(data: Any, tmp_path: Path) -> None:
    """kill -9 of the launcher and of both ranks in the middle, and the same command again."""
    steps = 400
    train(write(tmp_path / "whole", data, steps=steps, checkpoint_every=20))
    file = write(tmp_path / "killed", data, steps=steps, checkpoint_every=20)
    process = start(2, ["-m", "apps.training", file])
    model = tmp_path / "killed" / "out" / "checkpoint" / "model.json"
    deadline = time.monotonic() + 120
    try:
        while not model.exists() or read(model)["step"] < 40:
            assert process.poll() is None, "the training ended before it was killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        kill(process)
        process.communicate()
    assert read(model)["step"] < steps
    assert not (tmp_path / "killed" / "result.json").exists()
    train(file)
    assert_equal_bits(tmp_path / "whole", tmp_path / "killed")


def test_two_ranks_of_batch_2_are_one_of_batch_4(data: Any, tmp_path: Path) -> None:
    """The streams of two ranks are those of one with twice the batch, and so is the mean of their gradients.

    The rate is what makes the difference, as it is asked for: with linear scaling two ranks take twice that of one.
    """
    plain: dict[str, Any] = {"optimizer": "sgd", "scaling": "linear", "clip": None, "steps": 3}
    train(write(tmp_path / "two", data, batch_size=2, learning_rate=0.005, **plain))
    train(write(tmp_path / "one", data, batch_size=4, learning_rate=0.01, **plain), size=1)
    start_weights = initial_weights(TINY, 3)
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    moved = max(float(np.abs(one[name] - start_weights[name]).max()) for name in one)
    apart = max(float(np.abs(one[name] - two[name]).max()) for name in one)
    assert moved > 1e-4
    assert apart < 1e-3 * moved
    rates = []
    for name in ("one", "two"):
        header, row = (tmp_path / name / "out" / "curves.csv").read_text().splitlines()
        rates.append(float(dict(zip(header.split(","), row.split(","), strict=True))["learning_rate"]))
    assert rates == pytest.approx([0.01, 0.01])


def test_two_ranks_judge_a_training_as_one_does(data: Any, tmp_path: Path) -> None:
    """Held-out examples are shared and rank 0 segments; sums are over all, and every rank is told."""
    judged = TrainingEvaluation(
        volumes=data.held_out_volumes,
        every=6,
        canvases=5,
        box=Box.of((2, 0, 0), (20, 32, 32)),
        inference=InferenceSettings(min_size=100),
    )
    two = train(write(tmp_path / "two", data, evaluation=judged))["result"]["evaluation"]
    one = train(write(tmp_path / "one", data, evaluation=judged, batch_size=4), size=1)["result"]["evaluation"]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)
    assert len((tmp_path / "two" / "out" / "evaluations.csv").read_text().splitlines()) == 3


def test_ranks_that_disagree_are_told_before_any_work(data: Any, tmp_path: Path) -> None:
    """Two files with different learning rates: both ranks say so, and nothing is made."""
    for rank, rate in enumerate((0.01, 0.02)):
        write(tmp_path / str(rank), data, learning_rate=rate, output=str(tmp_path / "out"))
    code = "import os, sys; from apps.core.stage import stage_main; from apps.training.stage import STAGE; \
sys.exit(stage_main(STAGE, [os.environ['PMI_RANK'] + '/parameters.json']))"
    ended = run(2, ["-c", code], folder=tmp_path)
    assert ended.code == 2
    expected = "parameters: not the same on all 2 ranks, rank 1 differs from rank 0"
    for rank in range(2):
        assert f"(rank {rank} of 2): {expected}" in ended.error
        failure = read(tmp_path / str(rank) / "failure.json")
        assert failure["kind"] == "bad_configuration"
        assert failure["message"].startswith(expected)
    assert not (tmp_path / "out").exists()


def test_a_nan_on_one_rank_ends_all_as_diverged(data: Any, tmp_path: Path) -> None:
    write(tmp_path, data)
    ended = run(2, [PROGRAM, "nan", tmp_path])
    assert ended.code == 3
    failure = read(tmp_path / "failure.json")
    assert failure["kind"] == "diverged"
    assert "a gradient was not finite at step 3" in failure["message"]
    assert not (tmp_path / "result.json").exists()


def test_another_number_of_ranks_cannot_go_on(data: Any, tmp_path: Path) -> None:
    train(write(tmp_path, data, steps=2, checkpoint_every=2), size=1)
    before = weights(tmp_path)
    ended = run(2, ["-m", "apps.training", write(tmp_path, data, steps=4, checkpoint_every=2)])
    assert ended.code == 2
    assert "holds a training of 1 rank(s), this run has 2" in ended.error
    assert {name: value.tobytes() for name, value in weights(tmp_path).items()} == {
        name: value.tobytes() for name, value in before.items()
    }


def test_several_ranks_without_horovod_are_told_how_to_get_it(data: Any, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys; sys.modules['horovod'] = None")
    file = write(tmp_path, data)
    environment = {"PYTHONPATH": f"{hidden}:{Path(__file__).resolve().parents[2]}"}
    ended = run(2, ["-m", "apps.training", file], environment=environment)
    assert ended.code == 2
    assert "several ranks need Horovod, which is not installed; install it (`make horovod`)" in ended.error
    assert read(tmp_path / "failure.json")["kind"] == "bad_configuration"
    assert not (tmp_path / "out").exists()
    assert run(1, ["-m", "apps.training", file], environment=environment).code == 0
