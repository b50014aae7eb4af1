"""The report of a pipeline: gathers what every step gave, and has the analysis package write the page.

What a step gave is read from its results by the stage's own description of them, so a stage that is added to the
project is in the report without more ado.
"""

from __future__ import annotations

import math
import platform
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

import analysis
from apps.core.boxes import Box
from apps.core.errors import DataError, EnsembleError
from apps.core.stage import code_version, load_stage
from apps.core.volumes import open_volume
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Look
from ensemble.pipeline.registered import registered_models
from ensemble.viewing.choice import Choice, choose
from ensemble.viewing.lineage import SEGMENTING, Lineage, Record
from ensemble.viewing.stores import VIEW_FILE, VOLUMES, Stores

COLOURS = "An object has the colour of the true object with which it shares the most, where that holds both ways."
NO_TRUTH = "No ground truth was compared with: nothing on this page tells errors."
LONGEST = 80  # characters of a text among the results


def write_report(path: Path, pipeline: Pipeline, look: Look, node_seconds: Mapping[str, float]) -> Path:
    """Write the page, whole or not at all; returns its path.  Raises DataError where it cannot be written."""
    steps = tuple(
        analysis.StepLine(
            name, pipeline.steps[name].stage, len(plan.tasks), look.done(name), len(look.failed(name)), 0, seconds
        )
        for (name, plan), seconds in zip(look.plans.items(), node_seconds.values(), strict=True)
    )
    records = _records(look)
    choice, view, connectomes = _choice(records), path.with_name(VIEW_FILE), _connectomes(path.parent, pipeline, look)
    stores = Stores.from_json({**choice.stores, "report": str(path)}) if choice.stores.keys() & set(VOLUMES) else None
    pictures, missing = _pictures(pipeline, look, records)
    missing = (*missing, *(f"In the viewer: {remark}." for remark in choice.remarks))
    accuracy = _accuracy(pipeline, look)
    jobs = (f"balsam job ls --tag campaign={pipeline.name}", "its Balsam jobs (after `ensemble service env`)")
    viewer = (shlex.join(("ensemble", "view", str(view))), "the volumes, and what was found in them, in neuroglancer")
    page = analysis.ChainPage(
        title=f"pipeline {pipeline.name}",
        headline=headline(pipeline, look),
        steps=steps,
        figures={name: tuple(_figures(pipeline, look, name)) for name in look.plans},
        accuracy=accuracy,
        pictures=pictures,
        places=(*((f"{name}: page", str(page)) for name, _, page in connectomes), *_places(look)),
        honest=missing if accuracy else (*missing, NO_TRUTH),
        provenance={
            "code version": code_version(),
            "host": platform.node(),
            "written": time.strftime("%F %T %z"),
            **{f"{step}: model": model for step, model in registered_models(pipeline)},
        },
        commands=(jobs,) if stores is None else (viewer, jobs),
    )
    try:
        if stores is not None:
            stores.save(view)
        for name, folder, file in connectomes:
            analysis.write_connectome_page(folder, file, title=name)
        return analysis.write_chain_page(path, page)
    except analysis.AnalysisError as error:
        raise DataError(str(error)) from error


def headline(pipeline: Pipeline, look: Look) -> str:
    """Where the pipeline stands, in a sentence."""
    done = [name for name, plan in look.plans.items() if plan.settled]
    if len(done) == len(look.plans):
        return f"All {len(done)} steps are done."
    rest = ", ".join(name for name in pipeline.steps if name not in done)
    return f"{len(done)} of {len(look.plans)} steps are done; not done: {rest}."


def _figures(pipeline: Pipeline, look: Look, step: str) -> Iterator[analysis.Figure]:
    """The numbers and short texts among a step's results, with the stage's words for them."""
    plan = look.plans[step]
    if plan.settled:
        yield from _described(load_stage(pipeline.steps[step].stage).result, plan.values)


