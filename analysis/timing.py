"""When trials ran: the processes behind a table's rows, how busy they kept the workers, and what that was spent on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError

START, END, RUNS = "m:timestamp_start", "m:timestamp_end", "m:runs"


def runs(table: pd.DataFrame) -> pd.DataFrame:
    """Every process of every trial, by start: columns start and end (s), nodes, trial, job_status, and row (its index).

    A trial has several where it went through rungs or was started again; all but its last count as DONE.
    Raises AnalysisError where `m:runs` does not hold pairs of numbers.
    """
    rows: list[tuple[float, float, float, int, str, object]] = []
    empty = pd.Series(np.nan, index=table.index)
    nodes = table.get("m:nodes", empty).fillna(1.0)
    starts, ends = table.get(START, empty), table.get(END, empty)
    several = table.get(RUNS, empty.astype(object))
    columns = (table.index, several, starts, ends, nodes, table["trial"], table["job_status"])
    for index, text, start, end, held, trial, state in zip(*columns, strict=True):
        spans = _spans(text) if isinstance(text, str) else [(start, end)] if start == start and end == end else []
        for place, (begin, stop) in enumerate(spans, start=1):
            rows.append((begin, stop, held, trial, state if place == len(spans) else "DONE", index))
    found = pd.DataFrame(rows, columns=["start", "end", "nodes", "trial", "job_status", "row"])
    return found.sort_values(["start", "end", "trial"], kind="stable", ignore_index=True)


def _spans(text: str) -> list[tuple[float, float]]:
    try:
        pairs = [span.split(":") for span in text.split()]
        return [(float(begin), float(end)) for begin, end in pairs]
    except ValueError:
        raise AnalysisError(f"{RUNS} = {text[:40]!r}: expected start:end pairs, parted by spaces") from None


def busy_nodes(found: pd.DataFrame) -> pd.DataFrame:
    """How many nodes were busy from each second on: columns seconds (of the table's clock), nodes."""
    times = np.concatenate([found["start"], found["end"]])
    change = np.concatenate([found["nodes"], -found["nodes"]])
    steps = pd.DataFrame({"seconds": times, "nodes": change}).groupby("seconds", as_index=False).sum()
    return steps.assign(nodes=steps["nodes"].cumsum().round().astype("int64"))


def utilisation(table: pd.DataFrame, workers: int | None = None) -> float:
    """Busy worker-seconds over workers times the window from the first start to the last end; NaN without runs.

    A trial of several nodes occupies as many workers.  workers: by default as many as were busy at once at most.
    """
    found = runs(table)
    if found.empty:
        return float("nan")
    count = workers or int(busy_nodes(found)["nodes"].max())
    window = float(found["end"].max() - found["start"].min())
    busy = float(((found["end"] - found["start"]) * found["nodes"]).sum())
    return busy / (count * window) if window > 0 and count > 0 else float("nan")


def cost_by_outcome(table: pd.DataFrame) -> pd.DataFrame:
    """What the node time was spent on: columns outcome, trials, node_hours; full trials first, then rungs, failures.

    Trials that have not ended are left out; NaN where the table has no times for any trial of an outcome.
    """
    found = runs(table)
    measured = ((found["end"] - found["start"]) * found["nodes"]).groupby(found["row"]).sum().reindex(table.index)
    seconds = table.get("m:node_seconds", measured).fillna(measured)
    outcome = pd.Series(None, index=table.index, dtype=object)
    outcome[table["job_status"] == "DONE"] = "done"
    stopped = table["job_status"] == "STOPPED"
    rung = table["m:rung"] if "m:rung" in table else pd.Series(np.nan, index=table.index)
    outcome[stopped] = rung[stopped].map(lambda r: "stopped" if r != r else f"stopped at rung {r:.0f}")
    failed = table["job_status"] == "FAILED"
    outcome[failed] = table.loc[failed, "m:failure"].map(lambda kind: f"failed: {kind}" if kind == kind else "failed")
    groups = seconds.groupby(outcome)
    costs = pd.DataFrame({"trials": groups.size(), "node_hours": groups.sum(min_count=1) / 3600})
    kinds = {"done": 0, "stop": 1, "fail": 2}
    order = sorted(costs.index, key=lambda name: (kinds[name[:4]], name))
    return costs.loc[order].rename_axis("outcome").reset_index()
