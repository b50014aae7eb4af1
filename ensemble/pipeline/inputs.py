"""The user's own files that a pipeline reads, looked at before any job: they are there, are what the stage takes, and
fit each other.  What another step makes, or may make, is not looked at: its content is not yet what the step will read,
and its stage looks at it then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, EnsembleError, ParameterError
from apps.core.volumes import Volume, known_voxel_size, open_volume
from apps.ffn.applicability import check_overlap, check_voxel_size
from apps.ffn.google_checkpoint import INDEX
from ensemble.pipeline.definition import Pipeline, Step, paths_of
from ensemble.pipeline.known import fov_of, grid_of, may_be_made, shape_of, trained_voxel_size, voxel_size_of_volume
from ensemble.pipeline.references import references
from ensemble.pipeline.registered import FLOODING

# Parameters that name volumes, by what they hold.
GREY = ("image", "volume")
IDS = ("segmentation", "labels", "clefts", "vesicles")
MODEL = ("model", "init")
MODEL_FILE = "model.json"
# Stages whose image has to be uint8, and whose labels have to have its shape.
UINT8 = frozenset({"ingest", "inference", "agglomeration", "training", "masking"})
OF_ONE_SHAPE = frozenset({"ingest", "training"})
# (stage, parameter) whose voxels the stage compares with those of its image, and the relative difference that it takes.
OF_ONE_VOXEL_SIZE = {
    ("ingest", "labels"): 1e-6,
    ("agglomeration", "segmentation"): 1e-4,
    ("synapses", "segmentation"): 0.01,
}
# Of a volume of floats so much is looked at for what is no number.
LOOK = 128


def wrong_inputs(pipeline: Pipeline) -> list[str]:
    """What is wrong with what steps read, a sentence each; empty where nothing is seen to be."""
    return [f"step {name}: {sentence}" for name in pipeline.steps for sentence in _wrong_of(pipeline, name)]


def _wrong_of(pipeline: Pipeline, name: str) -> Iterator[str]:
    step = pipeline.steps[name]
    good: dict[str, Volume] = {}
    for where, parameter, value in paths_of(step.parameters):
        if parameter in ("output", "tiles") or not value.startswith("/") or may_be_made(pipeline, name, value):
            continue
        try:
            volume = _look(step, parameter, value)
        except FileNotFoundError:
            yield f"{where} {value}: is not there{_expected(step, parameter)}"
            continue
        except EnsembleError as error:
            yield f"{where}: {error}"
            continue
        except OSError as error:  # a name that is too long, a folder that may not be entered
            yield f"{where} {value}: cannot be looked at ({error.strerror or error})"
            continue
        if volume is not None:
            good[where] = volume
    yield from _not_made(pipeline, step)
    if step.stage == "ingest":
        yield from _unknown_size(step, good)
    yield from _misfits(step, good)
    yield from _boxes(pipeline, name)
    if step.stage in FLOODING:
        yield from _network(pipeline, name)


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
    if volume.dtype.kind == "f" and step.stage != "evaluation":  # which reads of it only its box
        lower = tuple(max(0, (n - LOOK) // 2) for n in volume.shape)
        volume.read(Box.of(_triple(lower), _triple(min(n, LOOK) for n in volume.shape)))  # raises for NaN
    return volume


def _look_at_model(value: str) -> None:
    folder = Path(value)
    if folder.is_dir() and not (folder / MODEL_FILE).is_file():
        raise DataError(f"{value}: is no trained model, it has no {MODEL_FILE}; expected a checkpoint's folder")
    if not folder.exists() and not Path(f"{value}{INDEX}").exists():
        raise FileNotFoundError(value)


def _not_made(pipeline: Pipeline, step: Step) -> Iterator[str]:
    """Labels of a step that was given none, and so makes none."""
    for other, what in references(step.parameters):
        made = pipeline.steps[other]
        if made.stage == "ingest" and what == "labels" and made.parameters.get("labels") is None:
            yield f"${{{other}.labels}}: the step {other} has no `labels`; give it some, or take this step out"


def _unknown_size(step: Step, volumes: Mapping[str, Volume]) -> Iterator[str]:
    image = volumes.get("image")
    if image is not None and image.voxel_size_nm is None and step.parameters.get("voxel_size_nm") is None:
        yield f"image {image.name}: does not say its voxel size; give `voxel_size_nm` (zyx)"


def _misfits(step: Step, volumes: Mapping[str, Volume]) -> Iterator[str]:
    """Volumes of one step, or of one entry of a list in it, that are not of the same place."""
    for where, image in volumes.items():
        entry, _, name = where.rpartition(".")
        others = {other: volumes[key] for other in IDS if (key := f"{entry}.{other}" if entry else other) in volumes}
        for other, volume in others.items() if name == "image" else ():
            if _of_other_voxels(step, other, image, volume):
                yield (
                    f"{other} {volume.name}: has voxels of {_sizes(volume)} nm (zyx), and the image {image.name} of "
                    f"{_sizes(image)}; expected the same"
                )
            elif step.stage in OF_ONE_SHAPE and image.shape != volume.shape:
                yield f"{other} {volume.name}: has shape {volume.shape}; expected that of the image, {image.shape}"


def _of_other_voxels(step: Step, name: str, image: Volume, volume: Volume) -> bool:
    """Whether the stage would refuse the volume for its voxels; a size that is not known speaks against nothing."""
    tolerance = OF_ONE_VOXEL_SIZE.get((step.stage, name))
    if tolerance is None or (step.stage == "ingest" and step.parameters.get("voxel_size_nm") is not None):
        return False
    ours, theirs = known_voxel_size(image.voxel_size_nm), known_voxel_size(volume.voxel_size_nm)
    return ours is not None and theirs is not None and not np.allclose(ours, theirs, rtol=tolerance)


def _boxes(pipeline: Pipeline, name: str) -> Iterator[str]:
    """Boxes that leave the volume that they are of."""
    step = pipeline.steps[name]
    parameters = step.parameters
    grid = parameters.get("grid")
    given = {"grid.box": grid.get("box") if isinstance(grid, dict) else None, "box": parameters.get("box")}
    volume = parameters.get("labels" if step.stage == "evaluation" else "image")
    shape = shape_of(pipeline, name, volume) if any(given.values()) else None
    for where, box in given.items():
        if shape is None or not isinstance(box, dict) or references(box):
            continue
        try:
            asked, there = Box.from_json(box, where), Box.of((0, 0, 0), shape)
        except EnsembleError as error:
            yield str(error)
            continue
        if not there.contains(asked):
            yield f"{where} {asked} (zyx): leaves the volume {volume}, which is {there}"


def _network(pipeline: Pipeline, name: str) -> Iterator[str]:
    """What does not fit the network that a step floods with: the image's voxels, the overlap of a grid."""
    parameters = pipeline.steps[name].parameters
    image, model = parameters.get("image"), parameters.get("model")
    if not parameters.get("any_voxel_size"):
        ours, theirs = voxel_size_of_volume(pipeline, name, image), trained_voxel_size(pipeline, name, model)
        try:
            check_voxel_size(f"image {image}", ours, f"{model}", theirs)
        except DataError as error:
            yield str(error)
    try:
        grid, fov = grid_of(pipeline, name), fov_of(pipeline, name)
        if grid is not None and fov is not None:
            check_overlap(grid, fov)
    except ParameterError as error:
        yield f"grid: {error}"


def _triple(numbers: Any) -> Triple:
    z, y, x = numbers
    return z, y, x


def _sizes(volume: Volume) -> str:
    return " x ".join(f"{size:g}" for size in volume.voxel_size_nm or ())


def _expected(step: Step, name: str) -> str:
    if name not in MODEL:
        return ""
    if step.stage in (*FLOODING, "training"):
        return "; expected a checkpoint's folder (`ensemble models show NAME` tells that of a registered model)"
    return f"; expected the folder `model` that `action: train` of the stage {step.stage} leaves"
