"""Picking a trial for a volume and a budget, and how sure that is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.budget import metric_spread
from tests.analysis.samples import search_table


def repeated(count: int, times: int, spread: float, seed: int = 0) -> pd.DataFrame:
    """Configurations trained `times` times each; the true VI grows with `p:x`, all cost 1 node-hour a gigavoxel."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.arange(count), times)
    return pd.DataFrame(
        {
            "campaign": "c",
            "search": "s",
            "trial": np.arange(count * times),
            "job_status": "DONE",
            "p:x": x,
            "m:vi": 1.0 + 0.1 * x + spread * rng.standard_normal(len(x)),
            "m:node_hours_per_gigavoxel": 1.0,
        }
    )


def test_the_voxels_of_a_cubic_millimetre() -> None:
    assert analysis.voxels_in(1.0, (40, 6, 6)) == pytest.approx(1e18 / 1440)
    for wrong in ((6, 6), (0, 6, 6), (math.nan, 6, 6)):
        with pytest.raises(analysis.AnalysisError, match=r"voxel size .* expected three positive numbers"):
            analysis.voxels_in(1.0, wrong)
    with pytest.raises(analysis.AnalysisError, match=r"volume of -1.0 mm\^3: expected a positive number"):
        analysis.voxels_in(-1.0, (40, 6, 6))


def test_the_pick_is_the_best_within_the_budget() -> None:
    table = search_table(60)
    pick = analysis.select_under_budget(table, voxels=2e9, node_hours=20.0)
    assert pick.cost_bound == 10.0
    assert pick.row["trial"] == analysis.select(table, cost_bound=10.0)["trial"]
    assert pick.node_hours == pytest.approx(2 * pick.row["m:node_hours_per_gigavoxel"]) and pick.node_hours <= 20
    assert 0.5 <= pick.chance_within <= 1
    assert 0 < pick.chance_best < 1
    assert pick.row["trial"] in pick.rivals["trial"].tolist()
    assert pick.rivals["chance"].is_monotonic_decreasing and pick.rivals["chance"].sum() >= 0.9 * 0.99
    assert "neighbouring configurations" in pick.sentence("VI")


def test_nothing_within_the_budget_says_what_the_volume_takes() -> None:
    table = repeated(4, 1, 0.0)
    with pytest.raises(
        analysis.AnalysisError, match=r"the cheapest is trial 0 .* for 5e\+09 voxels it takes 5 node-hours"
    ):
        analysis.select_under_budget(table, voxels=5e9, node_hours=4.0)


def test_a_clear_winner_is_sure_and_noise_is_not() -> None:
    sure = analysis.select_under_budget(repeated(5, 4, 0.001), 1e9, 2.0)
    assert sure.row["p:x"] == 0
    assert "5 configurations trained more than once" in sure.spread_from
    assert sure.rivals["search"].tolist() and set(sure.rivals["trial"]) <= {0, 1, 2, 3}, "the repetitions of the best"
    noise = analysis.select_under_budget(repeated(30, 3, 50.0), 1e9, 2.0)
    assert noise.chance_best < 0.3
    assert len(noise.rivals) > 10
    assert noise.expected > noise.row["m:vi"] + 10, "its luck is not to be expected again"


def test_the_spread_of_repetitions_is_measured() -> None:
    spread, origin = metric_spread(repeated(40, 3, 0.2, seed=1), "m:vi")
    assert spread == pytest.approx(0.2, rel=0.2) and "more than once" in origin
    spread, origin = metric_spread(repeated(200, 1, 0.2, seed=1), "m:vi")
    assert 0.1 < spread < 0.6 and "neighbouring" in origin
    assert math.isnan(metric_spread(repeated(4, 1, 0.2), "m:vi")[0])


def test_too_few_trials_give_a_pick_without_a_chance() -> None:
    pick = analysis.select_under_budget(repeated(3, 1, 0.1), 1e9, 2.0)
    assert math.isnan(pick.chance_best) and math.isnan(pick.expected)
    assert len(pick.rivals) == 1
    assert "not known: the table holds too few trials" in pick.sentence("VI")


def test_too_few_full_budgets_take_the_spread_of_a_smaller_one() -> None:
    table = search_table(24, rungs=3, workers=4)
    assert (table["job_status"] == "DONE").sum() < 8 <= (table["m:budget"] == 100).sum()
    pick = analysis.select_under_budget(table, 1e9, 30.0)
    assert pick.spread_from == "neighbouring configurations, an upper estimate, at a budget of 100"
    assert 0 < pick.chance_best <= 1


def test_a_cost_at_the_bound_is_within_it_by_half() -> None:
    pick = analysis.select_under_budget(repeated(5, 4, 0.1), 1e9, 1.0)
    assert pick.chance_within == pytest.approx(0.5)
    assert analysis.select_under_budget(repeated(5, 4, 0.1), 1e9, 1.0, cost_error=0).chance_within == 1
    assert analysis.select_under_budget(repeated(5, 4, 0.1), 1e9, 1.2).chance_within == pytest.approx(0.966, abs=0.001)


def test_maximised_metrics_and_the_same_numbers_every_time() -> None:
    table = repeated(6, 3, 0.05).assign(**{"m:f1": lambda t: -t["m:vi"]})
    low = analysis.select_under_budget(table, 1e9, 2.0)
    high = analysis.select_under_budget(table, 1e9, 2.0, metric="m:f1", minimize=False)
    assert high.row["trial"] == low.row["trial"]
    assert high.chance_best == low.chance_best
    assert high.expected == pytest.approx(-low.expected)
    assert analysis.select_under_budget(table, 1e9, 2.0, seed=1).chance_best == pytest.approx(low.chance_best, abs=0.1)


def test_numbers_that_cannot_be_are_refused() -> None:
    table = repeated(4, 1, 0.1)
    for voxels, hours in ((0.0, 1.0), (1e9, -1.0), (1e9, math.nan), (math.inf, 1.0)):
        with pytest.raises(analysis.AnalysisError, match="expected a positive number"):
            analysis.select_under_budget(table, voxels, hours)
    with pytest.raises(analysis.AnalysisError, match="'m:era' is not a column"):
        analysis.select_under_budget(table, 1e9, 1.0, metric="m:era")
    with pytest.raises(analysis.AnalysisError, match="cost_error = -1"):
        analysis.select_under_budget(table, 1e9, 1.0, cost_error=-1)
