"""The page of a pipeline from volume to connectome: what every step did, gave and cost, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis import tables
from analysis.page import render_page, save_page
from analysis.quality_page import StepLine
from analysis.report import Picture, panels_of
from analysis.tables import AccuracyTable, Row, Table

TEMPLATE = "chain.html.j2"


@dataclass(frozen=True)
class Figure:
    """A number that a step gave.

    Attributes:
        name: of the field of the stage's result; a dot leads into a part of it.
        value: the number, or a short text.
        meaning: the stage's own words for it.
    """

    name: str
    value: float | int | bool | str
    meaning: str


@dataclass(frozen=True)
class ChainPage:
    """What the page says.

    Attributes:
        title, headline: name of the pipeline, and where it stands in a sentence.
        steps: jobs and time of every step, in their order.
        figures: step -> what it gave.
        accuracy: the segmentation beside the trivial answers, where there is ground truth.
        pictures: slices of image, truth and segmentation.
        places: (what, path) of the volumes, tables and pages that were made.
        honest: sentences on what the numbers do not show.
        provenance: name -> value.
        commands: (command, what it shows) to look further.
    """

    title: str
    headline: str
    steps: tuple[StepLine, ...]
    figures: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)
    accuracy: AccuracyTable | None = None
    pictures: tuple[Picture, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    honest: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[tuple[str, str], ...] = ()


def write_chain_page(path: str | Path, page: ChainPage) -> Path:
    """Write the page to `path`, which is there whole or not at all; returns the path.

    Raises AnalysisError where a picture's arrays do not fit each other, or the file cannot be written.
    """
    accuracy = page.accuracy
    text = render_page(
        TEMPLATE,
        content=page,
        headline=page.headline,
        steps=_steps_table(page.steps),
        figures={step: _figures_table(figures) for step, figures in page.figures.items() if figures},
        stages={line.step: line.stage for line in page.steps},
        accuracy=tables.accuracy_table(accuracy) if accuracy else None,
        verdict=tables.verdict(accuracy) if accuracy else None,
        pictures=[panels_of(picture) for picture in page.pictures],
        note=tables.ZERO_NOTE,
    )
    return save_page(path, text)


def _steps_table(steps: tuple[StepLine, ...]) -> Table:
    rows = [
        Row((line.step, line.stage, *map(str, (line.jobs, line.done, line.failed)), _seconds(line.node_seconds)))
        for line in steps
    ]
    total = sum(line.node_seconds for line in steps)
    counts = (sum(getattr(line, name) for line in steps) for name in ("jobs", "done", "failed"))
    rows.append(Row(("all", "", *map(str, counts), _seconds(total))))
    return Table(("step", "stage", "jobs", "done", "failed", "node-seconds"), tuple(rows))


def _figures_table(figures: tuple[Figure, ...]) -> Table:
    return Table(
        ("", "", "what it is"),
        tuple(Row((figure.name, tables.text(figure.value), figure.meaning)) for figure in figures),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}"
