"""Two real ranks train one network, by itself or in a trial, under mpiexec and horovodrun.

To start TensorFlow is most of what a rank costs.  So the trainings of all tests are done in a few launches, each of
which does several, one after the other (ranks_training.py); the tests look at what these have left.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.volumes import open_volume
from apps.evaluation.metrics import Scores, score
from apps.ffn.model import initial_weights
from apps.ffn.settings import InferenceSettings
from apps.training.parameters import TrainingEvaluation, TrainingParameters
from apps.trial.stage import TrialParameters
from tests.apps.ffn.tiny import MEAN, STD, TINY, TinyData, tiny_data
from tests.rank_runs import ROOT, Ended, kill, needs_horovod, run, start

PROGRAM = Path(__file__).with_name("ranks_training.py")
STEPS = 24
BOX = Box.of((2, 0, 0), (20, 32, 32))
# google/ffn's streams and sums, and nothing that would hide a difference between one rank and two.
PLAIN: dict[str, Any] = {"optimizer": "sgd", "scaling": "linear", "clip": None, "steps": 3}
HANDED: dict[str, Any] = {"checkpoint_every": 2}

pytestmark = needs_horovod


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data, and of a folder for each training."""
    return tmp_path_factory.mktemp("trainings")


@pytest.fixture(scope="module")
def data(place: Path) -> TinyData:
    return tiny_data(place)


@pytest.fixture(scope="module")
def judged(data: TinyData) -> TrainingEvaluation:
    return TrainingEvaluation(
        volumes=data.held_out_volumes,
        every=6,
        canvases=5,
        box=BOX,
        inference=InferenceSettings(min_size=100),
    )


def training_of(folder: Path, data: TinyData, **fields: Any) -> TrainingParameters:
    """A training into `folder / "out"`."""
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
    return TrainingParameters(**{**values, **fields})


def write(folder: Path, data: TinyData, **fields: Any) -> Path:
    """The parameters file of that training, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "parameters.json"
    training_of(folder, data, **fields).save(file)
    return file


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


def steps_of(folder: Path) -> int:
    """Steps of the checkpoint; 0 where there is none, as in the moment in which one takes the place of another."""
    try:
        return int(read(folder / "out" / "checkpoint" / "model.json")["step"])
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a Python without Horovod."""
    folder = tmp_path_factory.mktemp("hidden")
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['horovod'] = None")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


@pytest.fixture(scope="module")
def alone(place: Path, data: TinyData, judged: TrainingEvaluation, hidden: dict[str, str]) -> Path:
    """`place` after the trainings of one rank, which needs no Horovod."""
    write(place / "one", data, batch_size=4, learning_rate=0.01, **PLAIN)
    write(place / "judged by one", data, batch_size=4, evaluation=judged)
    write(place / "handed", data, steps=2, **HANDED)
    scenarios = [f"plain:{place / name}" for name in ("one", "judged by one", "handed")]
    ended = run(1, [PROGRAM, *scenarios], environment=hidden)
    assert ended.code == 0, ended.out + ended.error
    shutil.copytree(place / "handed" / "out", place / "handed before" / "out")
    return place


@pytest.fixture(scope="module")
def killed(place: Path, data: TinyData, judged: TrainingEvaluation) -> Path:
    """`place` after trainings of two ranks under mpiexec, the launcher and both ranks killed in the last of them.

    All at once and by kill -9.
    """
    write(place / "whole", data, steps=STEPS, checkpoint_every=2)
    write(place / "two", data, batch_size=2, learning_rate=0.005, **PLAIN)
    write(place / "judged by two", data, evaluation=judged)
    fields: dict[str, Any] = {"learning_rate": 0.02, "scaling": "sqrt", "steps": 60, "checkpoint_every": 60}
    training = training_of(place / "trial", data, **fields)
    (place / "trial").mkdir()
    TrialParameters(training=training, validation_box=BOX, inference=judged.inference).save(
        place / "trial" / "parameters.json"
    )
    last = place / "killed"
    write(last, data, steps=STEPS, checkpoint_every=2)
    names = {"whole": "shares", "two": "plain", "judged by two": "plain", "trial": "trial", "killed": "slow"}
    process = start(2, [PROGRAM, *(f"{scenario}:{place / name}" for name, scenario in names.items())])
    deadline = time.monotonic() + 120
    try:
        while steps_of(last) < 6 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        running = process.poll() is None
    finally:
        if process.poll() is None:
            kill(process)
        out, error = process.communicate()
    assert running, f"it ended before it was killed: {out}{error}"
    assert 6 <= steps_of(last) < STEPS, out + error
    assert not (last / "result.json").exists()
    return place


@pytest.fixture(scope="module")
def again(killed: Path, alone: Path, data: TinyData) -> Ended:
    """How the launch ended that goes on with the killed training, is refused two others, and diverges in the last."""
    torn = killed / "torn"
    for rank, rate in enumerate((0.01, 0.02)):
        write(torn / str(rank), data, learning_rate=rate, output=str(torn / "out"))
    write(alone / "handed", data, steps=4, **HANDED)
    write(killed / "nan", data)
    names = {"killed": "plain", "torn": "torn", "handed": "refused", "nan": "nan"}
    return run(2, [PROGRAM, *(f"{scenario}:{killed / name}" for name, scenario in names.items())])


def test_the_record_tells_the_ranks_and_their_throughput(killed: Path) -> None:
    record = read(killed / "whole" / "result.json")
    assert record["ranks"] == record["result"]["ranks"] == 2
    assert record["result"]["steps"] == STEPS
    assert record["result"]["fovs_per_second"] > 0
    assert not (killed / "whole" / "failure.json").exists()


