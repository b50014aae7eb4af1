"""What is known, before any job, of the volumes and the networks that the steps of a pipeline name.

Of what lies on disk, what the files say; of what an earlier step will make, what its parameters say.  None is always:
not known yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from apps.core.boxes import Triple
from apps.core.errors import EnsembleError
from apps.core.stage import load_stage
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import VoxelSize, open_volume
from apps.ffn.applicability import common_voxel_size
from apps.ffn.checkpoint import geometry_of, voxel_size_of
from apps.ffn.model import ModelParameters
from ensemble.pipeline.definition import Pipeline, Step, paths_of
from ensemble.pipeline.references import REFERENCE, references

T = TypeVar("T")


def may_be_made(pipeline: Pipeline, name: str, value: str) -> bool:
    """Whether a path of a step may be made, or made anew, by another step before the step's jobs begin.

    So it is for all paths of a step with `after`, and for what is, or lies below, the output of another step where
    this one waits for any.
    """
    if pipeline.steps[name].after:
        return True
    place = Path(os.path.normpath(value.rpartition(":")[0] or value))
    outputs = (
        os.path.normpath(text)
        for other, step in pipeline.steps.items()
        if other != name
        for _, parameter, text in paths_of(step.parameters)
        if parameter == "output"
    )
    return bool(pipeline.needs(name)) and any(place.is_relative_to(output) for output in outputs)


def shape_of(pipeline: Pipeline, name: str, volume: Any) -> Triple | None:
    """Of a step's volume that is there, or that a phantom or an ingest is going to make of what is known."""
    if not isinstance(volume, str):
        return None
    if volume.startswith("/"):
        return _there(pipeline, name, volume, lambda: open_volume(volume).shape)
    for other, what in references(volume):
        if what in ("image", "labels"):
            return _made_shape(pipeline, other)
    return None


def grid_of(pipeline: Pipeline, name: str) -> SubvolumeGrid | None:
    """The subvolumes of a step, whose box may have the shape of a volume that an earlier step makes.

    Raises ParameterError where they cannot be.
    """
    grid = pipeline.steps[name].parameters.get("grid")
    if not isinstance(grid, dict):
        return None
    box = grid.get("box")
    whole = REFERENCE.fullmatch(f"{box.get('shape')}") if isinstance(box, dict) else None
    if isinstance(box, dict) and whole and whole[2] == "shape":
        shape = _made_shape(pipeline, whole[1])
        grid = grid if shape is None else {**grid, "box": {**box, "shape": list(shape)}}
    return None if references(grid) else SubvolumeGrid.from_json(grid, "grid")


def voxel_size_of_volume(pipeline: Pipeline, name: str, volume: Any) -> VoxelSize | None:
    """Likewise, its voxel size in nanometres, zyx."""
    if not isinstance(volume, str):
        return None
    if volume.startswith("/"):
        return _there(pipeline, name, volume, lambda: open_volume(volume).voxel_size_nm)
    for other, _ in references(volume):
        step = pipeline.steps[other]
        if step.stage == "ingest" and _value(step, "voxel_size_nm") is None:
            return voxel_size_of_volume(pipeline, other, step.parameters.get("image"))
        if step.stage in ("phantom", "ingest", "montage"):
            return _numbers(_value(step, "voxel_size_nm"))
    return None


def fov_of(pipeline: Pipeline, name: str) -> Triple | None:
    """Field of view zyx of the network that a step floods with."""
    step = pipeline.steps[name]
    given = step.parameters.get("fov")
    return _fov_of_model(pipeline, name, step.parameters.get("model")) if given is None else _integers(given)


def trained_voxel_size(pipeline: Pipeline, name: str, model: Any) -> VoxelSize | None:
    """Voxel size zyx in nanometres that the network which a step names was trained at."""
    if not isinstance(model, str):
        return None
    if model.startswith("/"):
        return _there(pipeline, name, model, lambda: voxel_size_of(model))
    training = _training_of(pipeline, model)
    if training is None:
        return None
    step = pipeline.steps[training]
    if _value(step, "steps") == 0:  # weights that are adopted as they are
        return trained_voxel_size(pipeline, training, step.parameters.get("init"))
    volumes = step.parameters.get("volumes")
    if not isinstance(volumes, list | tuple) or not all(isinstance(volume, dict) for volume in volumes):
        return None
    return common_voxel_size(
        _numbers(volume["voxel_size_nm"])
        if volume.get("voxel_size_nm") is not None
        else voxel_size_of_volume(pipeline, training, volume.get("image"))
        for volume in volumes
    )


def _made_shape(pipeline: Pipeline, name: str) -> Triple | None:
    """Of the volumes that a phantom or an ingest makes."""
    step = pipeline.steps[name]
    if step.stage == "phantom":
        return _integers(step.parameters.get("shape"))
    if step.stage == "ingest":
        box = step.parameters.get("box")
        if isinstance(box, Mapping):
            return _integers(box.get("shape"))
        return None if box else shape_of(pipeline, name, step.parameters.get("image"))
    return None


def _fov_of_model(pipeline: Pipeline, name: str, model: Any) -> Triple | None:
    if not isinstance(model, str):
        return None
    if model.startswith("/"):
        return _there(pipeline, name, model, lambda: geometry_of(model)[0])
    training = _training_of(pipeline, model)
    return None if training is None else _fov_of_training(pipeline, training)


def _fov_of_training(pipeline: Pipeline, name: str) -> Triple | None:
    step = pipeline.steps[name]
    model, init = step.parameters.get("model"), step.parameters.get("init")
    if isinstance(model, dict):
        return _integers(model.get("fov", ModelParameters().fov))
    if model is not None:
        return None
    if isinstance(init, str) and init.startswith("/") and not Path(init).is_dir():  # google/ffn's, which hold none
        return _there(pipeline, name, init, lambda: _integers(_value(step, "init_fov")))
    return _fov_of_model(pipeline, name, init)


def _training_of(pipeline: Pipeline, model: str) -> str | None:
    """The training whose checkpoint a parameter refers to."""
    steps = [other for other, _ in references(model) if pipeline.steps[other].stage == "training"]
    return steps[0] if steps else None


def _there(pipeline: Pipeline, name: str, place: str, look: Callable[[], T | None]) -> T | None:
    """What a look at the user's own file or folder gives; what is wrong with it is said elsewhere."""
    try:
        return None if may_be_made(pipeline, name, place) else look()
    except (EnsembleError, OSError):
        return None


def _value(step: Step, parameter: str) -> Any:
    """What a step gives, or else its stage's own default."""
    fields = {field.name: field for field in msgspec.structs.fields(load_stage(step.stage).parameters)}
    return step.parameters.get(parameter, fields[parameter].default)


def _integers(value: Any) -> Triple | None:
    return _triple(value, int)


def _numbers(value: Any) -> VoxelSize | None:
    return _triple(value, int | float)


def _triple(value: Any, kind: Any) -> Any:
    """Three numbers as a tuple; None for anything else, as a reference."""
    triple = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(n, kind) for n in value)
    return tuple(value) if triple else None
