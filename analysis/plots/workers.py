"""Plots of the machine: when workers were busy, and what their time was spent on."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import pandas as pd

from analysis.plots.style import BLUE, FONT_SIZE, GREY, RED, figure
from analysis.tables import text
from analysis.timing import busy_nodes, cost_by_outcome, runs, utilisation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LANES, MOST_BARS = 48, 1000


def worker_utilisation(table: pd.DataFrame, workers: int | None = None) -> Figure:
    """When each trial ran, one row a worker, and the share of the window that the workers were busy.

    With more than 48 workers or trials of several nodes: how many nodes were busy, over time.
    workers: how many there were; by default as many as were busy at once at most.
    """
    found = runs(table)
    most = int(busy_nodes(found)["nodes"].max()) if len(found) else 0
    rows = max(workers or 0, most, 1)
    lanes = rows <= MOST_LANES and len(found) <= MOST_BARS and bool((found["nodes"] == 1).all())
    made, axes = figure(8.6, 0.95 + 0.3 * min(rows, 24) if lanes else 3.0)
    if lanes:
        _draw_lanes(axes, found, rows)
    else:
        _draw_busy(axes, found, rows)
    if len(found):
        title = f"{utilisation(table, rows):.0%} of {rows} workers busy"
        axes.set_title(title, loc="left", fontsize=FONT_SIZE + 1)
    axes.set(xlabel="minutes since the first trial started")
    return made


def _draw_lanes(axes: Axes, found: pd.DataFrame, rows: int) -> None:
    if len(found):
        lanes = _lanes(found)
        minutes = (found["start"] - found["start"].min()) / 60
        lengths = (found["end"] - found["start"]) / 60
        colour = [RED if state == "FAILED" else BLUE for state in found["job_status"]]
        axes.barh(lanes, lengths, left=minutes, height=0.72, color=colour, edgecolor="white", linewidth=0.8)
        if len(found) <= 60:
            for lane, left, length, trial in zip(lanes, minutes, lengths, found["trial"], strict=True):
                axes.text(
                    left + length / 2, lane, str(trial), ha="center", va="center", color="white", fontsize=FONT_SIZE - 1
                )
    axes.set(ylabel="worker", yticks=[], ylim=(rows - 0.5, -0.5))


def _draw_busy(axes: Axes, found: pd.DataFrame, rows: int) -> None:
    busy = busy_nodes(found)
    minutes = (busy["seconds"] - found["start"].min()) / 60
    axes.fill_between(minutes, busy["nodes"], step="post", color=BLUE, alpha=0.85, linewidth=0)
    axes.axhline(rows, color=GREY, linestyle=":", linewidth=1.2)
    axes.set(ylabel="busy workers", ylim=(0, 1.05 * rows))


def _lanes(found: pd.DataFrame) -> list[int]:
    """For each run, in order of start, the first row of the chart that is free."""
    free: list[int] = []
    ends: list[tuple[float, int]] = []
    lanes = []
    for start, end in zip(found["start"], found["end"], strict=True):
        while ends and ends[0][0] <= start:
            heapq.heappush(free, heapq.heappop(ends)[1])
        lane = heapq.heappop(free) if free else len(ends)
        heapq.heappush(ends, (end, lane))
        lanes.append(lane)
    return lanes


def costs_by_outcome(table: pd.DataFrame) -> Figure:
    """Node-hours that went into finished trials, into those stopped at each rung, and into failures of each kind."""
    costs = cost_by_outcome(table)
    made, axes = figure(6.2, 0.9 + 0.32 * max(1, len(costs)))
    colours = [RED if o.startswith("failed") else GREY if o.startswith("stopped") else BLUE for o in costs["outcome"]]
    hours = costs["node_hours"].fillna(0)
    axes.barh(costs["outcome"], hours, color=colours, height=0.66)
    total = float(hours.sum())
    for outcome, count, spent in zip(costs["outcome"], costs["trials"], costs["node_hours"], strict=True):
        share = f", {spent / total:.0%}" if total > 0 and spent == spent else ""
        said = f"{text(float(spent))} node-hours{share}" if spent == spent else "times not recorded"
        axes.annotate(
            f"{count} trial{'s' if count != 1 else ''}: {said}", (0 if spent != spent else spent, outcome),
            xytext=(4, 0), textcoords="offset points", va="center", fontsize=FONT_SIZE,
        )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.75 * max(float(hours.max()) if len(hours) else 0.0, 1e-9))  # room for the sentences
    axes.set(xlabel="node-hours")
    return made
