"""The volumes that a network is trained on: what the user names, opened and checked before any long work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.core.volumes import Volume, VoxelSize, open_volume
from apps.ffn.applicability import common_voxel_size
from apps.ffn.coordinates import TrainingCoordinates, read_coordinates

_POSITIVE = Annotated[float, Meta(gt=0)]


class TrainingVolume(Parameters, frozen=True, kw_only=True):
    """One labelled volume to train on."""

    image: Annotated[str, Meta(min_length=1, description="image, uint8: NAME.zarr or FILE.h5:DATASET")]
    labels: Annotated[str, Meta(min_length=1, description="labels of the same shape, integers, 0 = no object")]
    coordinates: Annotated[
        str, Meta(min_length=1, description="npz of the partition stage, or google/ffn's TFRecord (gzip)")
    ]
    mask: Annotated[
        str | None, Meta(description="volume of the same shape; the loss leaves out voxels that are not zero in it")
    ] = None
    name: Annotated[str | None, Meta(description="label_volume_name in a TFRecord; null where it holds one volume")] = (
        None
    )
    image_mean: Annotated[float | None, Meta(description="subtracted from this image; null: the training's")] = None
    image_std: Annotated[_POSITIVE | None, Meta(description="divides this image; null: the training's")] = None
    voxel_size_nm: Annotated[
        tuple[_POSITIVE, _POSITIVE, _POSITIVE] | None,
        Meta(description="zyx, axes of unequal size are not exchanged; null: the image's, equal where it has none"),
    ] = None

    def check(self) -> None:
        if (self.image_mean is None) != (self.image_std is None):
            raise ParameterError(f"{self.image}: image_mean and image_std go together; give both or neither")


@dataclass(frozen=True)
class OpenTrainingVolume:
    """A training volume, opened and found to fit together; all zyx.

    Attributes:
        normalisation: (mean, standard deviation) of this image; None: that of the training.
        voxel_size_nm: None where nobody says, which is taken as equal on all axes.
    """

    image: Volume
    labels: Volume
    coordinates: TrainingCoordinates
    mask: Volume | None = None
    normalisation: tuple[float, float] | None = None
    voxel_size_nm: VoxelSize | None = None

    def __post_init__(self) -> None:
        check_training_volumes(self.image, self.labels, self.mask)


def open_training_volumes(volumes: Sequence[TrainingVolume]) -> list[OpenTrainingVolume]:
    """Open and check them all.

    Raises DataError, naming the file, where one is missing, unreadable, of the wrong dtype or of another shape, and
    ParameterError where there is no volume.
    """
    if not volumes:
        raise ParameterError("volumes: is empty; expected at least one labelled volume to train on")
    # One TFRecord can hold the coordinates of all volumes: it is read once.
    files = {path: read_coordinates(path) for path in sorted({volume.coordinates for volume in volumes})}
    return [_open(volume, files[volume.coordinates].of(volume.name)) for volume in volumes]


def voxel_size_of_volumes(volumes: Sequence[OpenTrainingVolume]) -> VoxelSize | None:
    """Voxel size (zyx, nm) that a network learns from these volumes; None where one does not say, or they differ."""
    return common_voxel_size(volume.voxel_size_nm for volume in volumes)


def _open(given: TrainingVolume, coordinates: TrainingCoordinates) -> OpenTrainingVolume:
    image = open_volume(given.image)
    return OpenTrainingVolume(
        image=image,
        labels=open_volume(given.labels),
        mask=None if given.mask is None else open_volume(given.mask),
        coordinates=coordinates,
        normalisation=_normalisation(given),
        voxel_size_nm=given.voxel_size_nm or image.voxel_size_nm,
    )


def _normalisation(given: TrainingVolume) -> tuple[float, float] | None:
    if given.image_mean is None or given.image_std is None:
        return None
    return given.image_mean, given.image_std


def check_training_volumes(image: Volume, labels: Volume, mask: Volume | None = None) -> None:
    """Raise DataError unless the image is uint8, labels and mask are integers, and all have one shape."""
    if image.dtype != np.uint8:
        raise DataError(f"{image.name}: has dtype {image.dtype}; expected uint8 grey values")
    for volume, what in ((labels, "labels, 0 for no object"), (mask, "values, 0 where the loss counts")):
        if volume is None:
            continue
        if volume.dtype.kind not in "ui":
            raise DataError(f"{volume.name}: has dtype {volume.dtype}; expected integer {what}")
        if volume.shape != image.shape:
            raise DataError(f"{volume.name}: has the shape {volume.shape}, but {image.name} has {image.shape}")
