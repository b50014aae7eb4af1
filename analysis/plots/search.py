"""Plots of how a search went: its best over time, its rungs, and the front of several objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.columns import is_objective, label, rung_columns
from analysis.objectives import Goal, began, ended, hypervolume_over_time, objective_front
from analysis.plots.style import (
    BLUE,
    FEW,
    FONT_SIZE,
    GREY,
    ORANGE,
    RED,
    dot_size,
    figure,
    legend,
    log_if_wide,
    spread_out,
)
from analysis.selection import ACCURACY, finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LINES = 300


def search_trajectory(table: pd.DataFrame, metric: str = ACCURACY, minimize: bool = True) -> Figure:
    """The metric of every trial over the time at which it ended, and the best so far; failures at the lower edge.

    Trials that a promotion rule stopped are grey: their value is of a smaller budget, and no best.
    """
    minutes = (ended(table) - began(table)) / 60
    made, axes = figure(6.2, 4.0)
    order = finished(table, metric).assign(_at=minutes).dropna(subset=["_at"]).sort_values(["_at", "trial"])
    given_up = table[(table["job_status"] == "STOPPED") & np.isfinite(table[metric]) & minutes.notna()]
    if len(given_up):
        axes.scatter(
            minutes[given_up.index], given_up[metric], s=dot_size(len(table), 16), color=GREY, alpha=0.6, linewidth=0,
            label="stopped early",
        )  # fmt: skip
    if len(order):
        best = order[metric].cummin() if minimize else order[metric].cummax()
        size = dot_size(len(order), 24)
        axes.scatter(order["_at"], order[metric], s=size, color=BLUE, alpha=0.85, linewidth=0, label="trial", zorder=3)
        axes.step(order["_at"], best, where="post", color=ORANGE, linewidth=1.6, label="best so far", zorder=4)
    failed = minutes[table["job_status"] == "FAILED"].dropna()
    if len(failed):
        low = axes.get_ylim()[0]
        axes.scatter(
            failed, [low] * len(failed), marker="x", s=dot_size(len(failed), 36), color=RED, linewidth=1, clip_on=False,
            label="failed", zorder=4,
        )  # fmt: skip
        axes.set_ylim(bottom=low)
    axes.set(xlabel="minutes since the search began", ylabel=label(metric))
    legend(axes)
    return made


def objectives_scatter(table: pd.DataFrame, goals: Sequence[Goal], selected: pd.Series | None = None) -> Figure:
    """The first two goals of every finished trial, with those on the front of all goals."""
    first, second = goals[0].column, goals[1].column
    trials = finished(table, *(goal.column for goal in goals))
    front = objective_front(table, goals)
    made, axes = figure(6.2, 4.0)
    size = dot_size(len(trials))
    axes.scatter(trials[first], trials[second], s=size, color=BLUE, alpha=0.5, linewidth=0, label="trial")
    axes.scatter(
        front[first], front[second], s=max(size, 16), color=ORANGE, linewidth=0, zorder=3,
        label="no trial is better in " + ("both" if len(goals) == 2 else f"all {len(goals)} objectives"),
    )  # fmt: skip
    if len(goals) == 2:
        axes.plot(front[first], front[second], color=ORANGE, linewidth=1, alpha=0.6)
    named = spread_out(front)
    for trial, x, y in zip(named["trial"], named[first], named[second], strict=True):
        axes.annotate(str(trial), (x, y), xytext=(4, 4), textcoords="offset points", color=GREY, fontsize=FONT_SIZE)
    if selected is not None and {first, second} <= set(selected.index):
        axes.scatter(
            [selected[first]], [selected[second]], s=130, facecolor="none", edgecolor=RED, linewidth=1.6, zorder=4,
            label=f"selected: trial {selected['trial']}",
        )  # fmt: skip
    axes.set_xscale(log_if_wide(trials[first]))
    axes.set_yscale(log_if_wide(trials[second]))
    axes.set(xlabel=_goal_label(goals[0]), ylabel=_goal_label(goals[1]))
    axes.margins(0.1)
    legend(axes)
    return made


def hypervolume_trajectory(table: pd.DataFrame, goals: Sequence[Goal]) -> Figure:
    """How much of the goals' space the finished trials dominate, over the time at which they ended."""
    steps = hypervolume_over_time(table, goals)
    made, axes = figure(6.2, 3.0)
    last = float((ended(table)[finished(table).index] - began(table)).max()) if len(steps) else 0.0
    minutes = np.append(steps["seconds"], max(last, 0.0)) / 60
    shares = np.append(steps["hypervolume"], steps["hypervolume"].iloc[-1] if len(steps) else 0.0)
    axes.step(np.insert(minutes, 0, 0.0), np.insert(shares, 0, 0.0), where="post", color=ORANGE, linewidth=1.6)
    axes.plot(steps["seconds"] / 60, steps["hypervolume"], ".", color=ORANGE, markersize=4)
    names = " and ".join(label(goal.column) for goal in goals)
    axes.set(xlabel="minutes since the search began", ylabel="dominated share", ylim=(0, None))
    axes.set_title(f"of {names}", loc="left", fontsize=FONT_SIZE + 1)
    return made


