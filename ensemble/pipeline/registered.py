"""Registered models in a pipeline: `model: NAME`, `NAME:VERSION` or `NAME@ALIAS` of a step that floods with a network.

A name is looked up once, when the pipeline is read: the step gets the folder of that version's checkpoint, and so what
its jobs' keys are hashes of is the version.  An alias that has moved since is another model, and the step is done anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import EnsembleError, ParameterError
from ensemble.models import CHECKPOINT, MODEL_FILE, Model, checkpoint_of, find_model

if TYPE_CHECKING:
    from ensemble.pipeline.definition import Pipeline

# Stages whose parameter `model` is a flood-filling network, which is what the registry holds.
FLOODING = frozenset({"inference", "agglomeration"})
MODEL, SETTINGS = "model", "settings"


def is_model_name(stage: str, parameter: str, value: str) -> bool:
    """Whether the parameter of a stage may be the name of a registered model, and this is none of a file."""
    return stage in FLOODING and parameter == MODEL and "/" not in value and not value.startswith(("$", "."))


def with_registered_model(stage: str, parameters: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """`parameters` with a checkpoint's folder for the name of a model, and its settings under the step's own.

    A checkpoint holds its normalisation, but not the settings that the model was scored with.  Raises ParameterError
    where there is no such model, DataError where its files are not those that were registered.
    """
    name = parameters.get(MODEL)
    if not isinstance(name, str) or not is_model_name(stage, MODEL, name):
        return dict(parameters)
    try:
        model = find_model(home, name)
    except EnsembleError as error:
        raise ParameterError(
            f"{error}; `ensemble models list` has those of {home}, and a folder begins with ./ or /"
        ) from error
    found = {**parameters, MODEL: str(checkpoint_of(home, model))}
    own = parameters.get(SETTINGS, {})
    return {**found, SETTINGS: {**model.inference, **own}} if isinstance(own, Mapping) else found


def registered_models(pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """(step, NAME:VERSION) of the steps whose model is a registered one; the record beside its checkpoint tells."""
    for step, content in pipeline.steps.items():
        folder = Path(str(content.parameters.get(MODEL)))
        record = folder.parent / MODEL_FILE
        if folder.name == CHECKPOINT and record.is_file():
            model = Model.load(record)
            yield step, f"{model.name}:{model.version}"
