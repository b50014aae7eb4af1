"""The trainer by itself: what one step does to weights, averages and streams, and what it asks of the other ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DivergedError
from apps.ffn import optimizers
from apps.ffn.examples import ExampleSource
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.ranks import OneRank, Ranks, one_rank
from apps.ffn.schedules import Schedule
from apps.ffn.tracker import FOVS
from apps.ffn.trainer import Trainer, TrainerSettings
from apps.ffn.training_volumes import open_training_volumes
from apps.ffn.variants import VARIANTS
from tests.apps.ffn.tiny import MEAN, STD, TINY, tiny_data

SETTINGS = TrainerSettings(
    optimizer="sgd",
    schedule=Schedule(0.1),
    clip=None,
    ema=None,
    precision="float32",
    policy="fixed",
    batch_size=3,
    seed=5,
    threads=1,
    curve_every=4,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ExampleSource:
    data = tiny_data(tmp_path_factory.mktemp("tiny"))
    return ExampleSource(open_training_volumes(data.volumes), TINY, (MEAN, STD), 1.0)


def make(source: ExampleSource, ranks: Ranks | None = None, **fields: Any) -> Trainer:
    settings = dataclasses.replace(SETTINGS, **fields)
    return Trainer(TINY, initial_weights(TINY, 1), source, settings, ranks or one_rank())


def flat(weights: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([value.ravel() for value in weights.values()])


def test_clipping_bounds_every_entry_of_the_gradient(source: ExampleSource) -> None:
    before = flat(initial_weights(TINY, 1))
    changes = []
    for clip in (None, 1e-3):
        trainer = make(source, clip=clip)
        trainer.train_step()
        changes.append(flat(trainer.weights()) - before)
    free, clipped = changes
    np.testing.assert_allclose(clipped, np.clip(free, -1e-4, 1e-4), atol=2e-7)
    assert np.abs(free).max() > 1e-3


def test_the_moving_average_of_the_weights(source: ExampleSource) -> None:
    """Against the recurrence by hand; the raw weights, not their average, are trained on."""
    trainer, plain = make(source, ema=0.5), make(source)
    average = flat(initial_weights(TINY, 1))
    for step in range(8):
        trainer.train_step()
        plain.train_step()
        raw = flat(trainer.network.weights())
        decay = min(0.5, (1 + step) / (10 + step))
        average = average + (1 - decay) * (raw - average)
        np.testing.assert_array_equal(raw, flat(plain.network.weights()))
    np.testing.assert_allclose(flat(trainer.weights()), average, atol=1e-6)
    with trainer.averaged():
        np.testing.assert_array_equal(flat(trainer.network.weights()), flat(trainer.weights()))
    np.testing.assert_array_equal(flat(trainer.network.weights()), raw)


def loss_of(trainer: Trainer, inputs: NDArray[np.float32]) -> float:
    """Of the present weights, on a batch as the trainer gathers it."""
    image, seed, labels, _ = inputs[..., None]
    logits = np.asarray(trainer.network.keras_model([image, seed]))
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))


@pytest.mark.parametrize("normalisation", ["none", "group"])
@pytest.mark.parametrize("variant", list(VARIANTS))
def test_every_variant_learns_and_goes_on_to_the_bit(source: ExampleSource, variant: str, normalisation: Any) -> None:
    model = ModelParameters.from_json(TINY.to_dict() | {"variant": variant, "normalisation": normalisation})
    settings = dataclasses.replace(SETTINGS, optimizer="momentum", schedule=Schedule(0.01), clip=0.7, ema=0.5)
    trainer = Trainer(model, initial_weights(model, 1), source, settings, one_rank())
    trainer.train_step()
    first, inputs = trainer.loss, trainer._inputs.copy()
    for _ in range(30):
        trainer.train_step()
    assert loss_of(trainer, inputs) < 0.8 * first
    other = Trainer(model, trainer.weights(), source, settings, one_rank())
    state, streams = (
        {name: value.copy() for name, value in part.items()} for part in (trainer.state(), trainer.streams())
    )
    other.restore(state, streams, "memory")
    for each in (trainer, other):
        for _ in range(2):
            each.train_step()
    assert other.loss == trainer.loss
    assert flat(other.weights()).tobytes() == flat(trainer.weights()).tobytes()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_reduced_precision_trains_alike(source: ExampleSource, precision: str) -> None:
    full, reduced = (
        make(source, optimizer="adam", schedule=Schedule(0.002), precision=name) for name in ("float32", precision)
    )
    for _ in range(4):
        full.train_step()
        reduced.train_step()
        assert reduced.loss == pytest.approx(full.loss, rel=0.05)
    assert reduced.skipped == 0
    assert {value.dtype for value in reduced.weights().values()} == {np.dtype(np.float32)}
    assert flat(reduced.weights()).tobytes() != flat(full.weights()).tobytes()


def test_a_step_that_overflows_in_float16_is_skipped_and_counted(
    source: ExampleSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "FIRST_SCALE", 2.0**35)
    monkeypatch.setattr(optimizers, "HIGHEST_SCALE", 2.0**40)
    trainer = make(source, precision="float16", ema=0.9)
    before = flat(trainer.weights())
    trainer.train_step()
    assert (trainer.step, trainer.skipped) == (1, 1)
    np.testing.assert_array_equal(flat(trainer.network.weights()), before)
    np.testing.assert_array_equal(flat(trainer.weights()), before)
    assert trainer.state()["scale_0"] == 2.0**34
    while trainer.skipped == trainer.step:
        trainer.train_step()
    assert (flat(trainer.weights()) != before).any()


def test_the_loss_scale_doubles_after_good_steps(source: ExampleSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "GROWTH_STEPS", 3)
    trainer = make(source, precision="float16", schedule=Schedule(0.001))
    scales = []
    for _ in range(6):
        trainer.train_step()
        scales.append(float(trainer.state()["scale_0"]) / optimizers.FIRST_SCALE)
    assert scales == [1, 1, 2, 2, 2, 4]


def test_a_gradient_that_is_not_finite_is_divergence(source: ExampleSource) -> None:
    class Overflowing(OneRank):
        def average(self, gradients: Sequence[Any]) -> list[Any]:
            first, *others, loss = gradients
            return [first * np.float32("inf"), *others, loss]

    for precision in ("float32", "float16"):
        trainer = make(source, Overflowing(), precision=precision)
        with pytest.raises(DivergedError, match="a gradient was not finite"):
            for _ in range(40):
                trainer.train_step()
        # In float16 the scale is halved from 2^15 to 1 first; the step that brings it there is the last.
        assert trainer.skipped == (14 if precision == "float16" else 0)


class FakeRanks(OneRank):
    """One of two ranks; the other one has a gradient and a loss of 0, and the same counts."""

    size = 2

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.broadcasts: list[int] = []

    def average(self, gradients: Sequence[Any]) -> list[Any]:
        return [gradient / 2 for gradient in gradients]

    def total(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2 * values

    def broadcast(self, variables: Sequence[Any]) -> None:
        self.broadcasts.append(len(variables))


def test_gradients_and_loss_are_averaged_and_counts_summed_over_the_ranks(source: ExampleSource) -> None:
    ranks, before = FakeRanks(), flat(initial_weights(TINY, 1))
    trainer, alone = make(source, ranks, curve_every=1), make(source, FakeRanks(), schedule=Schedule(0.05))
    alone._ranks.average = list  # type: ignore[method-assign, assignment]
    alone._update = alone._compile()
    row = trainer.train_step()
    alone.train_step()
    assert row is not None
    assert row[FOVS] == 6
    assert ranks.broadcasts == [len(trainer.network.keras_model.variables) + len(trainer._optimizer.variables)]
    assert trainer.loss == pytest.approx(alone.loss / 2)
    np.testing.assert_allclose(flat(trainer.weights()) - before, flat(alone.weights()) - before, atol=1e-7)


def test_the_streams_of_two_ranks_are_those_of_one_with_twice_the_batch(source: ExampleSource) -> None:
    """google/ffn's batch is what all ranks see in a step, each example once."""
    whole = make(source, batch_size=6)
    parts = [make(source, FakeRanks(rank)) for rank in range(2)]
    for trainer in (whole, *parts):
        trainer.train_step()
    np.testing.assert_array_equal(np.concatenate([part._inputs for part in parts], axis=1), whole._inputs)
