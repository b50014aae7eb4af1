"""The page of a workflow's quality: what each section measured, what its gates held, and pictures, in one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import pictures
from analysis.errors import AnalysisError
from analysis.page import render_page, save_page
from analysis.plots.quality import measure_against_error, measure_over_sections, states_by_step
from analysis.quality import (
    STATES,
    check_quality_table,
    count_states,
    hold_reasons,
    join_errors,
    named_sections,
    rank_correlations,
    section_states,
)
from analysis.tables import MISSING, Row, Table, text

TEMPLATE = "quality.html.j2"
MOST_HELD, MOST_FAULTS = 60, 30  # rows of these tables; the CSV has all
_PNG = b"\x89PNG\r\n\x1a\n"

Accept = Callable[[str, Sequence[int]], str]


@dataclass(frozen=True)
class QualityPicture:
    """A picture of what a stage did.

    Attributes:
        title, caption: what and where; a sentence below.
        png: PNG file.
    """

    title: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class StepLine:
    """Jobs of one step of the workflow, and what they took.

    Attributes:
        jobs, done, failed, held: how many in all, with a result, failed, and not made because a gate holds them.
        node_seconds: of all its processes, further attempts too.
    """

    step: str
    stage: str
    jobs: int
    done: int
    failed: int
    held: int
    node_seconds: float


@dataclass(frozen=True)
class QualityPage:
    """What the page says.

    Attributes:
        title: name of the workflow.
        table: see `analysis.quality`; steps are shown in its order.
        accept: (step, sections) -> the command with which a person lets held sections pass; None where there is none.
        steps: jobs and time.
        pictures: before and after; `missing_pictures` says which could not be made, and why.
        errors: true errors of sections where they are known (columns step, section, error), for rank correlations.
        honest: sentences on what the numbers do not show.
        provenance: name -> value.
        commands: (command, what it shows) to look further.
    """

    title: str
    table: pd.DataFrame
    accept: Accept | None = None
    steps: tuple[StepLine, ...] = ()
    pictures: tuple[QualityPicture, ...] = ()
    missing_pictures: tuple[str, ...] = ()
    errors: pd.DataFrame | None = None
    honest: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    commands: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Plot:
    """A figure with its caption."""

    uri: str
    caption: str


@dataclass(frozen=True)
class _Step:
    """The plots of one step."""

    title: str
    plots: tuple[_Plot, ...]


def write_quality_page(path: str | Path, page: QualityPage) -> Path:
    """Write the page to `path`, which is there whole or not at all; returns the path.

    Raises AnalysisError where the table is not one of quality, a picture is no PNG, or the file cannot be written.
    """
    return save_page(path, render_quality_page(page))


def render_quality_page(page: QualityPage) -> str:
    """The page as HTML text, that needs no other file."""
    table = check_quality_table(page.table)
    for picture in page.pictures:
        if not picture.png.startswith(_PNG):
            raise AnalysisError(f"picture {picture.title!r}: {len(picture.png)} bytes that are no PNG; expected one")
    errors = page.errors
    return render_page(
        TEMPLATE,
        content=page,
        headline=headline(table),
        counts=counts_table(table),
        overview=None if table.empty else pictures.figure_uri(states_by_step(table)),
        held=held_table(table, page.accept),
        accept_all=_accept_all(table, page.accept),
        faults=faults_table(table),
        steps=_plots_by_step(table),
        pictures=[(picture.title, picture.caption, pictures.data_uri(picture.png)) for picture in page.pictures],
        costs=costs_table(page.steps),
        correlations=None if errors is None else _correlations_table(rank_correlations(table, errors)),
        error_plots=() if errors is None else _error_plots(join_errors(table, errors)),
    )


def headline(table: pd.DataFrame) -> str:
    """How many sections went through all steps, and what stopped the others, in words."""
    if table.empty:
        return "No section has been through a step yet."
    sections = section_states(table)
    total, order = sections["section"].nunique(), list(dict.fromkeys(sections["step"]))
    passed = sections[sections["state"].isin(("passed", "accepted"))]
    done = int((passed.groupby("section")["step"].nunique() == len(order)).sum())
    said = [f"{text(done)} of {_several(total, 'section')} went through {_listed(order)}."]
    stopped = []
    for _, counts in count_states(table).iterrows():
        words = [f"{text(counts[state])} {state}" for state in ("held", "failed", "absent", "waiting") if counts[state]]
        if words:
            stopped.append(f"{_listed(words)} at {counts['step']}")
    if stopped:
        said.append(f"Of the others: {'; '.join(stopped)}.")
    if accepted := sections[sections["state"] == "accepted"]["section"].nunique():
        said.append(f"{_several(accepted, 'section')} accepted by a person.")
    return " ".join(said)


def counts_table(table: pd.DataFrame) -> Table:
    """One row a step: its sections by state."""
    names = ("step", "stage", "sections", *STATES)
    rows = [] if table.empty else [tuple(row[name] for name in names) for _, row in count_states(table).iterrows()]
    return Table(names, tuple(Row((*row[:2], *(text(n) if n else MISSING for n in row[2:]))) for row in rows))


def held_table(table: pd.DataFrame, accept: Accept | None = None) -> Table | None:
    """Held sections first, then those that were accepted: why, and the command to accept; None where there is none."""
    reasons = hold_reasons(table, ("held", "accepted"))
    if reasons.empty:
        return None
    reasons = reasons.sort_values("state", key=lambda states: states != "held", kind="stable")
    rows = []
    before = None
    for _, row in reasons.head(MOST_HELD).iterrows():
        section, held = (str(row["step"]), int(row["section"])), row["state"] == "held"
        unit = f" {row['unit']}" if row["unit"] else ""
        value = MISSING if pd.isna(row["value"]) else f"{text(row['value'])}{unit}"
        least = "at least" if row["better"] == "higher" else "at most"
        wanted = MISSING if pd.isna(row["threshold"]) else f"{least} {text(row['threshold'])}{unit}"
        what = row["measure"].replace("_", " ") or row["reason"]
        command = accept(section[0], section[1:]) if accept and held and section != before else ""
        first = (str(section[1]), section[0], row["state"]) if section != before else ("", "", "")
        rows.append(Row((*first, what, value, wanted, command), "selected" if held else ""))
        before = section
    notes = [
        f"And of {step}, not shown: sections {named_sections(more['section'])}."
        for step, more in reasons.iloc[MOST_HELD:].groupby("step", sort=False)
    ]
    heads = (
        "section",
        "step",
        "state",
        "measure",
        "value",
        "its gate wants",
        "to accept the section" if accept else "",
    )
    return Table(heads, tuple(rows), tuple(notes))


def faults_table(table: pd.DataFrame) -> Table | None:
    """What the stages found wrong, section by section, whether or not a gate held it; None where there is nothing."""
    sections = section_states(table)
    wrong = sections[(sections["faults"] != "") | sections["state"].isin(("failed", "absent"))]
    wrong = wrong.sort_values("state", key=lambda states: states != "failed", kind="stable")
    rows = [
        Row(
            (str(row["section"]), row["step"], row["state"], row["faults"] or "no result, and nothing said of why"),
            "failed" if row["state"] == "failed" else "",
        )
        for _, row in wrong.head(MOST_FAULTS).iterrows()
    ]
    left = len(wrong) - len(rows)
    notes = (f"And {_several(left, 'section')} more; the table of quality has all.",) if left else ()
    return Table(("section", "step", "state", "what the stage says"), tuple(rows), notes) if rows else None


def costs_table(steps: Sequence[StepLine]) -> Table | None:
    """Jobs and node time by step, and their sums; None where there are none."""
    heads = ("step", "stage", "jobs", "done", "failed", "held", "node time (s)", "seconds a job done")
    rows = [_cost_row(step) for step in steps]
    if len(steps) > 1:
        sums = (sum(getattr(step, name) for step in steps) for name in ("jobs", "done", "failed", "held"))
        cells = ("all", "", *(text(total) for total in sums), text(sum(step.node_seconds for step in steps)), "")
        rows.append(Row(cells, "trivial"))
    return Table(heads, tuple(rows)) if rows else None


def _cost_row(step: StepLine) -> Row:
    each = step.node_seconds / step.done if step.done else None
    counts = (text(number) for number in (step.jobs, step.done, step.failed, step.held))
    cells = (step.step, step.stage, *counts, text(step.node_seconds), text(each))
    return Row(cells, "failed" if step.failed else "")


def _accept_all(table: pd.DataFrame, accept: Accept | None) -> list[tuple[str, str]]:
    """(step and how many, command that accepts all that it holds), where it holds more than one."""
    if accept is None:
        return []
    sections = section_states(table)
    held = sections[sections["state"] == "held"]
    return [
        (f"all {len(rows)} held at {step}", accept(str(step), [int(number) for number in rows["section"]]))
        for step, rows in held.groupby("step", sort=False)
        if len(rows) > 1
    ]


def _plots_by_step(table: pd.DataFrame) -> list[_Step]:
    steps = []
    measured = table[table["measure"] != ""]
    for (step, stage), rows in measured.groupby(["step", "stage"], sort=False):
        plots = [
            _Plot(pictures.figure_uri(measure_over_sections(mine)), _caption(mine.iloc[0]))
            for _, mine in rows.groupby("measure", sort=False)
        ]
        steps.append(_Step(str(step) if step == stage else f"{step} ({stage})", tuple(plots)))
    return steps


def _caption(row: pd.Series) -> str:
    name = str(row["measure"]).replace("_", " ")
    least = "at least" if row["better"] == "higher" else "at most"
    gate = "it has no gate" if pd.isna(row["threshold"]) else f"its gate wants {least} {text(row['threshold'])}"
    what = f"{name}: {row['description']}" if row["description"] else name
    return f"{what[:1].upper()}{what[1:]}; {row['better']} is better, {gate}."


def _correlations_table(found: pd.DataFrame) -> Table:
    rows = [
        Row((row["step"], str(row["measure"]).replace("_", " "), text(row["correlation"]), text(row["sections"])))
        for _, row in found.iterrows()
    ]
    return Table(("step", "measure", "rank correlation with the true error", "sections"), tuple(rows))


def _error_plots(joined: pd.DataFrame) -> tuple[_Plot, ...]:
    plots = []
    for (step, measure), rows in joined.groupby(["step", "measure"], sort=False):
        caption = f"{step}: {str(measure).replace('_', ' ')} of each section against its true error."
        plots.append(_Plot(pictures.figure_uri(measure_against_error(rows)), caption))
    return tuple(plots)


def _several(count: int, what: str) -> str:
    return f"{text(count)} {what}{'' if count == 1 else 's'}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
