from __future__ import annotations

from pathlib import Path

import numpy as np

from apps.ffn.examples import Patch, logit
from apps.ffn.tracker import CURVE_COLUMNS, CurveFile, Metrics, Tracker


def patch() -> Patch:
    """One voxel of each: true positive, false positive, false negative, true negative, and one that does not count."""
    labels = np.array([0.95, 0.05, 0.95, 0.05, 0.95], np.float32).reshape(5, 1, 1)
    logits = np.array([logit(0.9), 5.0, logit(0.89), -3.0, 5.0], np.float32).reshape(5, 1, 1)
    weights = np.array([1, 1, 1, 0.5, 0], np.float32).reshape(5, 1, 1)
    return Patch(labels, logits, weights)


def test_metrics_of_a_hand_made_canvas() -> None:
    tracker = Tracker()
    tracker.add_step(0.5)
    tracker.add_step(0.25)
    tracker.add_patch(patch())
    metrics = tracker.recent(2)
    assert metrics == Metrics(loss=0.375, accuracy=0.5, precision=0.5, recall=0.5, f1=0.5)


def test_nothing_counted_is_none_and_an_empty_field() -> None:
    tracker = Tracker()
    assert tracker.recent(0).loss is None
    tracker.add_step(1.5)
    assert tracker.recent(1).accuracy is None
    assert tracker.close_row(1, 2.0) == "1,1.5,,,,,2.000\n"


def test_recent_is_the_last_quarter() -> None:
    tracker = Tracker()
    for step in range(1, 101):
        tracker.add_step(float(step > 75))
        if step % 5 == 0:
            tracker.close_row(step, 0.0)
    assert tracker.recent(100).loss == 1.0


def test_curve_file_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    tracker = Tracker()
    for step in (10, 20, 30):
        tracker.add_step(1.0)
        tracker.close_row(step, step / 10)
    file = tmp_path / "curves.csv"
    file.write_text("left over from a run that was killed after its checkpoint\n")
    curve = CurveFile(file, tracker.rows[:2])
    curve.append("30,1,,,,,3.000\n")
    assert file.read_text().splitlines() == [
        ",".join(CURVE_COLUMNS),
        "10,1,,,,,1.000",
        "20,1,,,,,2.000",
        "30,1,,,,,3.000",
    ]
