"""Plots of quality without ground truth: measures of sections over their numbers, their gates, their true errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.plots.style import BLUE, FONT_SIZE, GREY, ORANGE, RED, dot_size, figure, log_if_wide
from analysis.quality import count_states, named_sections, runs_of, section_states

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

STATE_COLOURS = {
    "passed": BLUE,
    "held": ORANGE,
    "accepted": "#7a5195",
    "failed": RED,
    "absent": GREY,
    "waiting": "#d5d9e0",
}
_MARKERS = {"passed": "o", "held": "D", "accepted": "s", "failed": "X", "absent": "v", "waiting": "."}
_DARK_ORANGE = "#a35900"  # for text
_FAR = 10.0  # times the threshold from which the y axis becomes logarithmic
_LABEL_SHARE = 0.14  # of the axis that a label of held sections may take
_LEAST_PIXEL = 0.003  # of the axis: a single section of thousands is drawn so wide at least


def measure_over_sections(rows: pd.DataFrame) -> Figure:
    """One measure of one step over the numbers of the sections, with the gate's threshold and what it held.

    rows: of the table of quality, one a section.  Sections without a value are crosses on the lower edge.  Those that
    are held for this measure are named above the axes, those close together as one; held for another one, hollow.
    """
    made, axes = figure(6.2, 2.9)
    first = rows.iloc[0]
    values = rows["value"].where(np.isfinite(rows["value"]))
    bounds = sorted(rows["threshold"].dropna().unique())
    failing, size = rows["passed"].eq(False), dot_size(len(rows), 26)
    for state, marker in _MARKERS.items():
        for here in (True, False) if state in ("held", "accepted") else (None,):
            shown = rows[(rows["state"] == state) & values.notna() & (True if here is None else failing == here)]
            if shown.empty:
                continue
            plain, colour = state == "passed", STATE_COLOURS[state]
            axes.scatter(
                shown["section"], shown["value"], s=size if plain else max(size, 14.0), marker=marker,
                facecolor="white" if here is False else colour, edgecolor=colour, alpha=0.8 if plain else 1,
                linewidth=0 if plain else 1, zorder=3 if plain else 4,
                label=f"{state}, not for this" if here is False else state,
            )  # fmt: skip
    for bound in bounds:
        axes.axhline(bound, color=RED, linestyle="--", linewidth=1, zorder=2, label="worst that passes")
    low, high = _scale_values(axes, np.append(values.dropna().to_numpy(np.float64), bounds), first["better"], bounds)
    if len(bounds) == 1:
        end = low if first["better"] == "higher" else high
        axes.axhspan(min(bounds[0], end), max(bounds[0], end), color=RED, alpha=0.06, linewidth=0, zorder=0)
    unknown = rows[values.isna() & (rows["state"] != "waiting")]
    if len(unknown):
        axes.scatter(
            unknown["section"], np.zeros(len(unknown)), transform=axes.get_xaxis_transform(), marker="x", s=22,
            color=RED, linewidth=1, clip_on=False, zorder=5, label="no value",
        )  # fmt: skip
    axes.set_ylim(low, high)
    _sections_axis(axes, rows["section"])
    unit = f" ({first['unit']})" if first["unit"] else ""
    axes.set_ylabel(f"{str(first['measure']).replace('_', ' ')}{unit}")
    _name_held(axes, rows[(rows["state"] == "held") & failing]["section"])
    _legend_below(made, axes)
    return made


def states_by_step(table: pd.DataFrame) -> Figure:
    """A row a step, a column a section: what became of each."""
    sections = section_states(table)
    steps = list(count_states(table)["step"])
    made, axes = figure(10.0, 0.75 + 0.33 * len(steps))
    span = float(sections["section"].max() - sections["section"].min() + 1)
    least = span * _LEAST_PIXEL
    for place, step in enumerate(steps):
        mine = sections[sections["step"] == step]
        for state in reversed(STATE_COLOURS):  # what passed last but under the rest
            runs = runs_of(mine[mine["state"] == state]["section"])
            common = state in ("passed", "waiting")
            bars = [(a - 0.5, b - a + 1.0) for a, b in runs]
            if not common:
                bars = [(x - max(0.0, least - w) / 2, max(w, least)) for x, w in bars]
            if bars:
                axes.broken_barh(
                    bars, (place - 0.36, 0.72), color=STATE_COLOURS[state], linewidth=0, zorder=3 if common else 4
                )
    _sections_axis(axes, sections["section"])
    axes.set_yticks(range(len(steps)), steps)
    axes.set_ylim(len(steps) - 0.5, -0.5)
    axes.grid(False)
    present = [state for state in STATE_COLOURS if (sections["state"] == state).any()]
    from matplotlib.patches import Patch

    made.legend(
        [Patch(color=STATE_COLOURS[state]) for state in present], present, loc="outside lower center",
        ncols=len(present), frameon=False, fontsize=FONT_SIZE,
    )  # fmt: skip
    return made


def measure_against_error(rows: pd.DataFrame) -> Figure:
    """One measure of one step against the true errors of the sections (columns value, error; see `join_errors`)."""
    made, axes = figure(6.2, 2.9)
    first = rows.iloc[0]
    axes.scatter(rows["error"], rows["value"], s=dot_size(len(rows), 20), color=BLUE, alpha=0.8, linewidth=0)
    for bound in sorted(rows["threshold"].dropna().unique()):
        axes.axhline(bound, color=RED, linestyle="--", linewidth=1, label="worst that passes")
    axes.set_xscale(log_if_wide(rows["error"]))
    axes.set_yscale(log_if_wide(rows["value"]))
    unit = f" ({first['unit']})" if first["unit"] else ""
    axes.set(xlabel="true error", ylabel=f"{str(first['measure']).replace('_', ' ')}{unit}")
    axes.margins(0.1)
    _legend_below(made, axes)
    return made


def _scale_values(axes: Axes, shown: NDArray[np.float64], better: str, bounds: list[float]) -> tuple[float, float]:
    """Set the scale of the y axis, and return its ends: linear up to the threshold, where the eye compares, and
    logarithmic beyond it where a few bad sections are far worse."""
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    near = bounds[-1] if bounds else float(np.percentile(shown, 95)) if len(shown) else 1.0
    if better == "lower" and low >= 0 and high > _FAR * near > 0:
        axes.set_yscale("symlog", linthresh=near)
        return -0.1 * near, 1.5 * high
    if high - low <= 1e-9 * max(abs(high), 1e-9):  # all alike: their own digits would show rounding
        half = 0.1 * abs(high) or 1.0
        low, high = low - half, high + half
    pad = 0.1 * (high - low)
    # Nothing below 0 is suggested of what cannot be negative.
    return (-0.5 * pad if better == "lower" and low <= 0 <= shown.min(initial=0.0) else low - pad), high + pad


def _sections_axis(axes: Axes, sections: pd.Series) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = float(sections.min()), float(sections.max())
    pad = max(0.5, 0.015 * (high - low))
    axes.set_xlim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    axes.ticklabel_format(axis="x", style="plain", useOffset=False)
    axes.set_xlabel("section")


def _name_held(axes: Axes, sections: pd.Series) -> None:
    """Numbers of held sections above the axes, where they cannot cover a point; what is close together as one."""
    low, high = axes.get_xlim()
    width = _LABEL_SHARE * (high - low)
    clusters: list[list[int]] = []
    for start, end in runs_of(sections):
        if not clusters or start - clusters[-1][0] >= width:
            clusters.append([])
        clusters[-1] += range(start, end + 1)
    last = -np.inf
    for cluster in clusters:
        for number in cluster:
            axes.axvline(number, color=ORANGE, linewidth=0.6, alpha=0.25, zorder=1)
        place = max((cluster[0] + cluster[-1]) / 2, last + width)
        last = place
        exact = named_sections(cluster, most=2)
        name = exact if len(exact) <= 9 else f"{cluster[0]} … {cluster[-1]}"
        share = np.clip((place - low) / (high - low), 0.04, 0.96)
        axes.annotate(
            name, (share, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", ha="center",
            color=_DARK_ORANGE, fontsize=FONT_SIZE - 1,
        )  # fmt: skip


def _legend_below(made: Figure, axes: Axes) -> None:
    """A legend under the axes, where it covers nothing; each name once."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) == 1 and names[0] == "passed":
        return
    kept = dict(zip(reversed(names), reversed(handles), strict=True))
    if kept:
        made.legend(
            [kept[name] for name in dict.fromkeys(names)], list(dict.fromkeys(names)), loc="outside lower center",
            ncols=min(len(kept), 4), frameon=False, fontsize=FONT_SIZE,
        )  # fmt: skip