def rungs(
    table: pd.DataFrame, objective: str = "objective", selected: pd.Series | None = None, seed: int = 0
) -> Figure:
    """An objective of every trial over the budgets of its rungs: finished, stopped and failed ones.

    Of more than 300 trials the 100 best and 200 others, drawn by the seed.  Below each budget: trials that reported it.
    """
    columns = rung_columns(table.columns, objective)
    values = table[list(columns.values())].to_numpy(np.float64)
    budgets = _budgets(table, list(columns))
    made, axes = figure(6.2, 4.0)
    reached = (~np.isnan(values)).cumprod(axis=1).sum(axis=1)
    last = np.where(reached > 0, values[np.arange(len(values)), np.maximum(reached - 1, 0)], -np.inf)
    order = np.lexsort((-last, -reached))
    order = order[reached[order] > 0]
    if len(order) > MOST_LINES:
        others = np.random.default_rng(seed).choice(order[100:], MOST_LINES - 100, replace=False)
        order = np.concatenate([order[:100], others])
    alpha = 0.85 if len(order) <= FEW else 0.35
    states = table["job_status"].to_numpy()
    named: set[str] = set()
    for place in order[::-1]:
        chosen = selected is not None and table.index[place] == selected.name
        failed = states[place] == "FAILED"
        kind, colour = _KINDS.get(str(states[place]), ("not ended", GREY))
        axes.plot(
            budgets[: reached[place]], values[place, : reached[place]], color=ORANGE if chosen else colour,
            linewidth=2 if chosen else 0.9, alpha=1 if chosen else alpha, marker="x" if failed else "o",
            markersize=4 if failed or chosen else 2.5, zorder=4 if chosen else 2 + (kind == "finished"),
            label=f"selected: trial {selected['trial']}" if chosen and selected is not None
            else kind if kind not in named else None,
        )  # fmt: skip
        named |= set() if chosen else {kind}
    counts = (reached[:, None] > np.arange(len(columns))).sum(axis=0)
    if len(budgets) > 1 and budgets[0] > 0 and budgets[-1] > 5 * budgets[0]:
        axes.set_xscale("log")
    ticks = [f"{budget:,.0f}\n{count} trials" for budget, count in zip(budgets, counts, strict=True)]
    axes.set_xticks(budgets, ticks)
    axes.minorticks_off()
    axes.set(xlabel="budget" if "m:budget" in table else "rung", ylabel=label(objective))
    legend(axes)
    return made


_KINDS = {"DONE": ("finished", BLUE), "STOPPED": ("stopped", GREY), "FAILED": ("failed", RED)}


def _budgets(table: pd.DataFrame, numbers: list[int]) -> list[float]:
    """The budget of each rung, from the trials that ended there; the rung's number where not all are known."""
    if not {"m:budget", "m:rung"} <= set(table.columns):
        return [float(number) for number in numbers]
    known = table.dropna(subset=["m:budget", "m:rung"]).groupby("m:rung")["m:budget"].median()
    budgets = [float(known.get(number, np.nan)) for number in numbers]
    return [float(number) for number in numbers] if np.isnan(budgets).any() else budgets


def _goal_label(goal: Goal) -> str:
    if is_objective(goal.column):
        return label(goal.column)
    return f"{label(goal.column)}\n{'lower' if goal.minimize else 'higher'} is better"
