"""Plots of trials beside each other: accuracy against cost, and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analysis.columns import label
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
from analysis.selection import ACCURACY, COST, finished, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    Of more than 40 trials only some on the front have their number.
    baselines: name -> value of the metric; trivial answers, drawn as lines; those too close to part share one.
    """
    trials = finished(table, metric, cost)
    made, axes = figure(6.2, 4.0)
    size = dot_size(len(trials))
    axes.scatter(trials[cost], trials[metric], s=size, color=BLUE, alpha=0.85, linewidth=0, label="trial", zorder=3)
    front = pareto_front(table, metric, cost, minimize)
    if len(front):
        axes.step(front[cost], front[metric], where="post", color=BLUE, linewidth=1, alpha=0.6, label="Pareto front")
    named = trials if len(trials) <= FEW else spread_out(front)
    for trial, x, y in zip(named["trial"], named[cost], named[metric], strict=True):
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
    axes.set_xscale(log_if_wide(trials[cost]))
    axes.set(xlabel=label(cost), ylabel=label(metric))
    axes.margins(0.1)
    legend(axes)
    return made


def learning_curves(
    curves: Mapping[Any, pd.DataFrame], selected: Any = None, quantities: tuple[str, ...] = ("loss", "f1")
) -> Figure:
    """Curves of training over optimiser steps, one panel a quantity.

    curves: name of the trial -> its CSV (step, loss, accuracy, precision, recall, f1, seconds); `selected` is one of
        the names and is drawn on top.
    """
    made, panels = figure(4.3 * len(quantities), 3.0, columns=len(quantities))
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
            legend(axes)
    return made


def _same_values(values: Mapping[str, float], within: float) -> dict[float, str]:
    """value -> the names that have it or one so close that their lines could not be told apart."""
    names: dict[float, list[str]] = {}
    for name, value in values.items():
        near = next((known for known in names if abs(known - value) <= within), value)
        names.setdefault(near, []).append(name)
    return {value: ", ".join(joined) for value, joined in names.items()}
