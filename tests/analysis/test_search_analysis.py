"""Several objectives, importance of hyperparameters, times and costs of searches with rungs and failures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.importance import encode
from analysis.timing import busy_nodes, runs
from tests.analysis.samples import search_table


def table_of(**columns: object) -> pd.DataFrame:
    """A table of finished trials with these columns."""
    count = len(next(iter(columns.values())))  # type: ignore[arg-type]
    fixed = {"campaign": "c", "search": "s", "trial": range(count), "job_status": "DONE"}
    return pd.DataFrame(fixed | columns)


def test_goals_are_the_objectives_or_accuracy_and_cost() -> None:
    assert [goal.column for goal in analysis.goals_of(search_table(9, objectives=3))] == [
        "objective_0",
        "objective_1",
        "objective_2",
    ]
    assert analysis.goals_of(search_table(9)) == (
        analysis.Goal("m:vi", minimize=True),
        analysis.Goal("m:node_hours_per_gigavoxel", minimize=True),
    )
    assert analysis.goals_of(table_of(objective=[1.0])) == ()


def test_front_of_three_objectives() -> None:
    table = table_of(
        objective_0=[3.0, 1.0, 1.0, 1.0, 2.0],
        objective_1=[1.0, 3.0, 1.0, 1.0, 1.0],
        objective_2=[1.0, 1.0, 3.0, 1.0, 1.0],
    )
    goals = analysis.goals_of(table)
    assert analysis.objective_front(table, goals)["trial"].tolist() == [0, 1, 2]
    assert analysis.objective_front(table[3:], goals)["trial"].tolist() == [4]
    with pytest.raises(analysis.AnalysisError, match="'objective_9' is not a column"):
        analysis.objective_front(table, (analysis.Goal("objective_9"),))
    with pytest.raises(analysis.AnalysisError, match="no goal is given"):
        analysis.objective_front(table, ())


def test_hypervolume_over_time_by_hand() -> None:
    table = table_of(
        objective_0=[1.0, 4.0, 2.0, 1.5, 9.0],
        objective_1=[4.0, 1.0, 3.0, 1.0, 9.0],
        **{"m:timestamp_submit": [10.0] * 5, "m:timestamp_end": [30.0, 20.0, 40.0, 50.0, np.nan]},
    )
    table["job_status"] = ["DONE", "DONE", "DONE", "DONE", "STOPPED"]
    goals = analysis.goals_of(table)
    found = analysis.hypervolume_over_time(table, goals, reference=(0.0, 0.0))
    # In a box of 4 x 4: trial 1 adds 4, trial 0 adds 3, trial 2 adds 2; trial 3 is dominated, trial 4 has not finished.
    assert found["seconds"].tolist() == [10.0, 20.0, 30.0]
    assert found["trial"].tolist() == [1, 0, 2]
    assert (found["hypervolume"] * 16).tolist() == pytest.approx([4, 7, 9])
    turned = table.assign(objective_0=-table["objective_0"], objective_1=-table["objective_1"])
    goals = (analysis.Goal("objective_0", minimize=True), analysis.Goal("objective_1", minimize=True))
    assert analysis.hypervolume_over_time(turned, goals, (0.0, 0.0)).equals(found)
    with pytest.raises(analysis.AnalysisError, match="reference of 1 values: expected 2"):
        analysis.hypervolume_over_time(table, goals, (0.0,))
    assert analysis.hypervolume_over_time(table[:0], goals).empty


def test_hypervolume_only_grows_and_is_a_share() -> None:
    for objectives in (2, 3):
        table = search_table(60, objectives=objectives)
        shares = analysis.hypervolume_over_time(table, analysis.goals_of(table))["hypervolume"]
        assert shares.is_monotonic_increasing and shares.iloc[0] > 0 and shares.iloc[-1] <= 1


def test_importance_finds_what_decides() -> None:
    found = analysis.hyperparameter_importance(search_table(150, rungs=3), "m:vi")
    assert found.shares["name"].tolist()[:2] == ["p:learning_rate", "p:depth"]
    assert found.explained > 0.6
    by_name = found.shares.set_index("name")["share"]
    assert by_name["p:learning_rate"] > 5 * abs(by_name["p:optimizer"])
    assert "m:budget" not in by_name


def test_importance_is_the_same_every_time_and_of_noise_nothing() -> None:
    rng = np.random.default_rng(0)
    names = ["p:a", "p:b"]
    table = table_of(**{name: rng.random(80) for name in [*names, "m:vi"]})
    first, second = (analysis.hyperparameter_importance(table, "m:vi", seed=3) for _ in range(2))
    assert first.shares.equals(second.shares)
    assert first.explained < 0.1


def test_importance_says_what_it_lacks() -> None:
    with pytest.raises(analysis.AnalysisError, match="7 trials have a value of m:vi; importance needs at least 12"):
        analysis.hyperparameter_importance(search_table(8), "m:vi")
    with pytest.raises(analysis.AnalysisError, match="'m:era' is not a column"):
        analysis.hyperparameter_importance(search_table(20), "m:era")
    with pytest.raises(analysis.AnalysisError, match="no hyperparameter varies"):
        analysis.hyperparameter_importance(table_of(**{"p:a": [1] * 20, "m:vi": range(20)}), "m:vi")


def test_hyperparameters_as_numbers() -> None:
    assert encode(pd.Series([1.0, 3.0, np.nan])).tolist() == [1, 3, -2]
    assert encode(pd.Series(["b", "a", None, "b"], dtype=object)).tolist() == [1, 0, -2, 1]
    assert encode(pd.Series([True, False])).tolist() == [1, 0]
    assert encode(pd.Series([np.nan, np.nan])).tolist() == [0, 0]


def test_runs_of_rungs_and_retries() -> None:
    table = table_of(
        **{
            "m:timestamp_start": [0.0, 0.0, np.nan],
            "m:timestamp_end": [100.0, 50.0, np.nan],
            "m:runs": ["0:10 90:100", None, None],
            "m:nodes": [2.0, np.nan, np.nan],
        }
    )
    table["job_status"] = ["FAILED", "DONE", "RUNNING"]
    found = runs(table)
    assert found[["start", "end", "nodes", "trial", "job_status"]].to_numpy().tolist() == [
        [0, 10, 2, 0, "DONE"],
        [0, 50, 1, 1, "DONE"],
        [90, 100, 2, 0, "FAILED"],
    ]
    assert busy_nodes(found).to_numpy().tolist() == [[0, 3], [10, 1], [50, 0], [90, 2], [100, 0]]
    # 2 x 10 + 50 + 2 x 10 seconds of 3 workers for 100.
    assert analysis.utilisation(table) == pytest.approx(90 / 300)
    assert analysis.utilisation(table, workers=9) == pytest.approx(0.1)
    with pytest.raises(analysis.AnalysisError, match="m:runs = '5-6': expected start:end pairs"):
        runs(table.assign(**{"m:runs": "5-6"}))


def test_cost_by_outcome_by_hand() -> None:
    table = table_of(
        **{"m:node_seconds": [3600.0, 1800.0, np.nan, 7200.0, np.nan, 60.0], "m:rung": [1, 0, np.nan, 0, 0, 0]}
    )
    table["m:timestamp_start"], table["m:timestamp_end"] = (
        [0.0, 0.0, 0.0, 0.0, np.nan, 0.0],
        [1.0, 1.0, 720.0, 1.0, np.nan, 1.0],
    )
    table["job_status"] = ["DONE", "STOPPED", "FAILED", "FAILED", "FAILED", "RUNNING"]
    table["m:failure"] = [None, None, "diverged", "hung", "bug", None]
    found = analysis.cost_by_outcome(table)
    assert found["outcome"].tolist() == ["done", "stopped at rung 0", "failed: bug", "failed: diverged", "failed: hung"]
    assert found["trials"].tolist() == [1] * 5
    assert found["node_hours"].fillna(-1).tolist() == pytest.approx([1, 0.5, -1, 0.2, 2])
    assert analysis.cost_by_outcome(table[:0]).empty


def test_columns_of_rungs_are_documented() -> None:
    from analysis.columns import rung_columns

    assert analysis.describe("m:objective_rung_2").label == "objective at rung 2"
    assert analysis.describe("m:objective_1_rung_0").meaning == "the objective 1 that the rung reported"
    names = ["m:objective_rung_10", "m:objective_rung_2", "m:objective_0_rung_1", "objective"]
    assert rung_columns(names) == {2: "m:objective_rung_2", 10: "m:objective_rung_10"}
    assert rung_columns(names, "objective_0") == {1: "m:objective_0_rung_1"}
