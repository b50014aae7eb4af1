"""Plots: functions from tables to matplotlib figures.  They show in a notebook, and the report embeds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.columns import label
from analysis.selection import ACCURACY, COST, finished, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED = "#2f6db3", "#e07b00", "#8a8f98", "#b3261e"
FONT_SIZE = 8


def trial_scatter(
    table: pd.DataFrame,
    metric: str = ACCURACY,
    cost: str = COST,
    minimize: bool = True,
    selected: pd.Series | None = None,
    cost_bound: float | None = None,
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Accuracy against cost, one point a finished trial, with the Pareto front, the selected trial and the bound.

    baselines: name -> value of the metric; trivial answers, drawn as lines; those too close to part share one.
    """
    trials = finished(table, metric, cost)
    figure, axes = _figure(6.2, 4.0)
    axes.scatter(trials[cost], trials[metric], s=28, color=BLUE, alpha=0.85, linewidth=0, label="trial", zorder=3)
    front = pareto_front(table, metric, cost, minimize)
    if len(front):
        axes.step(front[cost], front[metric], where="post", color=BLUE, linewidth=1, alpha=0.6, label="Pareto front")
    for trial, x, y in zip(trials["trial"], trials[cost], trials[metric], strict=True):
        axes.annotate(str(trial), (x, y), xytext=(4, 4), textcoords="offset points", color=GREY, fontsize=FONT_SIZE)
    if selected is not None:
        axes.scatter(
            [selected[cost]], [selected[metric]], s=130, facecolor="none", edgecolor=ORANGE, linewidth=2, zorder=4,
            label=f"selected: trial {selected['trial']}",
        )  # fmt: skip
    if cost_bound is not None:
        axes.axvline(cost_bound, color=ORANGE, linestyle=":", linewidth=1.2, label="bound on the cost")
    heights = [*trials[metric], *(baselines or {}).values()]
    for value, names in _same_values(baselines or {}, 0.04 * float(np.ptp(heights) if heights else 0)).items():
        axes.axhline(value, color=RED, linestyle="--", linewidth=1)
        axes.annotate(
            names, (1.0, value), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
            ha="right", color=RED, fontsize=FONT_SIZE,
        )  # fmt: skip
    costs = trials[cost]
    if len(costs) and costs.min() > 0 and costs.max() > 20 * costs.min():
        axes.set_xscale("log")
    axes.set(xlabel=label(cost), ylabel=label(metric))
    axes.margins(0.1)
    _legend(axes)
    return figure


def learning_curves(
    curves: Mapping[Any, pd.DataFrame], selected: Any = None, quantities: tuple[str, ...] = ("loss", "f1")
) -> Figure:
    """Curves of training over optimiser steps, one panel a quantity.

    curves: name of the trial -> its CSV (step, loss, accuracy, precision, recall, f1, seconds); `selected` is one of
        the names and is drawn on top.
    """
    figure, panels = _figure(4.3 * len(quantities), 3.0, columns=len(quantities))
    for axes, quantity in zip(np.atleast_1d(np.asarray(panels, dtype=object)), quantities, strict=True):
        for name, curve in curves.items():
            if quantity not in curve:
                continue
            chosen = name == selected
            axes.plot(
                curve["step"], curve[quantity], color=ORANGE if chosen else BLUE, linewidth=2 if chosen else 0.9,
                alpha=1 if chosen else 0.45, zorder=3 if chosen else 2, label=f"{name} (selected)" if chosen else None,
            )  # fmt: skip
        axes.set(xlabel="step", ylabel=label(f"m:{quantity}"))
        if selected in curves:
            _legend(axes)
    return figure


def search_trajectory(table: pd.DataFrame, metric: str = ACCURACY, minimize: bool = True) -> Figure:
    """The metric of every trial over the time at which it ended, and the best so far; failures at the lower edge."""
    trials = finished(table, metric)
    ended = _ended(table)
    start = _first(table)
    figure, axes = _figure(6.2, 4.0)
    order = trials.assign(_at=(ended - start) / 60).dropna(subset=["_at"]).sort_values(["_at", "trial"])
    if len(order):
        best = order[metric].cummin() if minimize else order[metric].cummax()
        axes.scatter(order["_at"], order[metric], s=24, color=BLUE, alpha=0.85, linewidth=0, label="trial", zorder=3)
        axes.step(order["_at"], best, where="post", color=ORANGE, linewidth=1.6, label="best so far")
    failed = ((ended - start) / 60)[table["job_status"] == "FAILED"].dropna()
    if len(failed):
        low = axes.get_ylim()[0]
        axes.scatter(failed, [low] * len(failed), marker="x", color=RED, clip_on=False, label="failed", zorder=4)
        axes.set_ylim(bottom=low)
    axes.set(xlabel="minutes since the search began", ylabel=label(metric))
    _legend(axes)
    return figure


