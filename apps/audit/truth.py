"""The truth of a phantom's acquisition, as it lies on disk: where every tile and every section really is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import Volume, open_volume
from apps.phantom import imaging
from apps.phantom.fields import Floats
from apps.phantom.warps import Points, displacement


@dataclass(frozen=True)
class AcquisitionTruth:
    """What is true of the tiles and sections of a phantom.

    Attributes:
        shape: of a section (rows, columns).
        offsets: path of a tile, as the table names it -> true place (y, x) of its first pixel in its section.
        warps: float32 [section, 2, gy, gx], displacement (y, x) on a grid of `spacing` pixels.
        masks: the block's classes, zyx; None where the phantom has none.

    Across the crease of a fold the grid cannot show the step; there, the truth is off by up to the fold's width.
    """

    shape: tuple[int, int]
    offsets: dict[str, tuple[float, float]]
    warps: Floats
    spacing: int
    masks: Volume | None

    @property
    def sections(self) -> int:
        return len(self.warps)

    def on_block(self, section: int, points: Points) -> Points:
        """Where in the block's section the points [..., 2] (y, x) of the true section image lie."""
        last = np.array(self.shape) - 1.0
        return points + displacement(self.warps[section], self.spacing, np.clip(points, 0.0, last))


def load_truth(folder: Path) -> AcquisitionTruth:
    """The truth in a phantom's output folder.

    Raises DataError where a file of it is missing or damaged: the phantom was made without acquisition, say.
    """
    try:
        told = json.loads((folder / imaging.TRUTH).read_text())
        with np.load(folder / imaging.WARPS) as stored:
            warps, spacing = stored["warps"], int(stored["warp_spacing"])
        offsets = {tile["path"]: (float(tile["y"]), float(tile["x"])) for tile in told["tiles"]}
        shape = int(told["shape"][0]), int(told["shape"][1])
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: no such file; expected the output folder of a phantom that was acquired as tiles"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its truth cannot be read ({type(error).__name__}: {error})") from error
    masks = folder / "masks.zarr"
    return AcquisitionTruth(shape, offsets, warps, spacing, open_volume(str(masks)) if masks.is_dir() else None)


def class_at(masks: Volume, section: int, points: Points, outside: int) -> NDArray[np.uint8]:
    """The block's class at the points [..., 2] of a section, that of the nearest voxel; `outside` beyond the block."""
    plane = read_plane(masks, section)
    nearest = np.rint(points).astype(np.intp)
    inside = np.all((nearest >= 0) & (nearest < np.array(plane.shape)), axis=-1)
    y, x = np.moveaxis(np.clip(nearest, 0, np.array(plane.shape) - 1), -1, 0)
    found: NDArray[np.uint8] = np.where(inside, plane[y, x], outside).astype(np.uint8)
    return found


def read_plane(volume: Volume, plane: int) -> NDArray[np.uint8]:
    """Plane `plane` (z) of a volume of small integers, as uint8 [y, x]."""
    found: NDArray[np.uint8] = volume.read(Box.of((plane, 0, 0), (1, *volume.shape[1:])))[0].astype(np.uint8)
    return found