def _described(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[analysis.Figure]:
    described = msgspec.inspect.type_info(kind)
    assert isinstance(described, msgspec.inspect.StructType)  # results are
    for found in described.fields:
        value, meaning, inner = values.get(found.name), "", found.type
        if isinstance(inner, msgspec.inspect.Metadata):
            meaning, inner = (inner.extra_json_schema or {}).get("description", ""), inner.type
        options = inner.types if isinstance(inner, msgspec.inspect.UnionType) else (inner,)
        struct = next((one for one in options if isinstance(one, msgspec.inspect.StructType)), None)
        name = f"{prefix}{found.name}"
        if struct is not None and isinstance(value, Mapping):
            yield from _described(struct.cls, value, f"{name}.")
        elif isinstance(value, Mapping):
            yield from (analysis.Figure(f"{name}.{key}", one, meaning) for key, one in value.items() if _is_figure(one))
        elif value is not None and _is_figure(value):
            yield analysis.Figure(name, value, meaning)


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= LONGEST and "/" not in value
    return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _connectomes(folder: Path, pipeline: Pipeline, look: Look) -> tuple[tuple[str, str, Path], ...]:
    """Step, output, and page to be written, of every wiring graph."""
    done = ((name, plan) for name, plan in look.plans.items() if plan.settled)
    return tuple(
        (name, plan.values["output"], folder / f"{name}.html")
        for name, plan in done
        if pipeline.steps[name].stage == "connectome"
    )


def _places(look: Look) -> Iterator[tuple[str, str]]:
    """What was made: every path among the results that is there."""
    for name, plan in look.plans.items():
        for what, value in plan.values.items():
            if plan.settled and isinstance(value, str) and value.startswith("/") and Path(value).exists():
                yield f"{name}: {what}", value


def _accuracy(pipeline: Pipeline, look: Look) -> analysis.AccuracyTable | None:
    """Of the last evaluation that has scores, and of the trivial answers there."""
    for name, plan in reversed(look.plans.items()):
        values = plan.values
        if pipeline.steps[name].stage == "evaluation" and plan.settled and values["scores"] and values["baselines"]:
            box = Box.from_json(values["box"])
            return analysis.AccuracyTable({"the segmentation": values["scores"]}, values["baselines"], str(box))
    return None


def _records(look: Look) -> list[Record]:
    """What the jobs that ended well left."""
    outcomes = ((task, look.outcomes.get(task.key)) for plan in look.plans.values() for task in plan.tasks)
    return [
        Record.of(task.parameters, {"stage": task.stage, **outcome.record})
        for task, outcome in outcomes
        if outcome is not None and outcome.record is not None
    ]


def _choice(records: list[Record], segmentation: str | None = None) -> Choice:
    """What there is to look at, and goes together; nothing, and why, where that cannot be told."""
    try:
        return choose(records, {} if segmentation is None else {"segmentation": segmentation})
    except EnsembleError as error:
        return Choice({}, (str(error),))


def _pictures(
    pipeline: Pipeline, look: Look, records: list[Record]
) -> tuple[tuple[analysis.Picture, ...], tuple[str, ...]]:
    """A slice through the middle of every segmentation; and why one could not be drawn, if so."""
    pictures, missing = [], []
    for name, plan in look.plans.items():
        if pipeline.steps[name].stage not in SEGMENTING or not plan.settled:
            continue
        try:
            pictures.append(_picture(name, plan.values["segmentation"], records))
        except EnsembleError as error:
            missing.append(f"There is no picture of {name}: {error}.")
    return tuple(pictures), tuple(missing)


def _picture(step: str, segmentation: str, records: list[Record]) -> analysis.Picture:
    """The segmentation on its own image, beside the labels of that image."""
    found_with = _choice(records, segmentation)
    labels = found_with.stores.get("labels")
    image = found_with.stores.get("image") or Lineage(records).image_of(segmentation)  # in HDF5, which no viewer shows
    if image is None:
        raise DataError("; ".join(found_with.remarks) or "no step names the image")
    found = open_volume(segmentation)
    plane = Box.of((found.shape[0] // 2, 0, 0), (1, *found.shape[1:]))
    oz, oy, ox = found_with.stores["offset"]
    in_image = plane.translate((oz, oy, ox))
    return analysis.Picture(
        title=f"{step}, z = {in_image.offset[0]}",
        image=open_volume(image).read(in_image)[0],
        truth=open_volume(labels).read(in_image)[0] if labels is not None else None,
        segmentation=found.read(plane)[0],
        caption=COLOURS if labels is not None else "",
    )
