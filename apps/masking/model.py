"""A trained network of masks, and what its `model.json` says besides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import DataError
from apps.masking.classes import CLASSES, Scores
from apps.masking.network import NetworkParameters
from apps.unet.storage import TrainedInfo, read_model
from apps.unet.weights import Weights


class ModelInfo(TrainedInfo, frozen=True, kw_only=True):
    """What `model.json` holds."""

    network: Annotated[NetworkParameters, Meta(description="the architecture")]
    normalisation: Annotated[
        Literal["section"], Meta(description="grey values less the section's mean, over its standard deviation")
    ] = "section"
    classes: Annotated[tuple[str, ...], Meta(description="what the network's outputs stand for, from 0")] = CLASSES
    validation: Annotated[Scores, Meta(description="Dice of each class in the validation box; null: none there")]


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    info: ModelInfo
    weights: Weights


def load_model(folder: Path) -> Model:
    """Read a model.  Raises DataError, with the folder in it, where it is missing, damaged, or of other classes."""
    info, weights = read_model(folder, ModelInfo, "masks")
    if info.classes != CLASSES:
        raise DataError(f"{folder}: tells the classes {info.classes}; expected {CLASSES}")
    return Model(info, weights)
