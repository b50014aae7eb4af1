"""A trained network on disk: a folder with `model.json` and `weights.npz`, swapped in whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from apps.core.errors import DataError, ParameterError
from apps.core.files import put_back
from apps.core.parameters import Parameters
from apps.ffn.checkpoint import (
    MODEL_FILE,
    WEIGHTS_FILE,
    checkpoint_in_the_making,
    load_arrays,
    save_arrays,
    weights_digest,
)
from apps.unet.weights import Weights


class TrainedInfo(Parameters, frozen=True, kw_only=True):
    """What every `model.json` holds."""

    checksum: Annotated[str, Meta(description="SHA-256 of the weights by name")]
    steps: Annotated[int, Meta(ge=1, description="optimiser updates that it was trained for")]
    loss: Annotated[float, Meta(description="mean over the last quarter of the steps")]
    provenance: Annotated[dict[str, Any], Meta(description="how it came to be: code version, parameters, data")]


I = TypeVar("I", bound=TrainedInfo)  # noqa: E741


def save_model(folder: Path, info: TrainedInfo, weights: Weights) -> None:
    """Write the folder atomically, in the place of an older one.  Raises DataError where it cannot be written."""
    with checkpoint_in_the_making(folder) as temporary:
        info.save(temporary / MODEL_FILE)
        save_arrays(temporary / WEIGHTS_FILE, weights)


def find_model(folder: Path) -> Path | None:
    """`folder` where it is a model, None otherwise.

    A process killed between the two renames of a swap leaves the older model put away: it is put back.
    """
    put_back(folder, MODEL_FILE)
    return folder if (folder / MODEL_FILE).is_file() else None


def read_model(folder: Path, kind: type[I], what: str) -> tuple[I, Weights]:
    """A model of the kind, which `what` calls it in errors.

    Raises DataError, with the folder in it, where it is missing or damaged.
    """
    if find_model(folder) is None:
        raise DataError(f"{folder}: is no model of {what}, it has no {MODEL_FILE}; the action train makes one")
    try:
        info = kind.load(folder / MODEL_FILE)
    except ParameterError as error:
        raise DataError(f"{folder}: is a damaged model ({error})") from error
    weights = load_arrays(folder / WEIGHTS_FILE)
    if weights_digest(weights) != info.checksum:
        raise DataError(f"{folder}: is a damaged model, {WEIGHTS_FILE} does not fit its checksum; train again")
    return info, weights
