"""From a campaign's table to a registered model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from apps.core.errors import ParameterError, StateError
from ensemble.campaigns import Campaign
from ensemble.models import CHAMPION, Model, register_model
from ensemble.search.driver import SearchRun
from ensemble.search.ledger import Trial
from ensemble.search.table import write_table


@dataclass(frozen=True)
class Selection:
    """A selected trial: its row of the table (plain values), and a sentence on why it was selected."""

    row: dict[str, Any]
    reason: str


def select_trial(campaign: Campaign, metric: str, minimize: bool, cost: str, cost_bound: float | None) -> Selection:
    """The best trial by `metric` whose `cost` is within the bound, among those that segmented any object.

    Raises StateError where there are no finished trials, ParameterError where a column is missing or no trial is within
    the bound (the message names the cheapest).
    """
    table = useful_trials(analysis.load_results(write_table(campaign)))
    try:
        row = analysis.select(table, metric=metric, minimize=minimize, cost=cost, cost_bound=cost_bound)
    except analysis.AnalysisError as error:
        raise ParameterError(f"campaign {campaign.name}: {error}") from error
    bound = "no bound on the cost" if cost_bound is None else f"{cost} <= {cost_bound:.4g}"
    best = "smallest" if minimize else "largest"
    reason = (
        f"trial {row['trial']} of search {row['search']}: {best} {metric} = {row[metric]:.4g} of "
        f"{int(table[metric].notna().sum())} finished trials with {bound}"
    )
    if cost in row:
        reason += f"; its {cost} = {row[cost]:.4g}"
    return Selection({str(name): plain(value) for name, value in row.items()}, reason)


def useful_trials(table: pd.DataFrame) -> pd.DataFrame:
    """The trials that segmented any object, or all where none did.

    A model that segments nothing can have the smaller variation of information, and is of no use.
    """
    useful = table["m:objects"] > 0 if "m:objects" in table else pd.Series(False, index=table.index)
    return table[useful] if useful.any() else table


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
        alias=alias,
    )


def selected_trial(campaign: Campaign, selection: Selection) -> Trial:
    """The trial that a row stands for."""
    ledger = SearchRun(campaign, str(selection.row["search"])).ledger()
    return ledger.trials[int(selection.row["trial"])]


def plain(value: Any) -> Any:
    """A table's cell as JSON: numpy scalars unpacked, missing values as None."""
    value = value.item() if hasattr(value, "item") else value
    return None if value is None or value != value else value
