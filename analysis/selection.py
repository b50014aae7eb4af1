"""Which trial to take: the best under a bound on cost, and the front of trials that none beats in both."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError

ACCURACY = "m:vi"
COST = "m:node_hours_per_gigavoxel"


def finished(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The trials that are DONE and have a finite number in each of the columns.

    Raises AnalysisError where a column is missing or does not hold numbers.
    """
    for name in columns:
        if name not in table or not pd.api.types.is_numeric_dtype(table[name]):
            numeric = [
                c for c in table.columns if c.startswith(("m:", "p:")) and pd.api.types.is_numeric_dtype(table[c])
            ]
            what = "is not a column of numbers" if name in table else "is not a column"
            raise AnalysisError(f"{name!r} {what} of this table; expected one of {', '.join(numeric) or 'none'}")
    done = table["job_status"] == "DONE"
    for name in columns:
        done &= np.isfinite(table[name].astype("float64"))
    return table[done]


def select(
    table: pd.DataFrame,
    metric: str = ACCURACY,
    minimize: bool = True,
    cost: str = COST,
    cost_bound: float | None = None,
) -> pd.Series:
    """The row of the finished trial with the best metric whose cost is at most the bound.

    Of equally good trials the cheaper is taken, then the one that comes first by campaign, search and trial.
    Raises AnalysisError where a column is missing, no trial has finished, or none is within the bound: the message
    names the cheapest.
    """
    trials = finished(table, metric) if cost_bound is None else finished(table, metric, cost)
    if trials.empty:
        raise AnalysisError(f"no finished trial has a value of {metric}: {_states(table)}")
    if cost_bound is not None:
        within = trials[trials[cost] <= cost_bound]
        if within.empty:
            row = _identity_order(trials, [cost]).iloc[0]
            raise AnalysisError(
                f"no finished trial has {cost} <= {cost_bound:g}; the cheapest is trial {row['trial']} of search "
                f"{row['search']!r} with {row[cost]:.4g} ({metric} = {row[metric]:.4g}): raise the bound to that, or "
                "search smaller networks"
            )
        trials = within
    return _ordered(trials, metric, minimize, cost).iloc[0]


def pareto_front(table: pd.DataFrame, metric: str = ACCURACY, cost: str = COST, minimize: bool = True) -> pd.DataFrame:
    """The finished trials that no other beats in metric and cost at once, from the cheapest to the most accurate."""
    trials = finished(table, metric, cost)
    key = trials[metric] if minimize else -trials[metric]
    order = _identity_order(trials.assign(_key=key), [cost, "_key"]).index
    best, front = np.inf, []
    for index in order:
        if key[index] < best:
            best = key[index]
            front.append(index)
    return trials.loc[front]


def _ordered(trials: pd.DataFrame, metric: str, minimize: bool, cost: str) -> pd.DataFrame:
    """Best first."""
    key = trials[metric] if minimize else -trials[metric]
    if cost not in trials:
        return trials.loc[_identity_order(trials.assign(_key=key), ["_key"]).index]
    return trials.loc[_identity_order(trials.assign(_key=key), ["_key", cost]).index]


def _identity_order(trials: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return trials.sort_values([*columns, "campaign", "search", "trial"], kind="stable", na_position="last")


def _states(table: pd.DataFrame) -> str:
    if table.empty:
        return "the table is empty"
    counts = table["job_status"].value_counts()
    failures = table["m:failure"].value_counts() if "m:failure" in table else pd.Series(dtype=int)
    said = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    why = ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items()))
    return f"of {len(table)} trials {said}" + (f" (failures: {why})" if why else "")
