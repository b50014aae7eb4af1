"""The table of quality without ground truth: what each section of each step measured, and what its gate said.

One row is one measure of one section at one step of a workflow.  Columns:

- step, stage: name of the step in the workflow, and of the stage that it runs.
- section: its number.
- measure, value, unit, better ("higher" or "lower"), description: what was measured; all missing in the one row of a
  section that has nothing measured (it waits, or it failed).
- threshold, passed: the worst value that the gate lets pass, and what it said; missing where the gate has none.
- state: of the section at the step, the same in all its rows: one of `STATES`.
- faults: what the stage found wrong with the section, in words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.tables import text

COLUMNS = (
    "step", "stage", "section", "measure", "value", "unit", "better", "threshold", "passed", "state", "description",
    "faults",
)  # fmt: skip
STATES = ("passed", "held", "accepted", "failed", "absent", "waiting")
"""passed: its gate let it pass, or there is none; held: the gate stopped it; accepted: a person let it pass all the
same; failed: the stage has no result of it; absent: there is nothing of it to go on with (no image, or held by a step
before); waiting: not done yet."""

_WORDS = ("step", "stage", "measure", "unit", "better", "state", "description", "faults")
_ANSWERS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def load_quality_table(path: str | Path) -> pd.DataFrame:
    """Read the table from CSV; see `check_quality_table` for what comes out.

    Raises AnalysisError where the file is missing, is no CSV, or does not hold such a table.
    """
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"passed": str})
    except FileNotFoundError as error:
        raise AnalysisError(f"{path}: no such file; expected a table of quality") from error
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path}: cannot be read as CSV ({error}); expected a table of quality") from error
    try:
        return check_quality_table(table)
    except AnalysisError as error:
        raise AnalysisError(f"{path}: {error}") from error


def check_quality_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table in one form: columns as above, section int64, value and threshold float64, `passed` True, False or
    None, words str ("" for measure, unit, better, description, faults where missing), rows in their order.

    Raises AnalysisError where a column is missing, or a value is not of the kind that the column holds.
    """
    if missing := [name for name in COLUMNS if name not in table]:
        raise AnalysisError(f"a table without {', '.join(missing)}; expected the columns {', '.join(COLUMNS)}")
    found = table[list(COLUMNS)].reset_index(drop=True)
    for name in _WORDS:
        found[name] = found[name].astype(object).where(found[name].notna(), "").astype(str)
    for name in ("section", "value", "threshold"):
        try:
            found[name] = pd.to_numeric(found[name]).astype(np.float64)
        except (TypeError, ValueError) as error:
            raise AnalysisError(f"column {name}: {error}; expected numbers") from error
    if not found["section"].map(lambda value: value >= 0 and float(value).is_integer()).all():
        raise AnalysisError("column section: expected whole numbers from 0 on in all rows")
    found["section"] = found["section"].astype(np.int64)
    found["passed"] = pd.Series([_answer(value) for value in found["passed"]], index=found.index, dtype=object)
    _expect(found, "state", STATES)
    _expect(found[found["measure"] != ""], "better", ("higher", "lower"))
    again = found.duplicated(["step", "section", "measure"])
    if again.any():
        row = found[again].iloc[0]
        raise AnalysisError(f"step {row['step']}, section {row['section']}: {row['measure'] or 'no measure'!r} twice")
    differs = found.groupby(["step", "section"])["state"].transform("nunique") > 1
    if differs.any():
        row = found[differs].iloc[0]
        raise AnalysisError(f"step {row['step']}, section {row['section']}: more than one state; expected one")
    return found


def section_states(table: pd.DataFrame) -> pd.DataFrame:
    """One row a step and section, steps in the table's order, sections by number: step, stage, section, state, faults.

    `table` as `check_quality_table` gives it.
    """
    sections = table.drop_duplicates(["step", "section"])[["step", "stage", "section", "state", "faults"]]
    order = {step: place for place, step in enumerate(steps_of(table))}
    sections = sections.assign(_order=sections["step"].map(order)).sort_values(["_order", "section"], kind="stable")
    return sections.drop(columns="_order").reset_index(drop=True)


def steps_of(table: pd.DataFrame) -> list[str]:
    """Names of the steps, in the table's order."""
    return list(dict.fromkeys(table["step"]))


def count_states(table: pd.DataFrame) -> pd.DataFrame:
    """One row a step: step, stage, sections, and how many of them are in each of `STATES`."""
    sections = section_states(table)
    counts = pd.crosstab(sections["step"], sections["state"]).reindex(
        index=steps_of(table), columns=list(STATES), fill_value=0
    )
    stages = sections.drop_duplicates("step").set_index("step")["stage"]
    counts.insert(0, "sections", counts.sum(axis=1))
    counts.insert(0, "stage", stages.reindex(counts.index))
    return counts.rename_axis(index="step", columns=None).reset_index()


