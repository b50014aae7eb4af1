"""Plots and pictures: what is drawn, not how it looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle

import analysis
from analysis import pictures, plots
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
    assert plots.utilisation(table) == pytest.approx((60 + 30 + 30 + 60) / (2 * 120))
    assert plots.utilisation(table, workers=3) == pytest.approx(180 / 360)
    figure = plots.worker_utilisation(table, workers=3)
    bars = [bar for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    rows = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in bars]
    assert rows == [(0, 0.0, 0.5), (1, 0.0, 1.0), (0, 0.5, 0.5), (0, 1.0, 1.0)], "row, start and length in minutes"
    assert "50% of 3 workers busy" in figure.axes[0].get_title(loc="left")


def test_tables_without_the_numbers_still_draw(table: pd.DataFrame) -> None:
    nothing = table.drop(columns=["m:timestamp_start", "m:timestamp_end"])
    assert np.isnan(plots.utilisation(nothing))
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
