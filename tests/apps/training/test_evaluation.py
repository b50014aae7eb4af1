"""Evaluation during training: held-out examples with frozen weights, and a segmented box."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.evaluation.metrics import score
from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.network import Network
from apps.ffn.ranks import OneRank
from apps.ffn.settings import InferenceSettings
from apps.ffn.training_volumes import open_training_volumes
from apps.inference.segment import segment_box
from apps.training.evaluation import EVALUATION_COLUMNS, Evaluator, check_held_out, from_row, table_values, to_row
from apps.training.parameters import EvaluationResult, TrainingEvaluation
from apps.training.stage import run
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data
from tests.apps.training.samples import parameters

BOX = Box.of((2, 0, 0), (20, 32, 32))
INFERENCE = InferenceSettings(min_size=100)


def evaluation(folder: Path, **fields: Any) -> TrainingEvaluation:
    values: dict[str, Any] = {"volumes": tiny_data(folder).held_out_volumes, "every": 100, "canvases": 12}
    return TrainingEvaluation(**{**values, **fields})


def evaluator(folder: Path, batch: int = 4, **fields: Any) -> Evaluator:
    return Evaluator(
        evaluation(folder, **fields),
        open_training_volumes(tiny_data(folder).volumes),
        TINY,
        (MEAN, STD),
        policy="fixed",
        seed=1,
        unlabelled_weight=1.0,
        batch=batch,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A training of 200 steps that was evaluated at 100 and 200, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    judged = evaluation(folder, box=BOX, inference=INFERENCE)
    return run(parameters(folder, steps=200, learning_rate=0.02, evaluation=judged), silent), folder


def test_evaluations_are_written_and_the_last_one_is_in_the_result(trained: Any) -> None:
    result, _ = trained
    table = pd.read_csv(result.evaluations)
    assert tuple(table.columns) == EVALUATION_COLUMNS
    assert table["step"].tolist() == [100, 200]
    assert result.evaluation.step == 200
    assert result.evaluation.metrics.f1 > 0.5
    assert result.evaluation.metrics.loss == pytest.approx(table["loss"].iloc[-1])
    assert table["vi"].iloc[-1] == pytest.approx(result.evaluation.scores.vi)
    # On the examples of the training, which look the same, it is about as good.
    assert result.evaluation.metrics.f1 == pytest.approx(result.f1, abs=0.2)


def test_scores_are_those_of_segmenting_the_box_with_the_checkpoint(trained: Any) -> None:
    result, folder = trained
    image, labels = (open_volume(str(folder / name)) for name in ("image.zarr", "labels.zarr"))
    found = segment_box(image, BOX, load_checkpoint(result.checkpoint), (MEAN, STD), INFERENCE, 1, silent)
    assert score(labels.read(BOX), found.labels) == result.evaluation.scores


def test_evaluating_does_not_touch_the_training(trained: Any) -> None:
    result, folder = trained
    plain = run(parameters(folder, steps=200, learning_rate=0.02, output=str(folder / "plain")), silent)
    one, other = (load_checkpoint(name).weights for name in (result.checkpoint, plain.checkpoint))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])
    assert plain.evaluation is None
    assert plain.evaluations is None


class OneOfThree(OneRank):
    """A rank of three whose counts alone are looked at."""

    size = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.counts: list[NDArray[np.float64]] = []

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        self.counts.append(values.copy())
        return values.copy()


def test_the_ranks_share_the_examples_and_any_batch_gives_the_same(trained: Any) -> None:
    result, folder = trained
    network = Network(TINY, load_checkpoint(result.checkpoint).weights, 1)
    ranks = [OneOfThree(rank) for rank in range(3)]
    for rank in ranks:
        evaluator(folder).evaluate(network, 7, rank)
    whole = OneOfThree(0)
    whole.size = 1
    evaluator(folder, batch=5).evaluate(network, 7, whole)
    parts = np.array([rank.counts[0] for rank in ranks])
    assert (parts[:, 1] > 0).all()
    np.testing.assert_allclose(parts.sum(axis=0), whole.counts[0], rtol=1e-4, atol=2)


def test_a_perfect_network_has_a_perfect_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits that are the labels themselves, every move and every voxel is right."""
    network = Network(TINY, {name: np.zeros_like(v) for name, v in _weights().items()}, 1)
    judge = evaluator(tmp_path, canvases=6)

    def perfect(image: NDArray[np.float32], seed: NDArray[np.float32]) -> NDArray[np.float32]:
        # Image values over 0 are inside of a tube; other tubes are 3 voxels away and the canvas is 13 wide.
        return np.where(image > 0, np.float32(8), np.float32(-8))

    monkeypatch.setattr(network, "predictor", lambda batch: perfect)
    metrics = judge.evaluate(network, 1, OneRank()).metrics
    assert metrics.recall == 1.0
    assert metrics.move_recall == 1.0
    assert metrics.masked_fraction == 0.0
    assert metrics.accuracy is not None
    assert metrics.accuracy > 0.7