def hold_reasons(table: pd.DataFrame, states: Sequence[str] = ("held",)) -> pd.DataFrame:
    """Why sections are held: step, stage, section, state, measure, value, unit, threshold, better, reason (a sentence).

    One row a measure that did not pass; a section of which none is known has one row, with what the stage said of it.
    states: which sections, ("held", "accepted") for those too that a person let pass.
    """
    known = check_quality_table(table)
    names = ["step", "stage", "section", "state", "measure", "value", "unit", "threshold", "better"]
    wanted = known[known["state"].isin(states)]
    failing = wanted[wanted["passed"].eq(False)]
    told = pd.MultiIndex.from_frame(failing[["step", "section"]])
    rest = wanted[~pd.MultiIndex.from_frame(wanted[["step", "section"]]).isin(told)]
    rest = rest.drop_duplicates(["step", "section"]).assign(
        measure="", value=np.nan, unit="", threshold=np.nan, better=""
    )
    rows = pd.concat([failing, rest])
    order = {step: place for place, step in enumerate(steps_of(known))}
    rows = rows.assign(_order=rows["step"].map(order), reason=[_reason(row) for _, row in rows.iterrows()])
    rows = rows.sort_values(["_order", "section"], kind="stable")
    return rows[[*names, "reason"]].reset_index(drop=True)


def worst_sections(table: pd.DataFrame, step: str, count: int) -> list[int]:
    """Numbers of the sections of the step that are worst, the worst first; those with nothing measured are left out.

    Worst is what is worst in any measure: sections are ranked in each measure, and the highest of its ranks counts.
    Those that a gate held come first.
    """
    rows = table[(table["step"] == step) & (table["measure"] != "") & table["value"].notna()]
    if rows.empty:
        return []
    badness = rows["value"].where(rows["better"] == "lower", -rows["value"])
    shares = badness.groupby(rows["measure"]).rank(pct=True)
    ranked = rows.assign(
        _held=rows["state"].isin(("held", "accepted")),
        _worst=shares.groupby(rows["section"]).transform("max"),
        _mean=shares.groupby(rows["section"]).transform("mean"),
    ).drop_duplicates("section")
    ranked = ranked.sort_values(["_held", "_worst", "_mean", "section"], ascending=[False, False, False, True])
    return [int(number) for number in ranked["section"].head(count)]


def rank_correlations(table: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Whether the measures tell good from bad sections, where the true errors are known (a phantom's).

    errors: columns step, section, error (any number that is larger for worse sections).
    Returns one row a step and measure: step, measure, correlation (Spearman's between error and badness: 1 where the
    measure puts the sections in the order of their errors, NaN where all values are alike or fewer than three are
    known), sections (how many both are known of).
    """
    if missing := {"step", "section", "error"} - set(errors.columns):
        raise AnalysisError(f"true errors without {', '.join(sorted(missing))}; expected step, section, error")
    both = join_errors(table, errors)
    rows = []
    for (step, measure), values in both.groupby(["step", "measure"], sort=False):
        badness = values["value"] if values["better"].iloc[0] == "lower" else -values["value"]
        told = len(values) > 2 and badness.nunique() > 1 and values["error"].nunique() > 1
        # Spearman's correlation is Pearson's of the ranks.
        found = float(np.corrcoef(badness.rank(), values["error"].rank())[0, 1]) if told else np.nan
        rows.append((step, measure, found, len(values)))
    return pd.DataFrame(rows, columns=["step", "measure", "correlation", "sections"])


def join_errors(table: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Rows of the table that have a value, with the true error of their section in a column `error`."""
    valued = table[(table["measure"] != "") & np.isfinite(table["value"])]
    known = errors[["step", "section", "error"]].dropna()
    return valued.merge(known, on=["step", "section"], how="inner", validate="many_to_one")


def runs_of(sections: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers, in order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(sections)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def named_sections(sections: Iterable[int], most: int = 12) -> str:
    """Numbers in words, runs of them as one: "3, 5–9 and 12 more"; `most` is of numbers and runs."""
    runs = runs_of(sections)
    said = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs[:most])
    left = sum(b - a + 1 for a, b in runs[most:])
    return f"{said} and {left} more" if left else said


def _reason(row: pd.Series) -> str:
    if not row["measure"]:
        return str(row["faults"]) or "held by the workflow; no measure of it failed"
    name = str(row["measure"]).replace("_", " ")
    unit = f" {row['unit']}" if row["unit"] else ""
    if np.isnan(row["threshold"]):
        return f"{name} did not pass"
    least = "at least" if row["better"] == "higher" else "at most"
    bound = f"its gate wants {least} {text(row['threshold'])}{unit}"
    if np.isnan(row["value"]):
        return f"{name} could not be measured; {bound}"
    return f"{name} is {text(row['value'])}{unit}; {bound}"


def _answer(value: Any) -> bool | None:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    answer = _ANSWERS.get(str(value).strip().lower().removesuffix(".0"))
    if answer is None:
        raise AnalysisError(f"column passed: {value!r}; expected true, false or nothing")
    return answer


def _expect(table: pd.DataFrame, column: str, allowed: Sequence[str]) -> None:
    wrong = table[~table[column].isin(allowed)]
    if len(wrong):
        row = wrong.iloc[0]
        raise AnalysisError(
            f"step {row['step']}, section {row['section']}: {column} {row[column]!r}; expected {', '.join(allowed)}"
        )
