"""The user's own files that a pipeline reads, looked at before any job: they are there, are what the stage takes, and
fit each other.  What an earlier step makes cannot be looked at; its stage does, when it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, EnsembleError
from apps.core.volumes import Volume, open_volume
from ensemble.pipeline.definition import Pipeline, Step, paths_of
from ensemble.pipeline.references import references

# Parameters that name volumes, by what they hold.
GREY = ("image", "volume")
IDS = ("segmentation", "labels", "clefts", "vesicles")
MODEL = ("model", "init")
MODEL_FILE, GOOGLE_FILE = "model.json", ".index"
# Stages whose image has to be uint8, and whose labels have to have its shape.
UINT8 = frozenset({"ingest", "inference", "agglomeration", "training", "masking"})
OF_ONE_SHAPE = frozenset({"ingest", "training"})
# Of a volume of floats so much is looked at for what is no number.
LOOK = 128


def wrong_inputs(pipeline: Pipeline) -> list[str]:
    """What is wrong with what steps read, a sentence each; empty where nothing is seen to be."""
    return [
        f"step {name}: {sentence}" for name, step in pipeline.steps.items() for sentence in _wrong_of(pipeline, step)
    ]


def _wrong_of(pipeline: Pipeline, step: Step) -> Iterator[str]:
    good: dict[str, Volume] = {}
    for where, name, value in paths_of(step.parameters):
        if name in ("output", "tiles") or not value.startswith("/"):
            continue
        try:
            volume = _look(step, name, value)
        except FileNotFoundError:
            if not step.after:  # which may make it
                yield f"{where} {value}: is not there{_expected(name)}"
            continue
        except EnsembleError as error:
            yield f"{where}: {error}"
            continue
        if volume is not None:
            good[where] = volume
    yield from _misfits(step, good)
    yield from _boxes(pipeline, step)


def _look(step: Step, name: str, value: str) -> Volume | None:
    """The volume of that name, looked at; None for what is none.

    Raises FileNotFoundError where there is nothing, DataError where it cannot be what the stage reads.
    """
    if name in MODEL:
        _look_at_model(value)
        return None
    if not Path(value).exists() and not Path(value.rpartition(":")[0] or value).exists():
        raise FileNotFoundError(value)
    if name not in (*GREY, *IDS) or (name == "volume" and step.stage != "multiscale"):
        return None
    volume = open_volume(value)
    if name in IDS and volume.dtype.kind not in "ui":
        raise DataError(f"{value}: has dtype {volume.dtype}; expected integers, as they are ids")
    if name == "image" and step.stage in UINT8 and volume.dtype != np.uint8:
        raise DataError(f"{value}: has dtype {volume.dtype}; expected uint8 grey values (0 to 255): convert it first")
    if volume.dtype.kind == "f":
        lower = tuple(max(0, (n - LOOK) // 2) for n in volume.shape)
        volume.read(Box.of(_triple(lower), _triple(min(n, LOOK) for n in volume.shape)))  # raises for NaN
    return volume


def _look_at_model(value: str) -> None:
    folder = Path(value)
    if folder.is_dir() and not (folder / MODEL_FILE).is_file():
        raise DataError(f"{value}: is no trained model, it has no {MODEL_FILE}; expected a checkpoint's folder")
    if not folder.exists() and not Path(f"{value}{GOOGLE_FILE}").exists():
        raise FileNotFoundError(value)


def _misfits(step: Step, volumes: Mapping[str, Volume]) -> Iterator[str]:
    """Volumes of one step, or of one entry of a list in it, that are not of the same place."""
    for where, image in volumes.items():
        entry, _, name = where.rpartition(".")
        others = {other: volumes[key] for other in IDS if (key := f"{entry}.{other}" if entry else other) in volumes}
        for other, volume in others.items() if name == "image" else ():
            ours, theirs = image.voxel_size_nm, volume.voxel_size_nm
            if ours and theirs and not np.allclose(ours, theirs):
                yield (
                    f"{other} {volume.name}: has voxels of {_sizes(theirs)} nm (zyx), and the image {image.name} of "
                    f"{_sizes(ours)}; expected the same"
                )
            elif step.stage in OF_ONE_SHAPE and image.shape != volume.shape:
                yield f"{other} {volume.name}: has shape {volume.shape}; expected that of the image, {image.shape}"


def _boxes(pipeline: Pipeline, step: Step) -> Iterator[str]:
    """Boxes that leave the volume that they are of."""
    parameters = step.parameters
    grid = parameters.get("grid")
    given = {"grid.box": grid.get("box") if isinstance(grid, dict) else None, "box": parameters.get("box")}
    volume = parameters.get("labels" if step.stage == "evaluation" else "image")
    shape = _shape_of(pipeline, volume) if any(given.values()) else None
    for where, box in given.items():
        if shape is None or not isinstance(box, dict):
            continue
        try:
            asked, there = Box.from_json(box, where), Box.of((0, 0, 0), shape)
        except EnsembleError as error:
            yield str(error)
            continue
        if not there.contains(asked):
            yield f"{where} {asked} (zyx): leaves the volume {volume}, which is {there}"


def _shape_of(pipeline: Pipeline, volume: Any) -> Triple | None:
    """Of a volume that is there, or that a phantom or an ingest is going to make of what is known; else None."""
    if not isinstance(volume, str):
        return None
    if volume.startswith("/"):
        try:
            return open_volume(volume).shape
        except EnsembleError:
            return None  # is said elsewhere
    for other, name in references(volume):
        step = pipeline.steps[other]
        shape = step.parameters.get("shape")
        if step.stage == "phantom" and name in ("image", "labels") and _is_triple(shape):
            return _triple(shape)
        if step.stage == "ingest" and not step.parameters.get("box"):
            return _shape_of(pipeline, step.parameters.get("image"))
    return None


def _is_triple(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(n, int) for n in value)


def _triple(numbers: Any) -> Triple:
    z, y, x = numbers
    return z, y, x


def _sizes(voxel_size_nm: tuple[float, ...]) -> str:
    return " x ".join(f"{size:g}" for size in voxel_size_nm)


def _expected(name: str) -> str:
    if name in MODEL:
        return "; expected a checkpoint's folder (`ensemble models show NAME` tells that of a registered model)"
    return ""