def _weights() -> dict[str, NDArray[np.float32]]:
    from apps.ffn.model import initial_weights

    return initial_weights(TINY, 0)


def test_an_evaluation_survives_the_checkpoint(trained: Any) -> None:
    result, _ = trained
    without = EvaluationResult(step=3, metrics=result.evaluation.metrics, scores=None, seconds=0.5)
    for original in (result.evaluation, without):
        assert from_row(to_row(original)) == original
    assert table_values(without)[-2:] == [None, 0.5]
    with pytest.raises(ValueError, match="an evaluation of shape"):
        from_row(np.zeros(3))


def test_examples_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    judged = TrainingEvaluation(volumes=data.volumes, every=10)
    with pytest.raises(DataError, match=r"200 of its 200 coordinates .* are trained on too"):
        run(parameters(tmp_path, evaluation=judged), silent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box.of((10, 0, 0), (20, 32, 32)), "leaves the volume"),
        (Box.of((0, 0, 0), (8, 32, 32)), "smaller than the field of view"),
        (Box.of((0, 15, 0), (24, 2, 32)), "smaller than the field of view"),
    ],
)
def test_boxes_that_cannot_be_segmented_are_refused_before_training(tmp_path: Path, box: Box, words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(parameters(tmp_path, evaluation=evaluation(tmp_path, box=box)), silent)
    assert not (tmp_path / "out").exists()


def test_a_coordinate_outside_of_the_image_is_not_one_that_is_trained_on(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    chosen = np.load(data.held_out)["zyx"]
    held, training = open_training_volumes(data.held_out_volumes), open_training_volumes(data.volumes)
    for strange in ([500, 500, 500], [-1, 0, 0]):
        zyx = np.concatenate([chosen, np.array([strange], np.int32)])
        coordinates = dataclasses.replace(held[0].coordinates, zyx=zyx)
        check_held_out(training, [dataclasses.replace(held[0], coordinates=coordinates)])


def test_another_name_of_the_same_image_is_the_same_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    again = msgspec.structs.replace(data.volumes[0], image="./image.zarr")
    with pytest.raises(DataError, match="are trained on too"):
        check_held_out(open_training_volumes(data.volumes), open_training_volumes([again]))


def test_examples_are_judged_as_they_lie_in_the_volume(tmp_path: Path) -> None:
    judge = evaluator(tmp_path)
    assert judge._source.axis_orders == [[(0, 1, 2)]]
    first, second = (judge._source.draw(0, np.random.default_rng(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(first.image, second.image)


def test_adopted_weights_are_evaluated_once(trained: Any, tmp_path: Path) -> None:
    result, _ = trained
    chosen = parameters(
        tmp_path,
        model=None,
        init=result.checkpoint,
        steps=0,
        evaluation=evaluation(tmp_path, box=BOX, inference=INFERENCE),
    )
    for _ in range(2):
        adopted = run(chosen, silent)
        assert adopted.evaluation is not None
        assert adopted.evaluation.step == 0
        assert adopted.evaluation.scores is not None
        assert len(pd.read_csv(str(adopted.evaluations))) == 1


def test_the_precision_of_an_evaluation_is_the_trainings(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="leave it out"):
        evaluation(tmp_path, inference=InferenceSettings(mode="fast", precision="bfloat16"))
