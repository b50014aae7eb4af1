"""Loading results tables: our Parquet, and the CSV that DeepHyper writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from analysis.columns import COLUMNS, REQUIRED, is_objective
from analysis.errors import AnalysisError

FILES = ("results.parquet", "results.csv")
CURVE_COLUMNS = ("step", "loss", "accuracy", "precision", "recall", "f1", "seconds")
_IDENTITY = ["campaign", "search", "trial"]


def load_results(source: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Read one results table, or several into one.

    source: a Parquet or CSV file; a folder that holds results.parquet (or results.csv), itself or in its subfolders; or
        a list of those.
    Returns one row a trial, columns typed as `analysis.COLUMNS` says, ordered by campaign, search and trial.  Rows of
        failed trials have objective NaN and their kind in m:failure, however the file spelled it.  Columns that are not
        documented are kept as they are.
    Raises AnalysisError where there is no table, it is not one of trials, a number is not a number, or a trial occurs
        twice.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    files = [file for item in sources for file in _files(Path(item))]
    if not files:
        raise AnalysisError("no results table is given; give a results.parquet, a results.csv or a folder with one")
    tables = [_typed(_read(file), file) for file in files]
    table = pd.concat([t for t in tables if len(t)] or tables[:1], ignore_index=True)
    twice = table.duplicated(_IDENTITY)
    if twice.any():
        row = table[twice].iloc[0]
        raise AnalysisError(
            f"trial {row['trial']} of search {row['search']!r}, campaign {row['campaign']!r}, occurs twice in "
            f"{', '.join(map(str, files))}; give each table once"
        )
    return table.sort_values(_IDENTITY, kind="stable", ignore_index=True)


def load_curves(table: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The learning curves of the trials in `table` whose m:curves file is there: index of the row -> curves.

    Raises AnalysisError where a file is not one of learning curves.
    """
    curves: dict[int, pd.DataFrame] = {}
    if "m:curves" not in table:
        return curves
    for index, path in table["m:curves"].dropna().items():
        if not Path(path).is_file():
            continue
        try:
            found = pd.read_csv(path)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise AnalysisError(f"{path}: is not a CSV file of learning curves ({error})") from error
        if not {"step", "loss"} <= set(found.columns):
            raise AnalysisError(
                f"{path}: has the columns {', '.join(map(str, found.columns))}; expected {', '.join(CURVE_COLUMNS)}"
            )
        curves[cast(int, index)] = found
    return curves


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise AnalysisError(f"{path}: no such file or folder; expected a results table (Parquet or CSV)")
    for name in FILES:
        if (path / name).is_file():
            return [path / name]
    below = sorted({file.parent for name in FILES for file in path.rglob(name)})
    if not below:
        raise AnalysisError(f"{path}: holds no {' or '.join(FILES)}; give the folder of a campaign or search")
    return [file for folder in below for file in _files(folder)]


def _read(file: Path) -> pd.DataFrame:
    try:
        if file.suffix == ".csv":
            return pd.read_csv(file)
        return pd.read_parquet(file)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError, pd.errors.ParserError) as error:
        kind = "CSV" if file.suffix == ".csv" else "Parquet"
        raise AnalysisError(f"{file}: cannot be read as {kind} ({error})") from error


def _typed(raw: pd.DataFrame, file: Path) -> pd.DataFrame:
    table = raw.copy()
    table.columns = pd.Index([str(name) for name in table.columns])
    objectives = [name for name in table.columns if is_objective(name)]
    if len(table.columns) and not objectives and "job_status" not in table:
        raise AnalysisError(
            f"{file}: has neither objective nor job_status among its columns {', '.join(table.columns[:8])}; expected "
            "a results table of a search"
        )
    _fill_identity(table, file)
    _split_failures(table, objectives, file)
    for name in REQUIRED:
        if name not in table:
            table[name] = pd.Series(np.nan, index=table.index)
    for name, column in COLUMNS.items():
        if name not in table:
            continue
        if column.kind == "text":
            table[name] = _texts(table[name])
        elif column.kind == "yes/no":
            table[name] = table[name].astype(object).where(table[name].notna(), None)
        else:
            table[name] = _numbers(table[name], file)
            if column.kind == "whole":
                table[name] = _whole(table[name], file)
    return table


def _fill_identity(table: pd.DataFrame, file: Path) -> None:
    """DeepHyper's CSV knows neither campaign nor search: the search is named after the folder it lies in."""
    for name, value in (("campaign", ""), ("search", file.resolve().parent.name)):
        if name not in table:
            table[name] = pd.Series(value, index=table.index, dtype="str")
    if "trial" not in table:
        numbers = pd.to_numeric(table["job_id"], errors="coerce") if "job_id" in table else None
        usable = numbers is not None and numbers.notna().all() and numbers.is_unique
        table["trial"] = numbers if usable else np.arange(len(table))


def _split_failures(table: pd.DataFrame, objectives: list[str], file: Path) -> None:
    """Turn `F_<kind>` objectives into NaN and m:failure; one such row makes pandas read the whole column as text."""
    failure = table["m:failure"].astype(object) if "m:failure" in table else pd.Series(None, table.index, dtype=object)
    for name in objectives:
        if pd.api.types.is_numeric_dtype(table[name]):
            continue
        text = table[name].astype(object)
        failed = text.map(lambda value: isinstance(value, str) and value.startswith("F"))
        kinds = text[failed].map(lambda value: value[1:].lstrip("_") or "unknown")
        failure = failure.where(failure.notna() | ~failed, kinds.reindex(table.index))
        table[name] = _numbers(text.where(~failed, None), file)
    table["m:failure"] = failure
    if "job_status" not in table:
        done = table[objectives].notna().all(axis=1) if objectives else pd.Series(False, index=table.index)
        table["job_status"] = np.where(failure.notna(), "FAILED", np.where(done, "DONE", "RUNNING"))
    elif len(table):
        # DeepHyper calls a job DONE that returned "F..."; here a failure is one.
        table["job_status"] = table["job_status"].astype(object).where(failure.isna(), "FAILED")


def _numbers(values: pd.Series, file: Path) -> pd.Series:
    try:
        return pd.to_numeric(values).astype("float64")
    except (ValueError, TypeError):
        wrong = values[pd.to_numeric(values, errors="coerce").isna() & values.notna()].iloc[0]
        raise AnalysisError(f"{file}: column {values.name} holds {wrong!r}; expected numbers") from None


def _whole(values: pd.Series, file: Path) -> pd.Series:
    if values.isna().any() or (values % 1 != 0).any():
        raise AnalysisError(f"{file}: column {values.name} has a value missing or not whole; expected whole numbers")
    return values.astype("int64")


def _texts(values: pd.Series) -> pd.Series:
    """As str; numbers that pandas made floats because some are missing are whole again (job 12, not 12.0)."""

    def text(value: object) -> object:
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return values.astype(object).map(text, na_action="ignore").astype("str")
