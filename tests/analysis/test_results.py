"""Loading results tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis


def trial(number: int, vi: Any = 1.0, cost: Any = 10.0, **more: Any) -> dict[str, Any]:
    """One row as the search writes it; with `vi` None a trial that diverged."""
    failed = vi is None
    row = {
        "campaign": "c",
        "search": "s",
        "trial": number,
        "job_id": 100 + number,
        "job_status": "FAILED" if failed else "DONE",
        "attempt": 1,
        "p:depth": 4 + number,
        "objective": None if failed else -vi,
        "m:vi": vi,
        "m:node_hours_per_gigavoxel": None if failed else cost,
        "m:failure": "diverged" if failed else None,
    }
    return row | more


def write(folder: Path, *rows: dict[str, Any], name: str = "results.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(list(rows))
    if name.endswith(".csv"):
        frame.to_csv(folder / name, index=False)
    else:
        frame.to_parquet(folder / name, index=False)
    return folder / name


def test_parquet_is_typed_and_ordered(tmp_path: Path) -> None:
    file = write(tmp_path, trial(2), trial(0, vi=None), trial(1, 0.5, **{"m:truncated": True}))
    table = analysis.load_results(file)
    assert table["trial"].tolist() == [0, 1, 2]
    assert table["job_id"].tolist() == ["100", "101", "102"]
    assert table["m:vi"].dtype == np.float64
    assert np.isnan(table["objective"][0])
    assert table["m:failure"].tolist()[0] == "diverged"
    assert table["m:failure"].isna().tolist() == [False, True, True]
    assert table["m:truncated"].tolist() == [None, True, None]
    for name in table.columns:
        assert analysis.describe(name).meaning


def test_deephyper_csv_with_a_failure_keeps_the_successes(tmp_path: Path) -> None:
    # As DeepHyper 0.9 writes it: the failure turns the whole column into text, and its state is DONE.
    folder = tmp_path / "ackley"
    folder.mkdir()
    (folder / "results.csv").write_text(
        "p:x,objective,job_id,job_status,m:timestamp_submit,m:timestamp_gather\n"
        "1.5,-2.25,0,DONE,0.1,1.2\n"
        "9.0,F_diverged,1,DONE,0.2,1.3\n"
        "0.5,-0.25,2,DONE,0.3,1.4\n"
        "0.7,F,3,DONE,0.3,1.5\n"
    )
    table = analysis.load_results(folder)
    assert table["objective"].dtype == np.float64
    assert table["objective"].fillna(99).tolist() == [-2.25, 99, -0.25, 99]
    assert table["job_status"].tolist() == ["DONE", "FAILED", "DONE", "FAILED"]
    assert table["m:failure"].fillna("").tolist() == ["", "diverged", "", "unknown"]
    assert table["search"].tolist() == ["ackley"] * 4
    assert table["trial"].tolist() == [0, 1, 2, 3]
    assert table["p:x"].tolist() == [1.5, 9.0, 0.5, 0.7]


def test_several_objectives(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    file.write_text("p:x,objective_0,objective_1,job_id\n1,-1.0,-2.0,0\n2,F_killed,F_killed,1\n")
    table = analysis.load_results(file)
    assert table["objective_1"].fillna(0).tolist() == [-2.0, 0]
    assert table["job_status"].tolist() == ["DONE", "FAILED"]
    assert table["m:failure"].tolist()[1] == "killed"


def test_folders_and_lists(tmp_path: Path) -> None:
    write(tmp_path / "a", trial(0, campaign="a"))
    write(tmp_path / "b" / "deeper", trial(0, campaign="b"))
    assert analysis.load_results(tmp_path)["campaign"].tolist() == ["a", "b"]
    both: list[str | Path] = [tmp_path / "b", str(tmp_path / "a" / "results.parquet")]
    assert analysis.load_results(both)["campaign"].tolist() == ["a", "b"]


def test_an_empty_table_has_the_columns(tmp_path: Path) -> None:
    pd.DataFrame([]).to_parquet(tmp_path / "results.parquet")
    table = analysis.load_results(tmp_path)
    assert len(table) == 0
    assert {"campaign", "trial", "objective", "m:failure"} <= set(table.columns)
    with pytest.raises(analysis.AnalysisError, match=r"is not a column|the table is empty"):
        analysis.select(table)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    def message(source: Any) -> str:
        with pytest.raises(analysis.AnalysisError) as caught:
            analysis.load_results(source)
        return str(caught.value)

    assert "nowhere.parquet: no such file" in message(tmp_path / "nowhere.parquet")
    assert "holds no results.parquet or results.csv" in message(tmp_path)
    assert "no results table is given" in message([])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet")
    assert "broken.parquet: cannot be read as Parquet" in message(broken)
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert "other.csv: has neither objective nor job_status" in message(other)
    words = write(tmp_path, trial(0), trial(1, **{"m:vi": "many"}), name="words.csv")
    assert "column m:vi holds 'many'; expected numbers" in message(words)
    twice = write(tmp_path, trial(0), trial(0), name="twice.parquet")
    assert "trial 0 of search 's', campaign 'c', occurs twice" in message(twice)
    half = write(tmp_path, trial(0), trial(1, trial=1.5), name="half.parquet")
    assert "column trial has a value missing or not whole" in message(half)
    assert issubclass(analysis.AnalysisError, ValueError)


def test_curves(tmp_path: Path) -> None:
    curve = tmp_path / "curves.csv"
    curve.write_text("step,loss,accuracy,precision,recall,f1,seconds\n1,0.7,0.5,0.5,0.5,0.5,0.1\n")
    gone = str(tmp_path / "gone.csv")
    file = write(tmp_path, trial(0, **{"m:curves": str(curve)}), trial(1), trial(2, **{"m:curves": gone}))
    table = analysis.load_results(file)
    curves = analysis.load_curves(table)
    assert list(curves) == [0]
    assert curves[0]["loss"].tolist() == [0.7]
    curve.write_text("a,b\n1,2\n")
    with pytest.raises(analysis.AnalysisError, match="has the columns a, b; expected step, loss"):
        analysis.load_curves(table)
    curve.write_text("")
    with pytest.raises(analysis.AnalysisError, match="is not a CSV file"):
        analysis.load_curves(table)
    assert analysis.load_curves(table.drop(columns="m:curves")) == {}


def test_columns_are_documented() -> None:
    names = "m:vi m:failure m:timestamp_gather m:node_hours_per_gigavoxel m:flop_per_voxel m:truncated m:curves m:host"
    assert set(names.split()) <= set(analysis.COLUMNS)
    assert analysis.describe("p:learning_rate").label == "learning rate"
    assert analysis.describe("objective_2").kind == "number"
    with pytest.raises(analysis.AnalysisError, match="no such column"):
        analysis.describe("m:nonsense")


def test_importing_costs_nothing() -> None:
    code = "import sys, analysis; print([m for m in ('pandas', 'numpy', 'matplotlib', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(getattr(analysis, name) is not None for name in dir(analysis))
    with pytest.raises(AttributeError):
        analysis.nonsense  # noqa: B018
