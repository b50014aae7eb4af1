"""Plots and pictures: what is drawn, not how it looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

import analysis
from analysis import pictures, plots
from analysis.plots.style import ORANGE
from tests.analysis.samples import BUDGETS, FAILURES, search_table
from tests.analysis.test_results import trial, write


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    times = [(0.0, 60.0), (0.0, 30.0), (30.0, 60.0), (60.0, 120.0)]
    rows = []
    for i, (start, end) in enumerate(times):
        clock = {"m:timestamp_start": 1e9 + start, "m:timestamp_end": 1e9 + end}
        rows.append(trial(i, None if i == 2 else 1.0 - i / 10, 10.0 * (i + 1), **clock))
    return analysis.load_results(write(tmp_path, *rows))


def test_scatter_shows_trials_front_selection_and_trivial_answers(table: pd.DataFrame) -> None:
    best = analysis.select(table)
    figure = plots.trial_scatter(
        table, selected=best, cost_bound=45.0, baselines={"one object": 2.0, "nothing": 2.0, "threshold": 1.2}
    )
    axes = figure.axes[0]
    assert np.asarray(axes.collections[0].get_offsets()).tolist() == [[10.0, 1.0], [20.0, 0.9], [40.0, 0.7]]
    texts = {text.get_text() for text in axes.texts}
    assert {"0", "1", "3", "one object, nothing", "threshold"} == texts
    assert axes.get_ylabel() == "VI (bits)"


def test_trajectory_keeps_the_best_so_far(table: pd.DataFrame) -> None:
    axes = plots.search_trajectory(table).axes[0]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.9, 0.9, 0.7], "trial 1 ended first"
    assert np.asarray(axes.collections[1].get_offsets())[:, 0].tolist() == [1.0], "the failed one, after a minute"


def test_utilisation_by_hand(table: pd.DataFrame) -> None:
    assert analysis.utilisation(table) == pytest.approx((60 + 30 + 30 + 60) / (2 * 120))
    assert analysis.utilisation(table, workers=3) == pytest.approx(180 / 360)
    figure = plots.worker_utilisation(table, workers=3)
    bars = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    rows = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in bars]
    assert rows == [(0, 0.0, 0.5), (1, 0.0, 1.0), (0, 0.5, 0.5), (0, 1.0, 1.0)], "row, start and length in minutes"
    assert "50% of 3 workers busy" in figure.axes[0].get_title(loc="left")


def test_tables_without_the_numbers_still_draw(table: pd.DataFrame) -> None:
    nothing = table.drop(columns=["m:timestamp_start", "m:timestamp_end"])
    assert np.isnan(analysis.utilisation(nothing))
    plots.worker_utilisation(nothing)
    plots.search_trajectory(nothing)
    plots.trial_scatter(table.iloc[2:3])
    assert "objective" in plots.search_trajectory(table, "objective", minimize=False).axes[0].get_ylabel()


def test_learning_curves() -> None:
    curve = pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "f1": [0.1, 0.5]})
    figure = plots.learning_curves({"trial 0": curve, "trial 1": curve}, "trial 1")
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "training F1"]
    assert [line.get_linewidth() for line in figure.axes[0].lines] == [0.9, 2]
    assert len(plots.learning_curves({"a": curve}, quantities=("loss",)).axes) == 1
    assert not plots.learning_curves({"a": curve}, quantities=("recall",)).axes[0].lines


def test_colours_are_the_same_every_time_and_differ_between_objects() -> None:
    labels = np.arange(1, 200).reshape(1, -1)
    assert np.array_equal(pictures.colours(labels), pictures.colours(labels.astype(np.uint64)))
    assert not np.array_equal(pictures.colours(labels, 1), pictures.colours(labels, 2))
    assert len(np.unique(pictures.colours(labels)[0], axis=0)) > 190


def test_overlay_leaves_membranes_grey_and_parts_objects() -> None:
    image = np.tile(np.arange(0, 200, 20, dtype=np.uint8), (4, 1))
    labels = np.zeros((4, 10), np.uint32)
    labels[:, 1:4], labels[:, 4:8] = 5, 6
    picture, ground = pictures.overlay(image, labels), pictures.grey(image)
    assert np.array_equal(picture[labels == 0], ground[labels == 0])
    assert (picture[labels != 0] != ground[labels != 0]).any(axis=1).all()
    assert (picture[:, 3].sum(axis=1) < picture[:, 2].sum(axis=1)).all(), "a dark line between 5 and 6"
    assert pictures.grey(np.full((2, 2), 7)).max() == 0, "a flat image is no division by zero"
    with pytest.raises(analysis.AnalysisError, match=r"labels of shape \(4, 9\): expected the image's shape \(4, 10\)"):
        pictures.overlay(image, labels[:, :9])
    with pytest.raises(analysis.AnalysisError, match=r"image of shape \(2, 2, 2\): expected a slice"):
        pictures.grey(np.zeros((2, 2, 2)))


def test_matching_ids_takes_the_truths_where_both_agree() -> None:
    truth = np.array([[1, 1, 1, 1, 2, 2, 3, 0]], np.uint32)
    found = np.array([[9, 9, 9, 4, 7, 7, 7, 5]], np.uint64)
    matched = pictures.match_ids(found, truth)
    assert matched[0, :3].tolist() == [1, 1, 1]
    assert matched[0, 4:7].tolist() == [2, 2, 2], "a merger has the colour of its larger part"
    assert matched[0, 3] > 3, "a fragment has one of its own"
    assert matched[0, 7] > 3
    assert pictures.match_ids(found * 0, truth).max() == 0
    assert pictures.match_ids(found, truth * 0).min() > 0


def offsets(axes: Axes, place: int) -> list[list[float]]:
    return [list(map(float, point)) for point in np.asarray(axes.collections[place].get_offsets())]


@pytest.fixture(scope="module")
def rung_table() -> pd.DataFrame:
    return search_table(40, rungs=3, workers=4)


def test_trajectory_of_rungs_counts_full_budgets_only(rung_table: pd.DataFrame) -> None:
    axes = plots.search_trajectory(rung_table).axes[0]
    stopped = rung_table[rung_table["job_status"] == "STOPPED"]
    assert sorted(y for _, y in offsets(axes, 0)) == sorted(stopped["m:vi"])
    done = rung_table[rung_table["job_status"] == "DONE"]
    assert np.asarray(axes.lines[0].get_ydata())[-1] == done["m:vi"].min()
    assert len(offsets(axes, 2)) == (rung_table["job_status"] == "FAILED").sum()


def test_rungs_shows_every_report_and_the_budgets(rung_table: pd.DataFrame) -> None:
    best = analysis.select(rung_table)
    axes = plots.rungs(rung_table, selected=best).axes[0]
    reports = rung_table.filter(like="_rung_")
    assert sum(len(np.asarray(line.get_xdata())) for line in axes.lines) == reports.notna().sum().sum()
    counts = reports.notna().sum().tolist()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        f"{budget}\n{count} trials" for budget, count in zip(BUDGETS, counts, strict=True)
    ]
    chosen = next(line for line in axes.lines if line.get_color() == ORANGE)
    assert np.asarray(chosen.get_ydata()).tolist() == [best[f"m:objective_rung_{rung}"] for rung in range(3)]
    assert axes.get_xlabel() == "budget"
    bare = rung_table.drop(columns="m:budget")
    assert [tick.get_text()[0] for tick in plots.rungs(bare).axes[0].get_xticklabels()] == ["0", "1", "2"]


def test_many_trials_are_drawn_by_a_sample() -> None:
    table = search_table(1500, rungs=3, objectives=2, workers=64)
    assert len(plots.rungs(table, "objective_0").axes[0].lines) == 300
    lines = plots.parallel_coordinates(table).axes[0].lines
    assert len(lines) == 60 + 240 + 60 + 5, "the best, others, failed, and the vertical axes"
    scatter = plots.trial_scatter(table).axes[0]
    assert len(scatter.texts) <= 13
    busy = plots.worker_utilisation(table).axes[0]
    assert not busy.patches and busy.get_ylabel() == "busy workers"
    assert "of 64 workers busy" in busy.get_title(loc="left")


def test_objectives_and_hypervolume(rung_table: pd.DataFrame) -> None:
    table = search_table(40, objectives=2)
    goals = analysis.goals_of(table)
    axes = plots.objectives_scatter(table, goals, analysis.select(table)).axes[0]
    front = analysis.objective_front(table, goals)
    assert offsets(axes, 1) == front[["objective_0", "objective_1"]].to_numpy().tolist()
    axes = plots.hypervolume_trajectory(table, goals).axes[0]
    grown = analysis.hypervolume_over_time(table, goals)["hypervolume"]
    heights = np.asarray(axes.lines[0].get_ydata())
    assert heights[0] == 0 and heights[-1] == heights[-2] == grown.iloc[-1]
    three = search_table(40, objectives=3)
    said = plots.objectives_scatter(three, analysis.goals_of(three)).axes[0].get_legend()
    assert said is not None and "all 3 objectives" in said.get_texts()[1].get_text()
    plots.hypervolume_trajectory(table.iloc[:0], goals)


def test_importance_bars() -> None:
    shares = pd.DataFrame({"name": ["p:rate", "p:depth"], "share": [0.5, -0.1], "error": [0.1, 0.1]})
    axes = plots.hyperparameter_importance(analysis.Importance(shares, 0.62, 31)).axes[0]
    assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == [0.5, 0.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["rate", "depth"]
    assert "62% of the order of 31 trials" in axes.get_title(loc="left")


def test_parallel_coordinates_places_values(rung_table: pd.DataFrame) -> None:
    best = analysis.select(rung_table)
    axes = plots.parallel_coordinates(rung_table, names=["p:depth", "p:optimizer", "p:momentum"], selected=best).axes[0]
    chosen = next(line for line in axes.lines if line.get_color() == ORANGE)
    line = np.asarray(chosen.get_ydata())
    depth = rung_table["p:depth"]
    assert line[0] == pytest.approx((best["p:depth"] - depth.min()) / (depth.max() - depth.min()))
    assert line[1] == {"adam": 0.0, "sgd": 1.0}[best["p:optimizer"]]
    assert (line[2] < 0) == np.isnan(best["p:momentum"]), "inactive: below the axis"
    assert line[3] > 0.9, "the best of the trials with the full budget, smallest VI on top"
    texts = {text.get_text() for text in axes.texts}
    assert {"adam", "sgd", "off", "failed"} <= texts
    with pytest.raises(analysis.AnalysisError, match="no hyperparameter varies"):
        plots.parallel_coordinates(rung_table[["m:vi", "job_status"]])
    few = search_table(3)
    few["p:flag"] = [True, False, None]
    plots.parallel_coordinates(few)


def test_costs_by_outcome_says_trials_and_shares(rung_table: pd.DataFrame) -> None:
    axes = plots.costs_by_outcome(rung_table).axes[0]
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names[:3] == ["done", "stopped at rung 0", "stopped at rung 1"]
    assert {f"failed: {kind}" for kind in FAILURES[:5]} == set(names[3:])
    widths = [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert sum(widths) == pytest.approx(rung_table["m:node_seconds"].sum() / 3600)
    assert all("node-hours" in text.get_text() for text in axes.texts)
    timeless = rung_table.drop(columns=["m:node_seconds", "m:runs", "m:timestamp_start", "m:timestamp_end"])
    assert "times not recorded" in plots.costs_by_outcome(timeless).axes[0].texts[0].get_text()
    plots.costs_by_outcome(rung_table.iloc[:0])


def test_a_figure_becomes_a_small_picture(rung_table: pd.DataFrame) -> None:
    figure = plots.rungs(rung_table)
    uri = pictures.figure_uri(figure)
    assert uri.startswith("data:image/png;base64,") and len(uri) < 60_000
    assert pictures.figure_uri(figure) == uri
