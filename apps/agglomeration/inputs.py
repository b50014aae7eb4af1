"""The volumes and the network of an agglomeration, checked against each other before any work."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from apps.agglomeration.contacts import CELL
from apps.agglomeration.parameters import AgglomerationParameters
from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.volumes import Volume, VoxelSize, open_volume
from apps.ffn.checkpoint import Checkpoint
from apps.ffn.masks import check_masks


@dataclass(frozen=True)
class Blocks:
    """The units that a volume's work is shared by: boxes that tile it from its first corner on, in zyx order."""

    bounds: Box
    shape: Triple

    @property
    def counts(self) -> Triple:
        z, y, x = (-(-n // s) for n, s in zip(self.bounds.shape, self.shape, strict=True))
        return z, y, x

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __getitem__(self, number: int) -> Box:
        _, rows, columns = self.counts
        place = number // (rows * columns), number // columns % rows, number % columns
        z, y, x = (p * s for p, s in zip(place, self.shape, strict=True))
        return Box.of((z, y, x), self.shape).intersection(self.bounds)


@dataclass(frozen=True)
class Inputs:
    """The volumes of one agglomeration; the network's checkpoint is loaded where it is asked for."""

    parameters: AgglomerationParameters
    segmentation: Volume
    voxel_size: VoxelSize
    blocks: Blocks

    @cached_property
    def image(self) -> Volume:
        """The image.  Raises DataError where it is missing, not uint8, or does not hold the segmentation."""
        image, segmentation = open_volume(self.parameters.image), self.segmentation
        if image.dtype != np.uint8:
            raise DataError(f"{image.name}: has dtype {image.dtype}; expected uint8 grey values")
        covered = segmentation.box.translate(self.parameters.offset)
        if not image.box.contains(covered):
            raise DataError(
                f"{segmentation.name}: covers {covered} of the image {image.name}, which is {image.box}; give the "
                "offset of its first voxel in the image"
            )
        if image.voxel_size_nm is not None and not np.allclose(image.voxel_size_nm, self.voxel_size, rtol=1e-4):
            raise DataError(
                f"{segmentation.name}: has voxels of {self.voxel_size} nm, the image {image.name} of "
                f"{image.voxel_size_nm}; expected a segmentation on the image's grid"
            )
        check_masks(self.parameters.masks, image)
        return image

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The network.

        Raises DataError where it is missing or damaged, its field of view fits no window, or the image has other voxels
        than it was trained at.
        """
        chosen = self.parameters
        checkpoint = chosen.load_checkpoint()
        chosen.normalisation(checkpoint)  # which has to be known
        chosen.check_voxel_size(checkpoint, self.image.voxel_size_nm or self.voxel_size)
        window: Triple = tuple(  # type: ignore[assignment]
            min(2 * r + 1, n) for r, n in zip(chosen.radius, self.segmentation.shape, strict=True)
        )
        if any(n < f for n, f in zip(window, checkpoint.model.fov, strict=True)):
            raise DataError(
                f"{chosen.model}: its field of view {checkpoint.model.fov} does not fit into a window of {window}; "
                "give a larger radius (or volume)"
            )
        return checkpoint


def open_inputs(parameters: AgglomerationParameters) -> Inputs:
    """Open the segmentation, and cut it into blocks.

    Raises DataError where it is no OME-Zarr volume of ids, ParameterError where the blocks do not fit its chunks.
    """
    segmentation = open_volume(parameters.segmentation)
    if segmentation.dtype.kind not in "ui":
        raise DataError(f"{segmentation.name}: has dtype {segmentation.dtype}; expected integer labels")
    if segmentation.voxel_size_nm is None:
        raise DataError(f"{segmentation.name}: is not OME-Zarr; make it one with the stage interchange")
    rows = zip(parameters.block, chunks_of(segmentation), segmentation.shape, strict=True)
    if any(b < n and (b % c or b % CELL) for b, c, n in rows):
        raise ParameterError(
            f"block {parameters.block}: expected multiples of {CELL} and of the chunks {chunks_of(segmentation)} of "
            f"{segmentation.name}, or its extent {segmentation.shape}"
        )
    blocks = Blocks(segmentation.box, parameters.block)
    return Inputs(parameters, segmentation, segmentation.voxel_size_nm, blocks)


def chunks_of(volume: Volume) -> Triple:
    z, y, x = (int(n) for n in itertools.islice(volume.array.chunks, 3))
    return z, y, x
