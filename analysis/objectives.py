"""Several goals at once: the trials on their front, and how the volume they dominate grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.columns import is_objective
from analysis.dominance import Points, front, hypervolume
from analysis.errors import AnalysisError
from analysis.selection import ACCURACY, COST, finished

TYPICAL_WORST, BEYOND = 0.9, 0.2


@dataclass(frozen=True)
class Goal:
    """A column and which way is better.

    Attributes:
        column: of the table.
        minimize: whether smaller is better.
    """

    column: str
    minimize: bool = False


def goals_of(table: pd.DataFrame) -> tuple[Goal, ...]:
    """The table's several objectives (maximised); without them accuracy and cost (minimised), as far as it has them."""
    objectives = sorted(
        (name for name in table.columns if is_objective(name) and name != "objective" and table[name].notna().any()),
        key=lambda name: int(name.removeprefix("objective_")),
    )
    if len(objectives) > 1:
        return tuple(Goal(name) for name in objectives)
    return tuple(Goal(name, minimize=True) for name in (ACCURACY, COST) if name in table)


def objective_front(table: pd.DataFrame, goals: Sequence[Goal]) -> pd.DataFrame:
    """The finished trials that no other beats in every goal, by the first goal, the best first.

    Raises AnalysisError where a goal's column is missing, or there is no goal.
    """
    trials = finished(table, *_columns(goals))
    best = trials[front(_points(trials, goals))]
    return best.sort_values(
        [goals[0].column, "campaign", "search", "trial"], ascending=[goals[0].minimize, True, True, True], kind="stable"
    )


def hypervolume_over_time(
    table: pd.DataFrame, goals: Sequence[Goal], reference: Sequence[float] | None = None
) -> pd.DataFrame:
    """How much of the goals' space the trials that had ended dominated: columns seconds, hypervolume, trial.

    One row for every trial that added to it; seconds since the search began.  The volume is a share of the box between
    the reference and the best value of each goal: 1 would be one trial that is best in all of them.

    reference: a value for each goal that a trial must beat to count, in the goals' own direction; by default a fifth of
        the way below the value that nine tenths of the finished trials reach: a few useless ones do not set the scale.
    Raises AnalysisError where a goal's column is missing, or the reference has another number of values.
    """
    trials = finished(table, *_columns(goals))
    trials = trials.assign(_ended=ended(table)[trials.index]).dropna(subset=["_ended"])
    trials = trials.sort_values(["_ended", "campaign", "search", "trial"], kind="stable")
    points = _points(trials, goals)
    if not len(points):
        return pd.DataFrame({"seconds": [], "hypervolume": [], "trial": []})
    if reference is None:
        typical = np.quantile(points, 1 - TYPICAL_WORST, axis=0)
        corner = typical - BEYOND * (points.max(axis=0) - typical)
    elif len(reference) != len(goals):
        raise AnalysisError(f"reference of {len(reference)} values: expected {len(goals)}, one for each goal")
    else:
        corner = np.array([-v if goal.minimize else v for v, goal in zip(reference, goals, strict=True)], np.float64)
    scale = points.max(axis=0) - corner
    shares = (points - corner) / np.where(scale > 0, scale, 1)
    kept, rows = np.empty((0, len(goals))), []
    times = (trials["_ended"] - began(table)).to_numpy()
    for point, seconds, number in zip(shares, times, trials["trial"], strict=True):
        if (point <= 0).any() or (kept >= point).all(axis=1).any():
            continue
        kept = np.vstack([kept[~(point >= kept).all(axis=1)], point])
        rows.append((float(seconds), hypervolume(kept, np.zeros(len(goals))), int(number)))
    return pd.DataFrame(rows, columns=["seconds", "hypervolume", "trial"])


def ended(table: pd.DataFrame) -> pd.Series:
    """When each trial was over, as far as the table says, in the seconds of the table's own clock."""
    missing = pd.Series(np.nan, index=table.index)
    return table.get("m:timestamp_end", missing).fillna(table.get("m:timestamp_gather", missing))


def began(table: pd.DataFrame) -> float:
    """When the search began: the first submission or start that the table knows."""
    times = [table[name] for name in ("m:timestamp_submit", "m:timestamp_start") if name in table]
    known = pd.concat([*times, ended(table)]).dropna()
    return float(known.min()) if len(known) else 0.0


def _columns(goals: Sequence[Goal]) -> list[str]:
    if not goals:
        raise AnalysisError("no goal is given; name at least one column")
    return [goal.column for goal in goals]


def _points(trials: pd.DataFrame, goals: Sequence[Goal]) -> Points:
    """[trial, goal], the larger the better."""
    signs = [-1.0 if goal.minimize else 1.0 for goal in goals]
    points: Points = trials[_columns(goals)].to_numpy(np.float64) * signs
    return points
