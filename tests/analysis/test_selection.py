"""Selection under a bound, and the Pareto front."""

from __future__ import annotations

from pathlib import Path

import pytest

import analysis
from tests.analysis.test_results import trial, write


def test_the_best_under_the_bound(tmp_path: Path) -> None:
    table = analysis.load_results(
        write(tmp_path, trial(0, 0.5, 90.0), trial(1, 0.9, 10.0), trial(2, 0.7, 40.0), trial(3, None))
    )
    assert analysis.select(table)["trial"] == 0
    assert analysis.select(table, cost_bound=50)["trial"] == 2
    assert analysis.select(table, cost_bound=40)["trial"] == 2, "the bound itself is allowed"
    assert analysis.select(table, metric="p:depth", minimize=False)["trial"] == 2, "the failed one does not count"


def test_ties_go_to_the_cheaper_and_then_to_the_first(tmp_path: Path) -> None:
    rows = [trial(3, 0.5, 20.0), trial(2, 0.5, 10.0), trial(1, 0.5, 10.0), trial(0, 0.9, 1.0)]
    table = analysis.load_results(write(tmp_path, *rows))
    assert analysis.select(table)["trial"] == 1
    shuffled = table.sample(frac=1, random_state=3)
    assert analysis.select(shuffled)["trial"] == 1


def test_the_row_can_be_found_again(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, trial(0, 0.9), trial(1, 0.5)))
    row = analysis.select(table)
    assert table["trial"].to_dict()[row.name] == row["trial"] == 1


def test_none_under_the_bound_names_the_cheapest(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, trial(0, 0.5, 90.0), trial(1, 0.9, 60.0)))
    with pytest.raises(analysis.AnalysisError, match=r"the cheapest is trial 1 of search 's' with 60 \(m:vi = 0.9"):
        analysis.select(table, cost_bound=5)


def test_no_finished_trial_says_why(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, trial(0, None), trial(1, None), trial(2, 1.0, job_status="RUNNING")))
    with pytest.raises(analysis.AnalysisError, match=r"of 3 trials 2 FAILED, 1 RUNNING \(failures: 2 diverged\)"):
        analysis.select(table)


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, trial(0)))
    with pytest.raises(analysis.AnalysisError, match=r"'m:era' is not a column of this table; expected one of .*m:vi"):
        analysis.select(table, metric="m:era")
    with pytest.raises(analysis.AnalysisError, match="'campaign' is not a column of numbers"):
        analysis.select(table, metric="campaign")


def test_pareto_front(tmp_path: Path) -> None:
    rows = [
        trial(0, 1.0, 10.0),
        trial(1, 0.5, 20.0),
        trial(2, 0.7, 30.0),  # beaten by 1
        trial(3, 0.4, 40.0),
        trial(4, 0.4, 40.0),  # as good as 3
        trial(5, 1.0, 5.0),  # beats 0
        trial(6, None),
    ]
    table = analysis.load_results(write(tmp_path, *rows))
    assert analysis.pareto_front(table)["trial"].tolist() == [5, 1, 3]
    assert analysis.pareto_front(table, minimize=False)["trial"].tolist() == [5]
    assert analysis.pareto_front(table.iloc[-1:]).empty