def worker_utilisation(table: pd.DataFrame, workers: int | None = None) -> Figure:
    """When each trial ran, one row a worker, and the share of the window that the workers were busy.

    workers: how many there were; by default as many as ran at once at most.
    """
    runs = _runs(table)
    lanes = _lanes(runs)
    rows = max(workers or 0, max(lanes, default=-1) + 1, 1)
    figure, axes = _figure(8.6, 0.95 + 0.3 * min(rows, 24))
    if len(runs):
        begin = runs["m:timestamp_start"].min()
        minutes = (runs["m:timestamp_start"] - begin) / 60
        lengths = (runs["m:timestamp_end"] - runs["m:timestamp_start"]) / 60
        colour = [RED if state == "FAILED" else BLUE for state in runs["job_status"]]
        axes.barh(lanes, lengths, left=minutes, height=0.72, color=colour, edgecolor="white", linewidth=0.8)
        if len(runs) <= 60:
            for lane, left, length, trial in zip(lanes, minutes, lengths, runs["trial"], strict=True):
                axes.text(
                    left + length / 2, lane, str(trial), ha="center", va="center", color="white", fontsize=FONT_SIZE - 1
                )
        axes.set_title(f"{utilisation(table, rows):.0%} of {rows} workers busy", loc="left", fontsize=FONT_SIZE + 1)
    axes.set(xlabel="minutes since the first trial started", ylabel="worker", yticks=[], ylim=(rows - 0.5, -0.5))
    return figure


def utilisation(table: pd.DataFrame, workers: int | None = None) -> float:
    """Busy worker-seconds over workers times the window from the first start to the last end; NaN without runs."""
    runs = _runs(table)
    if runs.empty:
        return float("nan")
    rows = workers or max(_lanes(runs)) + 1
    window = runs["m:timestamp_end"].max() - runs["m:timestamp_start"].min()
    busy = (runs["m:timestamp_end"] - runs["m:timestamp_start"]).sum()
    return float(busy / (rows * window)) if window > 0 else float("nan")


def _runs(table: pd.DataFrame) -> pd.DataFrame:
    """The trials with a start and an end, by start."""
    times = ["m:timestamp_start", "m:timestamp_end"]
    if not set(times) <= set(table.columns):
        return table.iloc[:0].reindex(columns=[*table.columns, *(t for t in times if t not in table)])
    return table.dropna(subset=times).sort_values([*times, "trial"], kind="stable")


def _lanes(runs: pd.DataFrame) -> list[int]:
    """For each run, in order of start, the first row of the chart that is free."""
    free_at: list[float] = []
    lanes = []
    for start, end in zip(runs["m:timestamp_start"], runs["m:timestamp_end"], strict=True):
        lane = next((i for i, free in enumerate(free_at) if free <= start), len(free_at))
        free_at[lane : lane + 1] = [end]
        lanes.append(lane)
    return lanes


def _ended(table: pd.DataFrame) -> pd.Series:
    """When each trial was over, as far as the table says, in the seconds of the table's own clock."""
    missing = pd.Series(np.nan, index=table.index)
    return table.get("m:timestamp_end", missing).fillna(table.get("m:timestamp_gather", missing))


def _first(table: pd.DataFrame) -> float:
    """When the search began: the first submission or start that the table knows."""
    times = [table[name] for name in ("m:timestamp_submit", "m:timestamp_start") if name in table]
    known = pd.concat([*times, _ended(table)]).dropna()
    return float(known.min()) if len(known) else 0.0


def _same_values(values: Mapping[str, float], within: float) -> dict[float, str]:
    """value -> the names that have it or one so close that their lines could not be told apart."""
    names: dict[float, list[str]] = {}
    for name, value in values.items():
        near = next((known for known in names if abs(known - value) <= within), value)
        names.setdefault(near, []).append(name)
    return {value: ", ".join(joined) for value, joined in names.items()}


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of that size in inches, and its axes (an array of them where there are several columns)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, columns)
    for axes in np.atleast_1d(np.asarray(panels, dtype=object)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT_SIZE)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_size(FONT_SIZE + 1)
    return figure, panels


def _legend(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, frameon=False, fontsize=FONT_SIZE)
