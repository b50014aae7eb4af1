"""The learning curve: loss, and voxel and move metrics of finished canvases (google/ffn's EvalTracker), row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.parameters import Result
from apps.ffn.examples import Patch
from apps.ffn.movement import MOVE, logit

Row = NDArray[np.float64]

# Fields of a raw row.  The first are counts and sums, so that rows of several ranks, and any range of rows, can be put
# together exactly; the others are those of the row's end, the same on all ranks.
COUNTED = ("loss_sum", "fovs", "tp", "tn", "fp", "fn", "masked", "voxels", "correct", "missed", "spurious")
FIELDS = (*COUNTED, "step", "skipped", "learning_rate", "row_seconds", "seconds")
(LOSS_SUM, FOVS, TP, TN, FP, FN, MASKED, VOXELS, CORRECT, MISSED, SPURIOUS) = range(len(COUNTED))
(STEP, SKIPPED, LEARNING_RATE, ROW_SECONDS, SECONDS) = range(len(COUNTED), len(FIELDS))


class Metrics(Result, frozen=True, kw_only=True):
    """Loss per voxel, and metrics over the whole canvases of examples; None where nothing was counted.

    A voxel is predicted to be in the object at a probability of 0.9 and more.  A move of the field of view is right
    where the voxel it goes to is in the object, and made where the network predicts that voxel to be.
    """

    loss: Annotated[float | None, Meta(description="weighted sigmoid cross-entropy per voxel of a field of view")]
    masked_fraction: Annotated[float | None, Meta(description="share of the voxels that the loss leaves out")]
    accuracy: Annotated[float | None, Meta(description="share of the voxels that are predicted rightly")]
    precision: Annotated[float | None, Meta(description="of the voxels predicted, the share in the object")]
    recall: Annotated[float | None, Meta(description="of the object's voxels, the share predicted")]
    f1: Annotated[float | None, Meta(description="harmonic mean of precision and recall")]
    move_precision: Annotated[float | None, Meta(description="of the moves made, the share that was right")]
    move_recall: Annotated[float | None, Meta(description="of the right moves, the share that was made")]


METRICS = Metrics.__struct_fields__
CURVE_COLUMNS = ("step", *METRICS, "learning_rate", "skipped", "fovs_per_second", "seconds")


def metrics_of(rows: Row) -> Metrics:
    """Metrics over raw rows [n, fields] or [fields]."""
    totals = rows.reshape(-1, rows.shape[-1]).sum(axis=0)
    tp, tn, fp, fn = totals[[TP, TN, FP, FN]]
    correct, missed, spurious = totals[[CORRECT, MISSED, SPURIOUS]]
    counted, moves = tp + tn + fp + fn, correct + missed + spurious
    return Metrics(
        loss=float(totals[LOSS_SUM] / totals[FOVS]) if totals[FOVS] else None,
        masked_fraction=_ratio(totals[MASKED], totals[VOXELS], totals[VOXELS]),
        accuracy=_ratio(tp + tn, counted, counted),
        precision=_ratio(tp, tp + fp, counted),
        recall=_ratio(tp, tp + fn, counted),
        f1=_ratio(2 * tp, 2 * tp + fp + fn, counted),
        move_precision=_ratio(correct, correct + spurious, moves),
        move_recall=_ratio(correct, correct + missed, moves),
    )


def _ratio(part: float, whole: float, counted: float) -> float | None:
    if not counted:
        return None
    return float(part / whole) if whole else 0.0


def fovs_per_second(rows: Row) -> float | None:
    """Fields of view trained on a second, of all ranks, over raw rows; None where no time has passed."""
    totals = rows.reshape(-1, rows.shape[-1]).sum(axis=0)
    return float(totals[FOVS] / totals[ROW_SECONDS]) if totals[ROW_SECONDS] else None


def curve_values(row: Row) -> tuple[float | None, ...]:
    """What the curve shows of one raw row, in the order of CURVE_COLUMNS; None where nothing was counted."""
    metrics = metrics_of(row)
    shown = [getattr(metrics, name) for name in METRICS]
    return int(row[STEP]), *shown, row[LEARNING_RATE], int(row[SKIPPED]), fovs_per_second(row), row[SECONDS]


def count_patch(row: Row, patch: Patch) -> None:
    """Add a finished canvas to a raw row; voxels of weight 0 are masked, and not judged."""
    counted = patch.weights > 0
    predicted, true = (patch.logits >= logit(MOVE)) & counted, (patch.labels > 0.5) & counted
    judged = int(np.count_nonzero(counted))
    tp, positives, truths = (int(np.count_nonzero(found)) for found in (predicted & true, predicted, true))
    fp, fn = positives - tp, truths - tp
    row[[TP, TN, FP, FN]] += tp, judged - tp - fp - fn, fp, fn
    row[[MASKED, VOXELS]] += counted.size - judged, counted.size
    row[[CORRECT, MISSED, SPURIOUS]] += patch.correct_moves, patch.missed_moves, patch.spurious_moves


class Tracker:
    """Sums of this rank over the steps since the last row, and all rows of all ranks so far [n, fields] float64."""

    def __init__(self, rows: Row | None = None, current: Row | None = None) -> None:
        self.rows = np.zeros((0, len(FIELDS))) if rows is None else rows
        self.current = np.zeros(len(FIELDS)) if current is None else current

    def add_step(self, loss: float, fovs: int, seconds: float, skipped: bool = False) -> None:
        """Count one step of `fovs` fields of view on this rank, of mean loss `loss`."""
        self.current[LOSS_SUM] += loss * fovs
        self.current[FOVS] += fovs
        self.current[ROW_SECONDS] += seconds
        self.current[SKIPPED] += skipped

    def add_patch(self, patch: Patch) -> None:
        count_patch(self.current, patch)

    def close_row(self, step: int, learning_rate: float, seconds: float, total: Callable[[Row], Row]) -> Row:
        """End the row at `step` and return it; `total` sums counts over the ranks, so every rank has to come here."""
        row = self._summed(total)
        row[[STEP, LEARNING_RATE, SECONDS]] = step, learning_rate, seconds
        self.rows = np.concatenate([self.rows, row[None]])
        self.current = np.zeros(len(FIELDS))
        return row

    def recent(self, steps: int, total: Callable[[Row], Row]) -> Row:
        """The rows of the last quarter of `steps`, with that in progress: less noisy than one row."""
        return np.concatenate([self.rows[self.rows[:, STEP] > 0.75 * steps], self._summed(total)[None]])

    def _summed(self, total: Callable[[Row], Row]) -> Row:
        row = self.current.copy()
        row[: len(COUNTED)] = total(row[: len(COUNTED)])
        return row
