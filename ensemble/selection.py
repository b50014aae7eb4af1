"""From a campaign's table to a registered model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from apps.core.errors import ParameterError, StateError
from ensemble.campaigns import Campaign
from ensemble.models import CHAMPION, Model, register_model
from ensemble.search.ledger import Trial
from ensemble.search.run import SearchRun
from ensemble.search.table import write_table
from ensemble.viewing.stores import REPORT_FILE


@dataclass(frozen=True)
class Budget:
    """A volume to be segmented, and the node-hours that there are for it.

    Attributes:
        volume_mm3: the volume in mm^3.
        voxel_size_nm: of the data to be segmented, zyx, in nm.
        node_hours: what may be spent on it.
    Raises ParameterError where a number is not positive.
    """

    volume_mm3: float
    voxel_size_nm: tuple[float, float, float]
    node_hours: float

    def __post_init__(self) -> None:
        try:
            analysis.voxels_in(self.volume_mm3, self.voxel_size_nm)
        except analysis.AnalysisError as error:
            raise ParameterError(str(error)) from error
        if not (math.isfinite(self.node_hours) and self.node_hours > 0):
            raise ParameterError(f"a budget of {self.node_hours} node-hours: expected a positive number")

    @property
    def voxels(self) -> float:
        return analysis.voxels_in(self.volume_mm3, self.voxel_size_nm)

    def __str__(self) -> str:
        size = "x".join(f"{nm:g}" for nm in self.voxel_size_nm)
        return f"{self.volume_mm3:g} mm^3 at {size} nm (zyx) within {self.node_hours:g} node-hours"


@dataclass(frozen=True)
class Selection:
    """A selected trial.

    Attributes:
        row: its row of the table, as plain values.
        reason: a sentence on why it was selected.
        pick: where it was selected for a budget: how sure that is.
    """

    row: dict[str, Any]
    reason: str
    pick: analysis.BudgetPick | None = None


def select_trial(
    campaign: Campaign,
    metric: str,
    minimize: bool,
    cost: str,
    cost_bound: float | None,
    budget: Budget | None = None,
) -> Selection:
    """The best trial by `metric` whose `cost` is within the bound, among those that segmented any object.

    With a budget instead of a bound, `cost` is one of node-hours per gigavoxel.
    Raises StateError where there are no finished trials, ParameterError where a column is missing, no trial is within
    the bound (the message names the cheapest), or a bound and a budget are given.
    """
    if cost_bound is not None and budget is not None:
        raise ParameterError("a bound on the cost and a budget: give one of them")
    trials = analysis.load_results(write_table(campaign))
    if trials.empty:
        raise no_trials(campaign)
    table, pick = useful_trials(trials), None
    try:
        if budget is None:
            row = analysis.select(table, metric=metric, minimize=minimize, cost=cost, cost_bound=cost_bound)
        else:
            pick = analysis.select_under_budget(table, budget.voxels, budget.node_hours, metric, minimize, cost)
            row = pick.row
    except analysis.AnalysisError as error:
        raise ParameterError(f"campaign {campaign.name}: {error}") from error
    bound = "no bound on the cost" if cost_bound is None else f"{cost} <= {cost_bound:.4g}"
    if pick is not None:
        bound = f"{budget}, which is {cost} <= {pick.cost_bound:.4g}"
    best = "smallest" if minimize else "largest"
    reason = (
        f"trial {row['trial']} of search {row['search']}: {best} {metric} = {row[metric]:.4g} of "
        f"{len(analysis.finished(table, metric))} finished trials with {bound}"
    )
    if cost in row:
        reason += f"; its {cost} = {row[cost]:.4g}"
    return Selection({str(name): plain(value) for name, value in row.items()}, reason, pick)


def no_trials(campaign: Campaign) -> StateError:
    """The error that says so, and of a pipeline's campaign, which has none, where its page is."""
    page = campaign.folder / REPORT_FILE
    what = f"its report is {page}, as its run left it" if page.is_file() else "run a search first"
    return StateError(f"campaign {campaign.name}: no trials yet; {what}")


def useful_trials(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the finished trials that segmented no object, where any other finished trial did.

    A model that segments nothing can have the smaller variation of information, and is of no use.
    """
    done = table["job_status"] == "DONE"
    useful = table["m:objects"] > 0 if "m:objects" in table else pd.Series(False, index=table.index)
    return table[~done | useful] if (done & useful).any() else table


def register_trial(
    home: Path, campaign: Campaign, selection: Selection, name: str, alias: str | None = CHAMPION
) -> Model:
    """Register the selected trial's checkpoint, with the settings its validation box was segmented with."""
    trial = selected_trial(campaign, selection)
    data = campaign.data
    if data is None or trial.outcome is None or trial.outcome.record is None:
        raise StateError(f"campaign {campaign.name}: trial {trial.number} has no record; run the search first")
    result = trial.outcome.record["result"]
    return register_model(
        home,
        name,
        Path(result["training"]["checkpoint"]),
        row=selection.row,
        reason=selection.reason,
        inference=result["inference"],
        normalisation=(data.image_mean, data.image_std),
        voxel_size_nm=data.voxel_size_nm,
        campaign=campaign.name,
        pointing=() if alias is None else (alias,),
    )


def selected_trial(campaign: Campaign, selection: Selection) -> Trial:
    """The trial that a row stands for."""
    ledger = SearchRun(campaign, str(selection.row["search"])).ledger()
    return ledger.trials[int(selection.row["trial"])]


def plain(value: Any) -> Any:
    """A table's cell as JSON: numpy scalars unpacked, missing values as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value
