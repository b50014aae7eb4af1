"""Plots of the space: which hyperparameters decide, and where the good configurations lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.columns import label
from analysis.errors import AnalysisError
from analysis.importance import Importance, varied_hyperparameters
from analysis.plots.style import BLUE, FONT_SIZE, GREY, ORANGE, RED, figure, log_if_wide
from analysis.selection import ACCURACY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_AXES, MOST_BEST, MOST_OTHERS, MOST_FAILED = 12, 60, 240, 60
BEST_SHARE = 0.1
INACTIVE = -0.12  # where a hyperparameter that a condition switches off is drawn, below its axis


def hyperparameter_importance(found: Importance) -> Figure:
    """Bars of `analysis.hyperparameter_importance`, the most important hyperparameter first, with the error of each."""
    shown = found.shares.head(2 * MOST_AXES)
    made, axes = figure(6.2, 1.0 + 0.27 * len(shown))
    axes.barh(
        [label(name) for name in shown["name"]], shown["share"].clip(lower=0), xerr=shown["error"], color=BLUE,
        height=0.66, error_kw={"ecolor": GREY, "elinewidth": 1},
    )  # fmt: skip
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0)
    axes.set(xlabel="share of the order of the trials that is lost without it")
    said = f"all together foretell {max(0.0, found.explained):.0%} of the order of {found.trials} trials"
    axes.set_title(said, loc="left", fontsize=FONT_SIZE + 1)
    return made


def parallel_coordinates(
    table: pd.DataFrame,
    metric: str = ACCURACY,
    minimize: bool = True,
    names: list[str] | None = None,
    selected: pd.Series | None = None,
    seed: int = 0,
) -> Figure:
    """A line a trial through its hyperparameters and its metric; the best tenth in colour, failures in red.

    Of many trials: the 60 best, and 240 others and 60 failed ones drawn by the seed.  A hyperparameter that a condition
    switches off is below its axis.  names: the hyperparameters' columns in this order; by default all that vary, at
    most 12.
    Raises AnalysisError where no hyperparameter varies.
    """
    names = (names or varied_hyperparameters(table))[:MOST_AXES]
    if not names:
        raise AnalysisError("no hyperparameter varies; there is nothing to draw")
    known = table[table["job_status"].isin(("DONE", "STOPPED")) & np.isfinite(table[metric])]
    known = known.sort_values(metric, ascending=minimize, kind="stable")
    best = known.head(min(MOST_BEST, max(1, round(BEST_SHARE * len(known)))))
    rng = np.random.default_rng(seed)
    others = _sample(known.drop(index=best.index), MOST_OTHERS, rng)
    failed = _sample(table[table["job_status"] == "FAILED"], MOST_FAILED, rng)
    made, axes = figure(min(13.0, 1.6 + 1.15 * (len(names) + 1)), 3.8)
    scales = {name: _Scale(table[name]) for name in names}
    outcome = _Scale(known[metric])
    if minimize:
        outcome = outcome.turned()
    for trials, colour, width, alpha in (
        (failed, RED, 0.7, 0.45),
        (others, GREY, 0.6, 0.35),
        (best, BLUE, 1.1, 0.8),
    ):
        places = [scales[name](trials[name]) for name in names]
        ends = np.full(len(trials), INACTIVE) if trials is failed else outcome(trials[metric])
        axes.plot(np.vstack([*places, ends]), color=colour, linewidth=width, alpha=alpha)
    if selected is not None and selected.name in known.index:
        row = known.loc[[selected.name]]
        line = np.concatenate([*(scales[name](row[name]) for name in names), outcome(row[metric])])
        axes.plot(line, color=ORANGE, linewidth=2.4)
    for place, name in enumerate(names):
        _draw_axis(axes, place, scales[name], "off" if table[name].isna().any() else "")
    _draw_axis(axes, len(names), outcome, "failed" if len(failed) else "")
    titles = [*(label(name) for name in names), label(metric)]
    axes.set_xticks(range(len(titles)), [title.replace(" ", "\n", 1) for title in titles])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    axes.set(yticks=[], ylim=(INACTIVE - 0.06, 1.06), xlim=(-0.25, len(names) + 0.45))
    _draw_key(axes, len(best), len(others), len(failed), selected is not None)
    return made


class _Scale:
    """One vertical axis: where a hyperparameter's values lie on it, from 0 to 1, and its ticks."""

    def __init__(self, values: pd.Series) -> None:
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        self.choices: dict[str, float] = {}
        self.down = False
        if not numeric:
            names = sorted(values.map(str, na_action="ignore").dropna().unique())
            self.choices = {name: place / max(1, len(names) - 1) for place, name in enumerate(names)}
            return
        self.log = log_if_wide(values) == "log" and _evenly(values.map(np.log10)) > _evenly(values)
        numbers = self._plain(values)
        self.low, self.high = (np.nanmin(numbers), np.nanmax(numbers)) if values.notna().any() else (0.0, 1.0)

    def turned(self) -> _Scale:
        """The same with small values at the top."""
        self.down = True
        return self

    def __call__(self, values: pd.Series) -> NDArray[np.float64]:
        if self.choices:
            places = values.map(str, na_action="ignore").map(self.choices).to_numpy(np.float64)
        elif self.high > self.low:
            places = (self._plain(values) - self.low) / (self.high - self.low)
        else:
            places = np.where(values.isna(), np.nan, 0.5)
        return np.where(np.isnan(places), INACTIVE, 1 - places if self.down else places)

    def ticks(self) -> list[tuple[float, str]]:
        """(place, what stands there)."""
        if self.choices:
            return [(place, name) for name, place in self.choices.items()]
        shown = []
        for place in (0.0, 0.5, 1.0) if self.high > self.low else (0.5,):
            number = self.low + place * (self.high - self.low)
            shown.append((1 - place if self.down else place, f"{10**number if self.log else number:.3g}"))
        return shown

    def _plain(self, values: pd.Series) -> NDArray[np.float64]:
        numbers = values.to_numpy(np.float64)
        return np.log10(numbers) if self.log else numbers


def _evenly(values: pd.Series) -> float:
    """How near the middle of the range the median is: 0.5 at most."""
    return 0.5 - abs(float((values.median() - values.min()) / (values.max() - values.min())) - 0.5)


def _draw_axis(axes: Axes, place: int, scale: _Scale, below: str) -> None:
    axes.plot([place, place], [0, 1], color="#40454f", linewidth=0.8, zorder=5)
    for height, said in [*scale.ticks()[:24], *([(INACTIVE, below)] if below else [])]:
        axes.annotate(
            said, (place, height), xytext=(3, 0), textcoords="offset points", va="center", fontsize=FONT_SIZE - 1,
            zorder=6, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.6},
        )  # fmt: skip


def _draw_key(axes: Axes, best: int, others: int, failed: int, selected: bool) -> None:
    from matplotlib.lines import Line2D

    entries = [
        (BLUE, f"the best {best}", best),
        (GREY, f"{others} others", others),
        (RED, f"{failed} failed", failed),
        (ORANGE, "selected", selected),
    ]
    lines = [Line2D([], [], color=colour, label=said) for colour, said, count in entries if count]
    axes.legend(handles=lines, frameon=False, fontsize=FONT_SIZE, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4)


def _sample(trials: pd.DataFrame, most: int, rng: np.random.Generator) -> pd.DataFrame:
    return trials if len(trials) <= most else trials.iloc[np.sort(rng.choice(len(trials), most, replace=False))]
