"""Which model to deploy on a volume within a budget of node-hours, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError
from analysis.importance import encode, varied_hyperparameters
from analysis.selection import ACCURACY, COST, finished, select

NM3_IN_MM3 = 1e18
_CANDIDATES = 200
_FEWEST_REPEATED, _FEWEST_NEIGHBOURS = 3, 8


@dataclass(frozen=True)
class BudgetPick:
    """The trial to deploy, and what is known of how good the choice is.

    Attributes:
        row: the picked row of the table.
        cost_bound: the budget in node-hours per gigavoxel.
        node_hours: what the pick takes for the volume, at its measured speed.
        chance_within: probability that it stays within the budget.
        chance_best: probability that, of all trials within the budget, a repetition would find the pick the best; NaN
            where the table does not say how much the metric scatters.
        expected: the metric expected of the pick without the luck of being the best of many; NaN as above.
        spread: standard deviation of the metric from one training of a configuration to the next; NaN as above.
        spread_from: what that is from, in words.
        rivals: columns campaign, search, trial, metric's, cost's, chance: what could as well be the best, the pick
            included, from the most probable on until they hold nine tenths of the probability.
    """

    row: pd.Series
    cost_bound: float
    node_hours: float
    chance_within: float
    chance_best: float
    expected: float
    spread: float
    spread_from: str
    rivals: pd.DataFrame

    def sentence(self, metric: str) -> str:
        """How sure the pick is, in words."""
        hours = f"{self.node_hours:,.0f}" if self.node_hours >= 100 else f"{self.node_hours:.3g}"
        said = f"{hours} node-hours at the measured speed; within the budget at {self.chance_within:.0%}."
        if math.isnan(self.chance_best):
            return f"{said}  Whether a repetition would pick it again is not known: {self.spread_from}."
        return (
            f"{said}  {metric} scatters by {self.spread:.3g} (from {self.spread_from}): {self.expected:.4g} is to be "
            f"expected of it, and the chance that it is the best within the budget is {self.chance_best:.0%}."
        )


def voxels_in(volume_mm3: float, voxel_size_nm: Sequence[float]) -> float:
    """Voxels of a volume in mm^3, with voxels of that size (zyx, nm).

    Raises AnalysisError where a number is not positive or there are not three sizes.
    """
    if len(voxel_size_nm) != 3 or not all(math.isfinite(s) and s > 0 for s in voxel_size_nm):
        raise AnalysisError(f"voxel size {tuple(voxel_size_nm)}: expected three positive numbers (nm, zyx)")
    if not (math.isfinite(volume_mm3) and volume_mm3 > 0):
        raise AnalysisError(f"volume of {volume_mm3} mm^3: expected a positive number")
    return volume_mm3 * NM3_IN_MM3 / math.prod(voxel_size_nm)


def select_under_budget(
    table: pd.DataFrame,
    voxels: float,
    node_hours: float,
    metric: str = ACCURACY,
    minimize: bool = True,
    cost: str = COST,
    cost_error: float = 0.1,
    draws: int = 2000,
    seed: int = 0,
) -> BudgetPick:
    """The finished trial with the best metric that segments `voxels` within `node_hours`, with its uncertainty.

    cost: a column of node-hours per gigavoxel.  cost_error: relative standard error of that measurement (one timing of
    one box).  The metric's spread is that of configurations that were trained more than once (other seeds, other
    searches of the same space); without those, that of neighbours in the space, which is too large rather than too
    small; where too few have finished, either of trials that were stopped at a smaller budget.

    The probabilities are those of `draws` repetitions: every trial's value is drawn anew about its own, shrunk towards
    the mean by what the spread explains of the differences (empirical Bayes), its cost about the measured one.
    Deterministic in the seed.

    Raises AnalysisError where a number is not positive, a column is missing, or no trial is within the budget.
    """
    for name, value in (("voxels", voxels), ("node_hours", node_hours)):
        if not (math.isfinite(value) and value > 0):
            raise AnalysisError(f"{name} = {value}: expected a positive number")
    if cost_error < 0 or draws < 1:
        raise AnalysisError(f"cost_error = {cost_error}, draws = {draws}: expected no negative error and some draws")
    bound = node_hours / (voxels / 1e9)
    trials = finished(table, metric, cost)
    try:
        row = select(table, metric, minimize, cost, bound)
    except AnalysisError as error:
        cheapest = float(trials[cost].min()) if len(trials) else math.nan
        said = f"; for {voxels:.3g} voxels it takes {cheapest * voxels / 1e9:.4g} node-hours" if len(trials) else ""
        raise AnalysisError(f"{error}{said}") from error
    spread, origin = _spread(table, trials, metric, minimize)
    reachable = trials[trials[cost] <= bound * math.exp(4 * cost_error)]
    reachable = reachable.sort_values(metric, ascending=minimize, kind="stable")
    reachable = pd.concat([reachable.loc[[row.name]], reachable.drop(index=row.name)]).head(_CANDIDATES)
    shrinking, centre = _shrinking(trials[trials[cost] <= bound][metric], spread)
    chances = np.full(len(reachable), math.nan)
    if not math.isnan(spread):
        values = centre + shrinking * (reachable[metric].to_numpy(np.float64) - centre)
        scatter = spread * math.sqrt(shrinking) if shrinking else 1.0  # all alike: any error, to part them by chance
        costs = reachable[cost].to_numpy(np.float64)
        chances = _chances(-values if minimize else values, scatter, costs / bound, cost_error, draws, seed)
    return BudgetPick(
        row=row,
        cost_bound=bound,
        node_hours=float(row[cost] * voxels / 1e9),
        chance_within=_chance_within(float(row[cost]) / bound, cost_error),
        chance_best=float(chances[0]),
        expected=float(centre + shrinking * (row[metric] - centre)) if not math.isnan(spread) else math.nan,
        spread=spread,
        spread_from=origin,
        rivals=_rivals(reachable, chances, metric, cost),
    )


def _spread(table: pd.DataFrame, trials: pd.DataFrame, metric: str, minimize: bool) -> tuple[float, str]:
    """That of the finished trials; where they are too few, of the largest budget that enough trials had."""
    spread, origin = metric_spread(trials, metric, minimize)
    if not math.isnan(spread) or "m:budget" not in table:
        return spread, origin
    valued = table[table["job_status"].isin(("DONE", "STOPPED")) & np.isfinite(table[metric])]
    for budget, stopped in sorted(valued.groupby("m:budget"), key=lambda group: -float(group[0])):
        spread, from_where = metric_spread(stopped, metric, minimize)
        if not math.isnan(spread):
            return spread, f"{from_where}, at a budget of {budget:,.0f}"
    return math.nan, origin


def metric_spread(trials: pd.DataFrame, metric: str, minimize: bool = True) -> tuple[float, str]:
    """Standard deviation of the metric of one configuration from training to training, and where it is from, in words.

    NaN where neither repeated configurations nor enough neighbours say it.
    """
    names = [name for name in trials.columns if name.startswith("p:")]
    if names:
        groups = trials[metric].groupby([trials[name].astype(str) for name in names])
        excess = int((groups.size() - 1).sum())
        if excess >= _FEWEST_REPEATED:
            deviations = trials[metric] - groups.transform("mean")
            repeated = int((groups.size() > 1).sum())
            return float(np.sqrt((deviations**2).sum() / excess)), f"{repeated} configurations trained more than once"
    varied = varied_hyperparameters(trials)
    better = trials.sort_values(metric, ascending=minimize, kind="stable").head(
        max(_FEWEST_NEIGHBOURS, len(trials) // 2)
    )
    if not varied or len(better) < _FEWEST_NEIGHBOURS:
        return math.nan, "the table holds too few trials to say how much the metric scatters"
    better = better.head(1000)
    unit = np.column_stack([_unit(trials[name])[trials.index.get_indexer(better.index)] for name in varied])
    distance = ((unit[:, None, :] - unit[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    values = better[metric].to_numpy(np.float64)
    differences = np.abs(values - values[distance.argmin(axis=1)])
    # Of two values with the same spread the difference has sqrt(2) of it; 1.4826 makes a median a standard deviation.
    return float(1.4826 * np.median(differences) / math.sqrt(2)), "neighbouring configurations, an upper estimate"


def _unit(values: pd.Series) -> NDArray[np.float64]:
    """Ranks of a hyperparameter's values from 0 to 1, whatever its scale."""
    _, places = np.unique(encode(values), return_inverse=True)
    return places / max(1, int(places.max()))


