"""What the stage keeps: the volume of masks, its layout, and a record of every section."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import StateError, UserError
from apps.core.files import lock, make_folder
from apps.core.parameters import Parameters, Result, write_json
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, VoxelSize, create_shared_volume, open_volume_to_write
from apps.unet.training import OutputPaths

_CHUNK = 1024  # pixels along y and x: one plane a chunk, so that sections share none


class Paths(OutputPaths):
    """Where things are in the output folder."""

    @property
    def masks(self) -> Path:
        return self.output / "masks.zarr"

    @property
    def layout(self) -> Path:
        return self.output / "masking.json"

    @property
    def sections(self) -> Path:
        return self.output / "sections"

    def record(self, section: int) -> Path:
        return self.sections / f"{section:05d}.json"


class SectionRecord(Result, frozen=True, kw_only=True):
    """`sections/NNNNN.json`: one masked section; written last."""

    section: Annotated[int, Meta(ge=0, description="its number")]
    plane: Annotated[int, Meta(ge=0, description="of image and masks that shows it")]
    identity: Annotated[str, Meta(description="hash of its pixels, the model and what else its masks depend on")]
    fractions: Annotated[dict[str, float], Meta(description="share of the pixels of each class")]
    expected_dice: Annotated[
        float | None, Meta(description="Dice of what is masked, by the network's own probabilities; null: nothing is")
    ]
    entropy: Annotated[
        float | None, Meta(description="of these probabilities, bits, mean over what may be masked; null: nothing is")
    ]
    boundary_sharpness: Annotated[
        float | None, Meta(description="how far probabilities change across boundaries, 0 to 1; null: no boundary")
    ]
    faults: Annotated[tuple[str, ...], Meta(description="what was wrong, in words")]


class Layout(Parameters, frozen=True, kw_only=True):
    """`masking.json`: which planes `masks.zarr` was prepared for."""

    first_section: Annotated[int, Meta(ge=0, description="number of the section that plane 0 shows")]
    plane_shape: Annotated[tuple[int, int], Meta(description="extent (y, x)")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="zyx")]


def prepare_masks(paths: Paths, image: Volume, first_section: int) -> bool:
    """Have `masks.zarr` as large as the image; returns whether it is new.

    One that only gets longer keeps what it holds; one of other sections, extent or voxels is made anew, and its records
    go first.  Raises StateError where another process prepares it, DataError where it cannot be written.
    """
    size = image.voxel_size_nm or UNKNOWN_VOXEL_SIZE
    height, width = image.shape[1:]
    layout = Layout(first_section=first_section, plane_shape=(height, width), voxel_size_nm=size)
    make_folder(paths.output)
    with (paths.output / ".prepare.lock").open("a") as held:
        lock(held, paths.masks)
        if _read_layout(paths) == layout and paths.masks.is_dir():
            volume = open_volume_to_write(paths.masks)
            if volume.shape[0] < image.shape[0]:
                volume.array.resize(image.shape)
            if volume.shape[0] <= image.shape[0]:
                return False
        paths.layout.unlink(missing_ok=True)
        shutil.rmtree(paths.sections, ignore_errors=True)
        chunks: Triple = (1, min(_CHUNK, height), min(_CHUNK, width))
        create_shared_volume(paths.masks, image.shape, np.uint8, size, chunks)
        write_json(paths.layout, layout.to_dict())
        return True


def open_masks(paths: Paths, image: Volume, first_section: int) -> Volume:
    """The prepared volume, to write into.  Raises StateError where it is not, or for other sections or an image of
    another extent."""
    advice = 'run the action "prepare" first'
    layout = _read_layout(paths)
    if layout is None or not paths.masks.is_dir():
        raise StateError(f"{paths.masks}: is not prepared; {advice}")
    volume = open_volume_to_write(paths.masks)
    if layout.first_section != first_section or volume.shape != image.shape:
        raise StateError(
            f"{paths.masks}: is prepared for sections from {layout.first_section} and the shape {volume.shape}, the "
            f"image {image.name} has sections from {first_section} and the shape {image.shape}; {advice}"
        )
    return volume


def load_record(path: Path) -> SectionRecord | None:
    """The record, where there is one that can be read."""
    try:
        return SectionRecord.load(path)
    except UserError:
        return None


def _read_layout(paths: Paths) -> Layout | None:
    return Layout.load(paths.layout) if paths.layout.is_file() else None
