"""Tables of the report: text that is ready to be shown, with the trivial answers in every table of accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.budget import BudgetPick
from analysis.columns import is_objective, label

TRIVIAL_NAMES = {
    "one_object": "everything one object",
    "nothing": "nothing segmented",
    "threshold": "components of a threshold",
}

ZERO_NOTE = (
    "Voxels without truth (membranes, unlabelled) are left out. In VI and Rand error all voxels without an object "
    "count as one segment, so that “nothing segmented” scores as “everything one object”; the filled share and the "
    "number of objects tell them apart. VI and Rand error: lower is better."
)

SCORES = ("vi", "vi_split", "vi_merge", "adapted_rand_error", "filled_fraction", "objects")
LARGEST_TABLE, MOST_RIVALS = 40, 10
LONGEST_MESSAGE = 300

Scores = Mapping[str, float]


@dataclass(frozen=True)
class AccuracyTable:
    """Segmentations of one box beside the trivial answers there.

    Attributes:
        answers: name -> scores (fields of the evaluation's Scores), the model first.
        trivial: one_object, nothing, threshold -> scores.  There is no accuracy table without them.
        box: which voxels, in words.
    """

    answers: Mapping[str, Scores]
    trivial: Mapping[str, Scores]
    box: str = ""


@dataclass(frozen=True)
class Row:
    """Cells of one row.

    Attributes:
        kind: selected, failed, trivial or empty.
        title: shows when the mouse rests on the row.
        span: how many columns the first cell takes.
    """

    cells: tuple[str, ...]
    kind: str = ""
    title: str = ""
    span: int = 1


@dataclass(frozen=True)
class Table:
    """Heads, rows, and sentences below."""

    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())


def trials_table(
    table: pd.DataFrame,
    selected: pd.Series | None,
    metric: str,
    minimize: bool,
    cost: str,
    trivial: Mapping[str, Scores],
) -> Table:
    """Trials from the best to the worst, those without a value last, and the trivial answers below.

    Trials that were stopped come below the finished ones, whatever their values: those are of smaller budgets.
    """
    known = table.assign(
        _stopped=(table["job_status"] == "STOPPED") & _key(table, metric, minimize).notna(),
        _rung=-table["m:rung"] if "m:rung" in table else 0.0,
        _key=_key(table, metric, minimize),
        _valued=_key(table, metric, minimize).isna(),
    ).sort_values(["_valued", "_stopped", "_rung", "_key", "search", "trial"], kind="stable", na_position="last")
    varied, constant = _hyperparameters(table)
    objectives = [name for name in table.columns if is_objective(name) and table[name].notna().any()]
    measured = dict.fromkeys(
        (
            metric, "m:vi", "m:vi_split", "m:vi_merge", "m:adapted_rand_error", "m:f1", cost,
            *(objectives if len(objectives) > 1 else ()), "m:budget", "m:wall_seconds",
        )
    )  # fmt: skip
    columns = [name for name in measured if name in table and table[name].notna().any()]
    several = table["search"].nunique() > 1
    heads = (*(("search",) if several else ()), "trial", "state", *(label(c) for c in (*varied, *columns)))
    rows = []
    for index, values in known.head(LARGEST_TABLE).iterrows():
        chosen = selected is not None and index == selected.name
        failed = values["job_status"] == "FAILED"
        state = f"failed: {text(values.get('m:failure'))}" if failed else str(values["job_status"]).lower()
        first = ((str(values["search"]),) if several else ()) + (str(values["trial"]), "selected" if chosen else state)
        message = values.get("m:failure_message")
        rows.append(
            Row(
                (*first, *(text(values[c]) for c in (*varied, *columns))),
                "selected" if chosen else "failed" if failed else "",
                message if isinstance(message, str) else "",
            )
        )
    for name, scores in trivial.items():
        shown = (text(scores.get(c.removeprefix("m:"))) if c.startswith("m:") else MISSING for c in columns)
        cells = ("" if cell == MISSING else cell for cell in shown)
        rows.append(Row((TRIVIAL_NAMES.get(name, name), *cells), "trivial", span=len(heads) - len(columns)))
    notes = []
    if len(known) > LARGEST_TABLE:
        notes.append(f"The best {LARGEST_TABLE} of {len(known)} trials; the results table holds all.")
    if constant:
        said = ", ".join(f"{label(name)} {text(value)}" for name, value in constant.items())
        notes.append(f"The same in all trials: {said}.")
    return Table(heads, tuple(rows), tuple(notes))


def accuracy_table(accuracy: AccuracyTable) -> Table:
    """Answers and trivial answers, one row each."""
    heads = ("", *(label(f"m:{name}") for name in SCORES))
    rows = []
    for kind, answers in (("selected", accuracy.answers), ("trivial", accuracy.trivial)):
        for name, scores in answers.items():
            shown = TRIVIAL_NAMES.get(name, name) if kind == "trivial" else name
            rows.append(Row((shown, *(text(scores.get(score)) for score in SCORES)), kind))
    return Table(heads, tuple(rows))


def verdict(accuracy: AccuracyTable) -> str:
    """Whether the first answer is better than every trivial one, in a sentence that follows from the numbers."""
    if not accuracy.answers or not accuracy.trivial:
        return ""
    name, scores = next(iter(accuracy.answers.items()))
    said = []
    for metric in ("vi", "adapted_rand_error"):
        best = min(accuracy.trivial, key=lambda trivial: accuracy.trivial[trivial][metric])
        bar = accuracy.trivial[best][metric]
        beats = scores[metric] < bar
        said.append(
            f"{'beats' if beats else 'does not beat'} the best trivial answer in {label(f'm:{metric}')}: "
            f"{text(scores[metric])} against {text(bar)} ({TRIVIAL_NAMES.get(best, best)})"
        )
    return f"{name[:1].upper()}{name[1:]} {said[0]}; it {said[1]}."


def count_states(table: pd.DataFrame) -> str:
    """How many trials ended in which way, in words."""
    states = table["job_status"].value_counts()
    parts = [f"{states.get('DONE', 0)} of {len(table)} trials gave a result"]
    if stopped := states.get("STOPPED", 0):
        parts.append(f"{stopped} stopped at a smaller budget")
    if open_ones := len(table) - sum(states.get(state, 0) for state in ("DONE", "STOPPED", "FAILED")):
        parts.append(f"{open_ones} not ended")
    for kind, count in table["m:failure"].value_counts().sort_index().items():
        parts.append(f"{count} failed ({kind})")
    return ", ".join(parts)


def failures_table(table: pd.DataFrame) -> Table | None:
    """One row a kind of failure: how many trials, and what the first of them said; None without failures."""
    failed = table[table["m:failure"].notna()]
    rows = []
    for kind, trials in failed.groupby("m:failure"):
        first = trials.iloc[0]
        said = first.get("m:failure_message")
        example = f"trial {first['trial']}: {said}" if isinstance(said, str) else f"trial {first['trial']}"
        short = example if len(example) <= LONGEST_MESSAGE else example[: LONGEST_MESSAGE - 1] + "…"
        rows.append(Row((str(kind).replace("_", " "), text(len(trials)), short), "failed"))
    return Table(("failure", "trials", "the first"), tuple(rows)) if rows else None


def pick_table(pick: BudgetPick, metric: str, cost: str) -> Table:
    """The pick and the trials that could as well be the best within the budget, and what is known of the choice."""
    heads = ("trial", label(metric), label(cost), "chance of being the best")
    several = pick.rivals["search"].nunique() > 1
    rows = []
    for _, rival in pick.rivals.head(MOST_RIVALS).iterrows():
        chosen = (rival["search"], rival["trial"]) == (pick.row["search"], pick.row["trial"])
        name = f"{rival['search']}, {rival['trial']}" if several else str(rival["trial"])
        chance = MISSING if math.isnan(rival["chance"]) else f"{rival['chance']:.0%}"
        rows.append(Row((name, text(rival[metric]), text(rival[cost]), chance), "selected" if chosen else ""))
    left = len(pick.rivals) - len(rows)
    more = (f"{left} further trials share in nine tenths of the probability.",) if left else ()
    return Table(heads, tuple(rows), (*more, pick.sentence(label(metric))))


def named_values(trivial: Mapping[str, Scores], metric: str) -> dict[str, float]:
    """Readable name -> value of the metric, for the trivial answers that have it."""
    key = metric.removeprefix("m:")
    return {TRIVIAL_NAMES.get(name, name): float(scores[key]) for name, scores in trivial.items() if key in scores}


MISSING = "–"


def text(value: Any) -> str:
    """A cell as text: three or four significant digits, thin spaces in large numbers, a dash for what is missing."""
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}".replace(",", "\u2009")
    if isinstance(value, float | np.floating):
        number = float(value)
        if abs(number) >= 1e7 or 0 < abs(number) < 0.1:
            return f"{number:.3g}"
        if abs(number) >= 100 or number.is_integer():
            return f"{number:,.0f}".replace(",", "\u2009")
        return f"{number:.3f}" if abs(number) < 10 else f"{number:.1f}"
    return str(value)


def _key(table: pd.DataFrame, metric: str, minimize: bool) -> pd.Series:
    if metric not in table:
        return pd.Series(np.nan, index=table.index)
    return table[metric] if minimize else -table[metric]


def _hyperparameters(table: pd.DataFrame) -> tuple[list[str], dict[str, Any]]:
    """The `p:` columns that vary, and the others with their one value."""
    names = [name for name in table.columns if name.startswith("p:")]
    varied = [name for name in names if table[name].astype(str).nunique(dropna=False) > 1 or len(table) == 1]
    return varied, {name: table[name].iloc[0] for name in names if name not in varied and len(table)}
