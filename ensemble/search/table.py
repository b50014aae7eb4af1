"""The results table of a campaign: one row a trial, columns as analysis/columns.py documents them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    TrialState.WAITING: "READY",
    TrialState.PAUSED: "PAUSED",
    TrialState.DONE: "DONE",
    TrialState.FAILED: "FAILED",
    TrialState.STOPPED: "STOPPED",
}


def campaign_table(campaign: Campaign) -> pd.DataFrame:
    """Every trial of every search of the campaign, in order of search and trial number."""
    import pandas as pd

    from ensemble.search.run import searches_of

    rows = [row for run in searches_of(campaign) for row in _rows(campaign, run.name, run.ledger())]
    return pd.DataFrame(rows)


def write_table(campaign: Campaign) -> Path:
    """Write the campaign's table as Parquet, atomically; returns its path."""
    write_atomically(campaign.table, table_bytes(campaign_table(campaign)))
    return campaign.table


def table_bytes(table: pd.DataFrame) -> bytes:
    """The table as Parquet.  A column of several types (choices like "auto" and 1) is written as text."""
    kinds = {name: {type(v) for v in table[name].dropna()} for name in table.columns if table[name].dtype == object}
    mixed = [name for name, found in kinds.items() if len(found) > 1 and not found <= {int, float}]
    texts = {name: table[name].map(lambda v: None if v is None or v != v else str(v)) for name in mixed}
    data: bytes = table.assign(**texts).to_parquet(index=False)
    return data


def _rows(campaign: Campaign, search: str, ledger: Ledger) -> Iterator[dict[str, Any]]:
    data = campaign.data
    data_hash = data.data_hash if data else None
    begun = ledger.begun or {}
    for trial in ledger.trials:
        yield {
            "campaign": campaign.name,
            "search": search,
            "trial": trial.number,
            **{f"p:{name}": value for name, value in trial.configuration.items()},
            **_objectives(trial, begun.get("objectives", ["objective"])),
            "job_status": STATUS[trial.state],
            **_rungs(trial, begun.get("rungs", [])),
            **_outcome(trial),
            **_cost(trial),
            "m:timestamp_submit": trial.submitted,
            "m:timestamp_gather": trial.ended,
            "m:data_hash": data_hash,
            "m:seed": campaign.plan.seed,
        }


def _objectives(trial: Trial, names: Sequence[str]) -> dict[str, Any]:
    values = trial.objectives or (None,) * len(names)
    if len(names) == 1:
        return {"objective": values[0]}
    return {f"objective_{i}": value for i, value in enumerate(values)}


def _rungs(trial: Trial, budgets: Sequence[int]) -> dict[str, Any]:
    """How far a trial of a search with rungs came, and what it had at each."""
    if not budgets:
        return {}
    last = trial.reports[-1].rung if trial.reports else None
    columns: dict[str, Any] = {
        "m:rung": last,
        "m:budget": None if last is None else budgets[last],
        "m:stopped": trial.reason or None,
    }
    for report in trial.reports:
        several = len(report.objectives) > 1
        for i, value in enumerate(report.objectives):
            columns[f"m:objective_{i}_rung_{report.rung}" if several else f"m:objective_rung_{report.rung}"] = value
    return columns


def _outcome(trial: Trial) -> dict[str, Any]:
    """How its last job ended, and what the last one that gave a result measured."""
    outcome = trial.outcome
    if outcome is None:
        return {}
    columns: dict[str, Any] = {
        "job_id": outcome.job_id,
        "attempt": trial.starts,
        "m:failure": trial.failure.value if trial.failure else None,
        "m:failure_message": (outcome.message or None) if trial.failure else None,
    }
    if trial.failure or not trial.reports:
        return columns
    record = trial.reports[-1].outcome.record
    assert record is not None
    result = record["result"]
    columns |= {f"m:{name}": value for name, value in _measured(result)}
    if result.get("voxels_per_second"):
        columns["m:node_hours_per_gigavoxel"] = 1e9 / result["voxels_per_second"] / 3600
    return columns | {
        "m:code_version": record.get("code_version"),
        "m:configuration_hash": record.get("configuration_hash"),
    }


def _cost(trial: Trial) -> dict[str, Any]:
    """What the jobs that gave a result cost, all rungs together; the machine does not say what it ended has cost."""
    records = [report.outcome.record for report in trial.reports if report.outcome.record]
    if trial.failure and trial.outcome and trial.outcome.record:
        records.append(trial.outcome.record)  # a result whose objective could not be read
    if not records:
        return {}
    costs = [record["cost"] for record in records]
    wall = sum(cost["end"] - cost["start"] for cost in costs)
    return {
        "m:timestamp_start": costs[0]["start"],
        "m:timestamp_end": costs[-1]["end"],
        "m:wall_seconds": wall,
        "m:nodes": trial.nodes,
        "m:node_seconds": wall * trial.nodes,
        "m:runs": " ".join(f"{cost['start']:.3f}:{cost['end']:.3f}" for cost in costs),
        "m:cpu_seconds": sum(cost.get("cpu_seconds", 0.0) for cost in costs),
        "m:peak_memory_bytes": max(cost.get("peak_memory_bytes", 0) for cost in costs),
        "m:host": costs[-1]["host"],
    }


def _measured(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a stage measured: numbers, texts and truth values, those of its training and scores included."""
    for part in (result, result.get("training", {}), result.get("scores", {})):
        for name, value in part.items():
            if isinstance(value, bool | int | float | str):
                yield name, value
