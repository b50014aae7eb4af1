"""The learning curve: loss, and voxel metrics of finished canvases (google/ffn's EvalTracker), row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.files import write_atomically
from apps.core.parameters import Result
from apps.ffn.examples import MOVE, Patch, logit

CURVE_COLUMNS = ("step", "loss", "accuracy", "precision", "recall", "f1", "seconds")

# Fields of a raw row: what is summed, so that any range of rows can be put together exactly.
STEP, LOSS_SUM, STEPS, TP, TN, FP, FN, SECONDS = range(8)


class Metrics(Result, frozen=True, kw_only=True):
    """Loss per voxel, and voxel metrics; None where nothing was counted.

    A voxel is predicted to be in the object at a probability of 0.9 and more, over the whole canvas of an example.
    """

    loss: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None


def metrics_of(rows: NDArray[np.float64]) -> Metrics:
    """Metrics over raw rows [n, 8]."""
    totals = rows.reshape(-1, 8).sum(axis=0)
    tp, tn, fp, fn = totals[[TP, TN, FP, FN]]
    counted = tp + tn + fp + fn
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return Metrics(
        loss=float(totals[LOSS_SUM] / totals[STEPS]) if totals[STEPS] else None,
        accuracy=_ratio(tp + tn, counted) if counted else None,
        precision=precision if counted else None,
        recall=recall if counted else None,
        f1=_ratio(2 * tp, 2 * tp + fp + fn) if counted else None,
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


class Tracker:
    """Sums over the steps since the last row, and all rows so far [n, 8] float64."""

    def __init__(self, rows: NDArray[np.float64] | None = None, current: NDArray[np.float64] | None = None) -> None:
        self.rows = np.zeros((0, 8)) if rows is None else rows
        self.current = np.zeros(8) if current is None else current

    def add_step(self, loss: float) -> None:
        self.current[LOSS_SUM] += loss
        self.current[STEPS] += 1

    def add_patch(self, patch: Patch) -> None:
        """Count a finished canvas; voxels of weight 0 are left out."""
        counted = patch.weights > 0
        predicted, true = patch.logits >= logit(MOVE), patch.labels > 0.5
        tp = np.count_nonzero(predicted & true & counted)
        positives, truths = np.count_nonzero(predicted & counted), np.count_nonzero(true & counted)
        fp, fn = positives - tp, truths - tp
        self.current[[TP, TN, FP, FN]] += tp, np.count_nonzero(counted) - tp - fp - fn, fp, fn

    def close_row(self, step: int, seconds: float) -> str:
        """End the row at `step`; returns it as a line of the curve's CSV."""
        self.current[[STEP, SECONDS]] = step, seconds
        self.rows = np.concatenate([self.rows, self.current[None]])
        self.current = np.zeros(8)
        return csv_line(self.rows[-1])

    def last_loss(self) -> float:
        """Mean loss of the last row."""
        return float(self.rows[-1, LOSS_SUM] / max(self.rows[-1, STEPS], 1.0))

    def recent(self, steps: int) -> Metrics:
        """Metrics over the last quarter of `steps` (and the row in progress): less noisy than one row."""
        return metrics_of(np.concatenate([self.rows[self.rows[:, STEP] > 0.75 * steps], self.current[None]]))


def csv_line(row: NDArray[np.float64]) -> str:
    """One raw row as a line of the CSV; a metric that could not be counted stays empty."""
    metrics = metrics_of(row)
    values = [metrics.loss, metrics.accuracy, metrics.precision, metrics.recall, metrics.f1]
    fields = ["" if value is None else f"{value:.6g}" for value in values]
    return ",".join([str(int(row[STEP])), *fields, f"{row[SECONDS]:.3f}"]) + "\n"


class CurveFile:
    """`curves.csv`: rewritten from the rows of the checkpoint at the start, then appended to as training goes."""

    def __init__(self, path: Path, rows: NDArray[np.float64]) -> None:
        text = ",".join(CURVE_COLUMNS) + "\n" + "".join(csv_line(row) for row in rows)
        write_atomically(path, text.encode())
        self._path = path

    def append(self, line: str) -> None:
        with self._path.open("a") as stream:
            stream.write(line)
