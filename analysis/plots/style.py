"""What all plots share: colours, sizes, and a figure with quiet axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED = "#2f6db3", "#e07b00", "#8a8f98", "#b3261e"
FONT_SIZE = 8
FEW = 40
"""Up to this many trials are told apart one by one: with their numbers, in their full size."""


MOST_TO_AVOID = 500


def figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of that size in inches, and its axes (an array of them where there are several columns)."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    panels = made.subplots(1, columns)
    for axes in np.atleast_1d(np.asarray(panels, dtype=object)):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=FONT_SIZE)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_size(FONT_SIZE + 1)
    return made, panels


def legend(axes: Axes) -> None:
    """The axes' legend, where anything on them has a name; over the points where there are too many to find a place."""
    handles, names = axes.get_legend_handles_labels()
    if not handles:
        return
    if sum(np.asarray(collection.get_offsets()).shape[0] for collection in axes.collections) > MOST_TO_AVOID:
        axes.legend(handles, names, loc="upper right", framealpha=0.85, edgecolor="none", fontsize=FONT_SIZE)
    else:
        axes.legend(handles, names, frameon=False, fontsize=FONT_SIZE)


def dot_size(count: int, full: float = 28.0) -> float:
    """Area of a dot (points^2): smaller where there are many."""
    return full if count <= FEW else max(4.0, full * (FEW / count) ** 0.5)


def spread_out(trials: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """Every so many rows, so that the numbers of at most `most` trials fit beside each other."""
    return trials.iloc[:: -(-len(trials) // most) or 1]


def log_if_wide(values: pd.Series, ratio: float = 20.0) -> str:
    """The scale that shows the values: log where all are positive and the largest is `ratio` times the smallest."""
    known = values.dropna()
    wide = len(known) > 0 and known.min() > 0 and known.max() > ratio * known.min()
    return "log" if wide else "linear"