def _shrinking(values: pd.Series, spread: float) -> tuple[float, float]:
    """Share of the differences between trials that is theirs and not the spread's, and the mean they shrink to."""
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    if math.isnan(spread):
        return math.nan, math.nan
    return (max(0.0, 1 - spread**2 / variance) if variance > 0 else 1.0), float(values.mean())


def _chances(
    values: NDArray[np.float64], error: float, costs: NDArray[np.float64], cost_error: float, draws: int, seed: int
) -> NDArray[np.float64]:
    """How often each is the best of those within the budget; values: the larger the better, costs: of the budget 1."""
    rng = np.random.default_rng(seed)
    drawn = values + error * rng.standard_normal((draws, len(values)))
    within = costs * np.exp(cost_error * rng.standard_normal((draws, len(values)))) <= 1
    drawn[~within] = -np.inf
    winners = np.bincount(drawn.argmax(axis=1)[within.any(axis=1)], minlength=len(values))
    return winners / draws


def _chance_within(cost: float, error: float) -> float:
    """Probability that a cost (of the budget 1) with that relative error is within it."""
    if error == 0:
        return float(cost <= 1)
    return 0.5 * (1 + math.erf(-math.log(cost) / error / math.sqrt(2))) if cost > 0 else 1.0


def _rivals(trials: pd.DataFrame, chances: NDArray[np.float64], metric: str, cost: str) -> pd.DataFrame:
    shown = trials[["campaign", "search", "trial", metric, cost]].assign(chance=chances)
    if np.isnan(chances).all():
        return shown.iloc[:1].reset_index(drop=True)
    shown = shown.sort_values("chance", ascending=False, kind="stable", ignore_index=True)
    needed = int(np.searchsorted(shown["chance"].cumsum(), 0.9 * shown["chance"].sum())) + 1
    return shown.head(needed)
