"""Which plots a report shows: those for which its table has numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis import plots, tables
from analysis.columns import is_objective, rung_columns
from analysis.errors import AnalysisError
from analysis.importance import hyperparameter_importance, varied_hyperparameters
from analysis.objectives import goals_of, hypervolume_over_time
from analysis.results import load_curves
from analysis.selection import finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.report import ReportContent

MOST_CURVES = 40
FEWEST_LINES = 3  # parallel coordinates of fewer trials say nothing


def search_plots(content: ReportContent) -> dict[str, Figure]:
    """Name (as the template calls it) -> figure."""
    made: dict[str, Figure] = {}
    trials, metric, minimize = content.trials, content.metric, content.minimize
    valued = trials[metric].notna() if metric in trials else pd.Series(False, index=trials.index)
    scored = bool(valued.any()) and len(finished(trials, metric)) > 0
    if scored and content.cost in trials and len(finished(trials, metric, content.cost)):
        baselines = tables.named_values(content.trivial, metric)
        made["scatter"] = plots.trial_scatter(
            trials, metric, content.cost, minimize, content.selected, content.cost_bound, baselines
        )
    if valued.any():
        made["trajectory"] = plots.search_trajectory(trials, metric, minimize)
    made |= _several_goals(content)
    made |= _rungs(content)
    varied = varied_hyperparameters(trials)
    if int(valued.sum()) >= FEWEST_LINES and varied:
        names = varied
        try:
            found = hyperparameter_importance(trials, metric)
        except AnalysisError:
            pass  # too few trials with a value
        else:
            made["importance"] = plots.hyperparameter_importance(found)
            ranked = [name for name in found.shares["name"] if name in varied]
            names = ranked + [name for name in varied if name not in ranked]
        made["parallel"] = plots.parallel_coordinates(trials, metric, minimize, names, content.selected)
    if {"m:timestamp_start", "m:timestamp_end"} <= set(trials.columns) and len(trials):
        made["utilisation"] = plots.worker_utilisation(trials, content.workers)
        if (trials["job_status"] != "DONE").any():
            made["outcomes"] = plots.costs_by_outcome(trials)
    if curves := _curves(content):
        chosen = None if content.selected is None else _curve_name(content, content.selected)
        made["curves"] = plots.learning_curves(curves, chosen)
    return made


def _several_goals(content: ReportContent) -> dict[str, Figure]:
    """The front of several objectives (accuracy against cost has its own plot), and the growth of what it dominates."""
    goals = goals_of(content.trials)
    if len(goals) < 2 or not len(finished(content.trials, *(goal.column for goal in goals))):
        return {}
    made = {}
    if is_objective(goals[0].column):
        made["objectives"] = plots.objectives_scatter(content.trials, goals, content.selected)
    if len(hypervolume_over_time(content.trials, goals)) > 1:
        made["hypervolume"] = plots.hypervolume_trajectory(content.trials, goals)
    return made


def _rungs(content: ReportContent) -> dict[str, Figure]:
    for objective in ("objective", "objective_0"):
        if len(rung_columns(content.trials.columns, objective)) > 1:
            return {"rungs": plots.rungs(content.trials, objective, content.selected)}
    return {}


def _curves(content: ReportContent) -> dict[str, pd.DataFrame]:
    """Of the best trials (at most 40) and the selected one: its name -> its learning curves."""
    trials = content.trials
    if "m:curves" not in trials:
        return {}
    trials = trials[trials["m:curves"].notna()]
    if content.metric in trials:
        key = trials[content.metric] if content.minimize else -trials[content.metric]
        trials = trials.iloc[np.argsort(key.to_numpy(np.float64), kind="stable")]  # NaN last
    chosen = content.trials.index[:0] if content.selected is None else [content.selected.name]
    shown = trials[trials.index.isin(chosen) | (np.arange(len(trials)) < MOST_CURVES)]
    curves = load_curves(shown.sort_index())
    return {_curve_name(content, shown[shown.index == index].iloc[0]): curve for index, curve in curves.items()}


def _curve_name(content: ReportContent, trial: pd.Series) -> str:
    several = content.trials["search"].nunique() > 1
    return f"{trial['search']}, trial {trial['trial']}" if several else f"trial {trial['trial']}"
