"""The results table of a campaign: one row a trial, columns as analysis/columns.py documents them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.files import write_atomically
from ensemble.campaigns import Campaign
from ensemble.search.ledger import Ledger, Trial, TrialState

if TYPE_CHECKING:
    import pandas as pd

STATUS = {
    TrialState.SUGGESTED: "READY",
    TrialState.SUBMITTED: "RUNNING",
    TrialState.DONE: "DONE",
    TrialState.FAILED: "FAILED",
}


def campaign_table(campaign: Campaign) -> pd.DataFrame:
    """Every trial of every search of the campaign, in order of search and trial number."""
    import pandas as pd

    from ensemble.search.driver import searches_of

    rows = [row for run in searches_of(campaign) for row in _rows(campaign, run.name, run.ledger())]
    return pd.DataFrame(rows)


def write_table(campaign: Campaign) -> Path:
    """Write the campaign's table as Parquet, atomically; returns its path."""
    write_atomically(campaign.table, table_bytes(campaign_table(campaign)))
    return campaign.table


def table_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet.  A column of several types (choices like "auto" and 1) is written as text."""
    mixed = [name for name in table.columns if len({type(v) for v in table[name].dropna()} - {bool}) > 1]
    plain = [name for name in mixed if not {type(v) for v in table[name].dropna()} <= {int, float}]
    texts = {name: table[name].map(lambda v: None if v is None or v != v else str(v)) for name in plain}
    data: bytes = table.assign(**texts).to_parquet(index=False)
    return data


def _rows(campaign: Campaign, search: str, ledger: Ledger) -> Iterator[dict[str, Any]]:
    data = campaign.data
    data_hash = data.data_hash if data else None
    for trial in ledger.trials:
        yield {
            "campaign": campaign.name,
            "search": search,
            "trial": trial.number,
            **{f"p:{name}": value for name, value in trial.configuration.items()},
            **_objectives(trial),
            "job_status": STATUS[trial.state],
            **_outcome(trial),
            "m:timestamp_submit": trial.submitted,
            "m:timestamp_gather": trial.ended,
            "m:data_hash": data_hash,
            "m:seed": campaign.plan.seed,
        }


def _objectives(trial: Trial) -> dict[str, Any]:
    if isinstance(trial.objective, tuple):
        return {f"objective_{i}": value for i, value in enumerate(trial.objective)}
    return {"objective": trial.objective}


def _outcome(trial: Trial) -> dict[str, Any]:
    outcome = trial.outcome
    if outcome is None:
        return {}
    columns: dict[str, Any] = {
        "job_id": outcome.job_id,
        "attempt": outcome.attempts,
        "m:failure": outcome.failure.value if outcome.failure else None,
        "m:failure_message": outcome.message or None,
    }
    if outcome.record is None:
        return columns
    cost = outcome.record["cost"]
    wall = cost["end"] - cost["start"]
    result = outcome.record["result"]
    columns |= {f"m:{name}": value for name, value in _measured(result)}
    if result.get("voxels_per_second"):
        columns["m:node_hours_per_gigavoxel"] = 1e9 / result["voxels_per_second"] / 3600
    return columns | {
        "m:timestamp_start": cost["start"],
        "m:timestamp_end": cost["end"],
        "m:wall_seconds": wall,
        "m:node_seconds": wall,  # a trial of today holds one node
        "m:cpu_seconds": cost["cpu_seconds"],
        "m:peak_memory_bytes": cost["peak_memory_bytes"],
        "m:host": cost["host"],
        "m:code_version": outcome.record["code_version"],
        "m:configuration_hash": outcome.record["configuration_hash"],
    }


def _measured(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a stage measured: numbers, texts and truth values, those of its training and scores included."""
    for part in (result, result.get("training", {}), result.get("scores", {})):
        for name, value in part.items():
            if isinstance(value, bool | int | float | str):
                yield name, value
