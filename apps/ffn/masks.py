"""Exclusion masks: where no object may start and none may grow (blood vessels, somata, everything but tissue).

A mask is a volume on the voxel grid of the image: same shape, same voxel size.  What it excludes is a condition on its
values, so that one volume of classes can serve several masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.core.volumes import Volume, open_volume


class MaskParameters(Parameters, frozen=True, kw_only=True):
    """One mask.  A vessel mask excludes where it is not zero; a tissue mask excludes the rest, with `invert`."""

    volume: Annotated[str, Meta(description="mask on the image's grid, integers: NAME.zarr or FILE.h5:DATASET")]
    values: Annotated[tuple[int, ...] | None, Meta(description="values that are excluded; null: all but 0")] = None
    invert: Annotated[bool, Meta(description="exclude the other voxels instead (a mask of what is tissue)")] = False

    def check(self) -> None:
        if self.values is not None and not self.values:
            raise ParameterError(f"mask {self.volume}: values is empty; give values, or null for all but 0")


def check_masks(masks: Sequence[MaskParameters], image: Volume) -> None:
    """Raise DataError, before any long work, where a mask is missing, not of integers, or not on the image's grid."""
    for mask in masks:
        volume = _open(mask)
        if volume.shape != image.shape:
            raise DataError(
                f"mask {mask.volume}: has shape {volume.shape}, the image {image.name} has {image.shape}; "
                f"a mask is on the image's grid"
            )
        own, expected = volume.voxel_size_nm, image.voxel_size_nm
        if own and expected and not np.allclose(own, expected, rtol=1e-4):
            raise DataError(
                f"mask {mask.volume}: has voxels of {own} nm, the image {image.name} of {expected}; "
                f"a mask is on the image's grid"
            )


def read_masks(masks: Sequence[MaskParameters], box: Box) -> NDArray[np.bool_] | None:
    """What the masks together exclude (True) in `box`, zyx of the box's shape; None where there is no mask.

    Raises DataError where a mask is missing, not of integers, or does not hold the box.
    """
    excluded: NDArray[np.bool_] | None = None
    for mask in masks:
        found = _open(mask).read(box)
        matching = found != 0 if mask.values is None else _are_of(found, mask.values)
        matching = matching != mask.invert
        excluded = matching if excluded is None else excluded | matching
    return excluded


def _are_of(found: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """As np.isin; by a table, which is several times as fast, where the dtype has few values."""
    if found.dtype.itemsize > 2:
        return np.isin(found, values)
    unsigned = np.dtype(f"u{found.dtype.itemsize}")
    table = np.zeros(1 << 8 * unsigned.itemsize, np.bool_)
    table[np.array(values, found.dtype).view(unsigned)] = True
    are: NDArray[np.bool_] = table[found.view(unsigned)]
    return are


def _open(mask: MaskParameters) -> Volume:
    volume = open_volume(mask.volume)
    if volume.dtype.kind not in "ui":
        raise DataError(f"mask {mask.volume}: has dtype {volume.dtype}; expected integers")
    limits = np.iinfo(volume.dtype)
    strange = [value for value in mask.values or () if not limits.min <= value <= limits.max]
    if strange:
        raise DataError(f"mask {mask.volume}: has dtype {volume.dtype}, which never holds the values {strange}")
    return volume
