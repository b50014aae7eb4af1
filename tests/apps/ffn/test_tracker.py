from __future__ import annotations

import numpy as np
import pytest

from apps.ffn.examples import Patch
from apps.ffn.movement import logit
from apps.ffn.tracker import (
    CURVE_COLUMNS,
    FOVS,
    ROW_SECONDS,
    STEP,
    Row,
    Tracker,
    curve_values,
    fovs_per_second,
    metrics_of,
)


def patch() -> Patch:
    """One voxel of each: true positive, false positive, false negative, true negative, and one that does not count;
    moves: three right ones of which one was missed, and two that were wrong."""
    labels = np.array([0.95, 0.05, 0.95, 0.05, 0.95], np.float32).reshape(5, 1, 1)
    logits = np.array([logit(0.9), 5.0, logit(0.89), -3.0, 5.0], np.float32).reshape(5, 1, 1)
    weights = np.array([1, 1, 1, 0.5, 0], np.float32).reshape(5, 1, 1)
    return Patch(labels, logits, weights, correct_moves=2, missed_moves=1, spurious_moves=2)


def alone(values: Row) -> Row:
    """The sum over a single rank."""
    return values


def test_metrics_of_a_hand_made_canvas() -> None:
    tracker = Tracker()
    tracker.add_step(0.5, 4, 1.0)
    tracker.add_step(0.25, 4, 1.0)
    tracker.add_patch(patch())
    metrics = metrics_of(tracker.recent(2, alone))
    assert metrics.to_dict() == {
        "loss": 0.375,
        "masked_fraction": 0.2,
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "move_precision": 0.5,
        "move_recall": pytest.approx(2 / 3),
    }


def test_a_row_of_the_curve() -> None:
    tracker = Tracker()
    tracker.add_step(1.5, 8, 0.5)
    tracker.add_step(0.5, 8, 1.5, skipped=True)
    row = tracker.close_row(2, 0.01, 2.25, alone)
    values = dict(zip(CURVE_COLUMNS, curve_values(row), strict=True))
    assert values["accuracy"] is None
    assert values["move_recall"] is None
    assert (values["step"], values["loss"], values["skipped"], values["learning_rate"]) == (2, 1.0, 1, 0.01)
    assert (values["fovs_per_second"], values["seconds"]) == (8.0, 2.25)
    assert not tracker.current.any()


def test_nothing_counted_is_none() -> None:
    metrics = metrics_of(Tracker().recent(0, alone))
    assert set(metrics.to_dict().values()) == {None}
    assert fovs_per_second(Tracker().recent(0, alone)) is None


def test_counts_are_summed_over_the_ranks_and_times_are_not() -> None:
    tracker = Tracker()
    tracker.add_step(0.5, 4, 2.0)
    tracker.add_patch(patch())
    row = tracker.close_row(1, 0.1, 2.0, lambda values: 3 * values)
    assert (row[FOVS], row[STEP], row[ROW_SECONDS]) == (12, 1, 2.0)
    assert metrics_of(row).loss == 0.5
    assert fovs_per_second(row) == 6.0


def test_recent_is_the_last_quarter() -> None:
    tracker = Tracker()
    for step in range(1, 101):
        tracker.add_step(float(step > 75), 1, 0.1)
        if step % 5 == 0:
            tracker.close_row(step, 0.1, 0.0, alone)
    assert metrics_of(tracker.recent(100, alone)).loss == 1.0