def test_ranks_train_on_examples_of_their_own_and_keep_equal_weights(killed: Path) -> None:
    first, second = (read(killed / "whole" / f"{rank}.json") for rank in range(2))
    assert len(first["seen"]) == len(second["seen"]) == STEPS
    assert not set(first["seen"]) & set(second["seen"])
    assert first["weights"] == second["weights"]
    assert first["loss"] == second["loss"]


def test_horovodrun_trains_the_same_network(killed: Path, data: TinyData, tmp_path: Path) -> None:
    file = write(tmp_path, data, steps=STEPS, checkpoint_every=2)
    ended = run(2, ["-m", "apps.training", file], "horovodrun")
    assert ended.code == 0, ended.out + ended.error
    assert read(tmp_path / "result.json")["ranks"] == 2
    assert_equal_bits(killed / "whole", tmp_path)


def test_killed_ranks_go_on_to_the_same_bits(killed: Path, again: Ended) -> None:
    """kill -9 of the launcher and of both ranks in the middle, and the same stage on the same file again."""
    assert read(killed / "killed" / "result.json")["ranks"] == 2, again.out + again.error
    assert_equal_bits(killed / "whole", killed / "killed")


def test_two_ranks_of_batch_2_are_one_of_batch_4(killed: Path, alone: Path) -> None:
    """The streams of two ranks are those of one with twice the batch, and so is the mean of their gradients.

    The rate is what makes the difference, as it is asked for: with linear scaling two ranks take twice that of one.
    """
    assert (read(alone / "one" / "result.json")["ranks"], read(killed / "two" / "result.json")["ranks"]) == (1, 2)
    start_weights = initial_weights(TINY, 3)
    one, two = (weights(folder) for folder in (alone / "one", killed / "two"))
    moved = max(float(np.abs(one[name] - start_weights[name]).max()) for name in one)
    apart = max(float(np.abs(one[name] - two[name]).max()) for name in one)
    assert moved > 1e-4
    assert apart < 1e-3 * moved
    rates = []
    for folder in (alone / "one", killed / "two"):
        header, row = (folder / "out" / "curves.csv").read_text().splitlines()
        rates.append(float(dict(zip(header.split(","), row.split(","), strict=True))["learning_rate"]))
    assert rates == pytest.approx([0.01, 0.01])


def test_two_ranks_judge_a_training_as_one_does(killed: Path, alone: Path) -> None:
    """Held-out examples are shared and rank 0 segments; sums are over all, and every rank is told."""
    one, two = (
        read(folder / "result.json")["result"]["evaluation"]
        for folder in (alone / "judged by one", killed / "judged by two")
    )
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3)
    assert len((killed / "judged by two" / "out" / "evaluations.csv").read_text().splitlines()) == 3


def test_two_ranks_are_one_trial(killed: Path) -> None:
    """All train, one segments, and the record is of both."""
    record = read(killed / "trial" / "result.json")
    result = record["result"]
    assert record["ranks"] == result["training"]["ranks"] == 2
    assert result["training"]["steps"] == 60
    found = open_volume(result["segmentation"]).read()
    assert Scores.from_json(result["scores"]) == score(open_volume(str(killed / "labels.zarr")).read(BOX), found)
    assert result["inference_steps"] > 0
    assert result["voxels_per_second"] > 0


def assert_every_rank_ends_with_2(folder: Path) -> None:
    assert {file.name: file.read_text() for file in folder.glob("*.code")} == {"0.code": "2", "1.code": "2"}


def test_ranks_that_disagree_are_told_before_any_work(killed: Path, again: Ended) -> None:
    """Two files with different learning rates: both ranks say so, and nothing is made."""
    torn = killed / "torn"
    assert_every_rank_ends_with_2(torn)
    expected = "parameters: not the same on all 2 ranks, rank 1 differs from rank 0"
    for rank in range(2):
        assert f"(rank {rank} of 2): {expected}" in again.error
        failure = read(torn / str(rank) / "failure.json")
        assert failure["kind"] == "bad_configuration"
        assert failure["message"].startswith(expected)
    assert not (torn / "out").exists()


def test_another_number_of_ranks_cannot_go_on(alone: Path, again: Ended) -> None:
    handed = alone / "handed"
    assert_every_rank_ends_with_2(handed)
    for rank in range(2):
        expected = rf"\(rank {rank} of 2\): \S*: holds a training of 1 rank\(s\), this run has 2"
        assert re.search(expected, again.error)
    assert_equal_bits(handed, alone / "handed before")
    assert steps_of(handed) == 2


def test_a_nan_on_one_rank_ends_all_as_diverged(killed: Path, again: Ended) -> None:
    """For real: it is the last of its launch."""
    assert again.code == 3
    failure = read(killed / "nan" / "failure.json")
    assert failure["kind"] == "diverged"
    assert "a gradient was not finite at step 3" in failure["message"]
    assert not (killed / "nan" / "result.json").exists()


def test_several_ranks_without_horovod_are_told_how_to_get_it(
    alone: Path, data: TinyData, hidden: dict[str, str], tmp_path: Path
) -> None:
    ended = run(2, ["-m", "apps.training", write(tmp_path, data)], environment=hidden)
    assert ended.code == 2
    assert "several ranks need Horovod, which is not installed; install it (`make horovod`)" in ended.error
    assert read(tmp_path / "failure.json")["kind"] == "bad_configuration"
    assert not (tmp_path / "out").exists()
    assert read(alone / "one" / "result.json")["ranks"] == 1  # which needs none
