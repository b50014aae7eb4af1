"""The report of a campaign: one HTML page that needs no other file, for a reader who was not there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import pictures, report_plots, tables
from analysis.budget import BudgetPick
from analysis.errors import AnalysisError
from analysis.page import render_page, save_page
from analysis.selection import ACCURACY, COST
from analysis.tables import AccuracyTable, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Picture:
    """One slice, shown as image, truth and segmentation side by side.

    Attributes:
        title: what and where, for example "deployed volume, z = 32".
        image: grey values [y, x].
        truth, segmentation: labels [y, x] of the same shape, 0 for no object; None where there is none.
        caption: a sentence below.
    """

    title: str
    image: NDArray[Any]
    truth: NDArray[np.integer[Any]] | None = None
    segmentation: NDArray[np.integer[Any]] | None = None
    caption: str = ""


@dataclass(frozen=True)
class ReportContent:
    """What the page says, from the first line on.

    Attributes:
        title, headline: the name of the campaign, and its outcome in a sentence.
        trials: the results table, as `load_results` gives it.
        selected, reason: the selected row of it, and a sentence on why that one.
        metric, minimize, cost, cost_bound: what it was selected by.
        pick: where it was selected for a volume and a budget: how sure that is.
        trivial: name of a trivial answer (one_object, nothing, threshold) -> its scores (fields of the evaluation's
            Scores) on the validation box; they stand below the trials.
        deployment: accuracy of the deployed segmentation beside the trivial answers there.
        pictures: slices of it.
        costs: any table of costs; its columns are its heads.
        workers: how many worked at once, for the utilisation.
        honest: sentences on what the numbers do not show.
        provenance: name -> value (code version, hashes, seed, host, paths).
        commands: (command, what it shows) to look further.
    """

    title: str
    headline: str
    trials: pd.DataFrame
    selected: pd.Series | None = None
    reason: str = ""
    metric: str = ACCURACY
    minimize: bool = True
    cost: str = COST
    cost_bound: float | None = None
    pick: BudgetPick | None = None
    trivial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    deployment: AccuracyTable | None = None
    pictures: tuple[Picture, ...] = ()
    costs: pd.DataFrame | None = None
    workers: int | None = None
    honest: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Panels:
    """A picture, rendered: (what, data URI) side by side."""

    title: str
    caption: str
    panels: tuple[tuple[str, str], ...]


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Write the page to `path`, which is there whole or not at all; returns the path.

    Raises AnalysisError where a picture's arrays do not fit each other, or the file cannot be written.
    """
    return save_page(path, render(content))


def render(content: ReportContent) -> str:
    """The page as HTML text."""
    deployment = content.deployment
    return render_page(
        TEMPLATE,
        content=content,
        headline=content.headline,
        counts=tables.count_states(content.trials),
        trials=tables.trials_table(
            content.trials, content.selected, content.metric, content.minimize, content.cost, content.trivial
        ),
        deployment=tables.accuracy_table(deployment) if deployment else None,
        verdict=tables.verdict(deployment) if deployment else None,
        pictures=[panels_of(picture) for picture in content.pictures],
        failures=tables.failures_table(content.trials),
        pick=tables.pick_table(content.pick, content.metric, content.cost) if content.pick else None,
        plots={name: pictures.figure_uri(figure) for name, figure in report_plots.search_plots(content).items()},
        costs=_frame(content.costs) if content.costs is not None else None,
        note=tables.ZERO_NOTE,
    )


def panels_of(picture: Picture) -> Panels:
    """A picture, rendered; raises AnalysisError where its arrays do not fit each other."""
    try:
        panels = [("image", pictures.png_uri(pictures.grey(picture.image)))]
        if picture.truth is not None:
            panels.append(("ground truth", pictures.png_uri(pictures.overlay(picture.image, picture.truth))))
        if picture.segmentation is not None:
            found = picture.segmentation
            if picture.truth is not None and picture.truth.shape == found.shape:
                found = pictures.match_ids(found, picture.truth)
            panels.append(("segmentation", pictures.png_uri(pictures.overlay(picture.image, found))))
    except AnalysisError as error:
        raise AnalysisError(f"picture {picture.title!r}: {error}") from error
    return Panels(picture.title, picture.caption, tuple(panels))


def _frame(frame: pd.DataFrame) -> Table:
    rows = [tuple(tables.text(value) for value in row) for row in frame.itertuples(index=False)]
    return Table(tuple(str(name) for name in frame.columns), tuple(tables.Row(cells) for cells in rows))
