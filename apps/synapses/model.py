"""A trained network of synapses, and what its `model.json` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import DataError
from apps.core.volumes import Volume, VoxelSize
from apps.synapses.network import NetworkParameters
from apps.unet.storage import TrainedInfo, read_model
from apps.unet.weights import Weights

Output = Literal["cleft", "vesicles"]

_TOLERANCE = 0.1  # by which voxels may be longer or shorter than those that were trained on


class ModelInfo(TrainedInfo, frozen=True, kw_only=True):
    """What `model.json` holds."""

    network: Annotated[NetworkParameters, Meta(description="the architecture")]
    outputs: Annotated[tuple[Output, ...], Meta(description="what the network's outputs are probabilities of")]
    normalisation: Annotated[
        Literal["image"], Meta(description="grey values less the image's mean, over its standard deviation")
    ] = "image"
    voxel_size_nm: Annotated[VoxelSize | None, Meta(description="of the image it was trained on; null: not known")]
    validation: Annotated[
        dict[str, float | None], Meta(description="Dice of each output in the validation box; null: none there")
    ]


@dataclass(frozen=True)
class Model:
    """A loaded model."""

    info: ModelInfo
    weights: Weights


def load_model(folder: Path) -> Model:
    """Read a model.  Raises DataError, with the folder in it, where it is missing or damaged."""
    return Model(*read_model(folder, ModelInfo, "synapses"))


def check_voxel_size(model: ModelInfo, image: Volume) -> None:
    """Raise DataError where the image's voxels are not as long as those that the model was trained on."""
    ours, theirs = model.voxel_size_nm, image.voxel_size_nm
    if ours is None or theirs is None:
        return
    if any(abs(a / b - 1) > _TOLERANCE for a, b in zip(ours, theirs, strict=True)):
        raise DataError(
            f"{image.name}: has voxels of {theirs} nm, the model was trained on {ours} nm; give an image or a model "
            "that fits, or any_voxel_size: true"
        )
