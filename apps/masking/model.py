"""A trained network on disk: a folder with `model.json` and `weights.npz`, swapped in whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError
from apps.core.files import folder_in_the_making
from apps.core.parameters import Parameters
from apps.ffn.checkpoint import load_arrays, save_arrays
from apps.masking.classes import CLASSES, Scores
from apps.masking.network import NetworkParameters, build

MODEL_FILE, WEIGHTS_FILE = "model.json", "weights.npz"

Weights = dict[str, NDArray[np.float32]]


class ModelInfo(Parameters, frozen=True, kw_only=True):
    """What `model.json` holds."""

    network: Annotated[NetworkParameters, Meta(description="the architecture")]
    normalisation: Annotated[
        Literal["section"], Meta(description="grey values less the section's mean, over its standard deviation")
    ] = "section"
    classes: Annotated[tuple[str, ...], Meta(description="what the network's outputs stand for, from 0")] = CLASSES
    checksum: Annotated[str, Meta(description="SHA-256 of the weights by name")]
    steps: Annotated[int, Meta(ge=1, description="optimiser updates that it was trained for")]
    loss: Annotated[float, Meta(description="mean over the last quarter of the steps")]
    validation: Annotated[Scores, Meta(description="Dice of each class in the validation box; null: none there")]
    provenance: Annotated[dict[str, Any], Meta(description="how it came to be: code version, parameters, data")]


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    info: ModelInfo
    weights: Weights


def save_model(folder: Path, info: ModelInfo, weights: Weights) -> None:
    """Write the folder atomically, in the place of an older one.  Raises DataError where it cannot be written."""
    try:
        with folder_in_the_making(folder) as temporary:
            info.save(temporary / MODEL_FILE)
            save_arrays(temporary / WEIGHTS_FILE, weights)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); free some space") from error


def find_model(folder: Path) -> Path | None:
    """`folder` where it is a model, None otherwise.

    A process killed between the two renames of a swap leaves the older model put away: it is put back.
    """
    put_away = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and (put_away / MODEL_FILE).is_file():
        put_away.rename(folder)
    return folder if (folder / MODEL_FILE).is_file() else None


def load_model(folder: Path) -> Model:
    """Read a model.  Raises DataError, with the folder in it, where it is missing, damaged, or of other classes."""
    if find_model(folder) is None:
        raise DataError(f"{folder}: is no model of masks, it has no {MODEL_FILE}; the action train makes one")
    try:
        info = ModelInfo.load(folder / MODEL_FILE)
    except ParameterError as error:
        raise DataError(f"{folder}: is a damaged model ({error})") from error
    if info.classes != CLASSES:
        raise DataError(f"{folder}: tells the classes {info.classes}; expected {CLASSES}")
    weights = load_arrays(folder / WEIGHTS_FILE)
    if checksum(weights) != info.checksum:
        raise DataError(f"{folder}: is a damaged model, {WEIGHTS_FILE} does not fit its checksum; train again")
    return Model(info, weights)


def checksum(weights: Weights) -> str:
    """SHA-256 over the weights by name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()


def keras_model(network: NetworkParameters, weights: Weights) -> Any:
    """The Keras model with these weights.  Raises DataError where they are not those of such a network."""
    model = build(network)
    set_weights(model, weights)
    return model


def get_weights(model: Any) -> Weights:
    """All variables of a Keras model, the batch statistics among them, by name."""
    return {variable.path: np.asarray(variable.value) for variable in model.variables}


def set_weights(model: Any, weights: Weights) -> None:
    """Put weights into a Keras model.  Raises DataError where names or shapes are not its own."""
    expected = {variable.path: tuple(variable.shape) for variable in model.variables}
    given = {name: array.shape for name, array in weights.items()}
    if expected != given:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise DataError(f"weights {', '.join(wrong[:5])}: are not those of this network; it is damaged, train again")
    for variable in model.variables:
        variable.assign(weights[variable.path])


def initial_weights(model: Any, seed: int) -> Weights:
    """Weights to start from (He et al. 2015: normal, of variance 2 / inputs of a unit); the rest as Keras has it."""
    rng = np.random.default_rng(seed)
    weights = get_weights(model)
    for name in sorted(weights):
        if name.endswith("kernel"):
            shape = weights[name].shape
            # A transposed convolution has [y, x, out, in], and each of its outputs one place of the kernel.
            inputs = shape[-1] if "_grow/" in name else int(np.prod(shape[:-1]))
            if name.endswith("depthwise_kernel"):
                inputs = shape[0] * shape[1]
            weights[name] = (rng.standard_normal(shape) * np.sqrt(2 / inputs)).astype(np.float32)
    return weights
