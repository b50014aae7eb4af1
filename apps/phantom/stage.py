"""Stage `phantom`: a generated block of EM-like neuropil with its ground truth.

It stands in for a data set where none is at hand: small enough for a quickstart, and a task on which a few minutes of
FFN training show.  It is no model of tissue; figures measured on it say nothing about real data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import VoxelSize, write_volume
from apps.phantom.design import PhantomDesign
from apps.phantom.neurites import Labels, grow_neurites
from apps.phantom.rendering import render

_SMALLEST_EXTENT = 16
_LARGEST_VOXELS = 2**28  # held in memory whole, at about 60 bytes a voxel


class PhantomParameters(Parameters, frozen=True, kw_only=True):
    """What to generate and where to put it."""

    output: Annotated[str, Meta(min_length=1, description="folder that gets image.zarr and labels.zarr")]
    shape: Annotated[Triple, Meta(description="extent in voxels, zyx")] = (96, 160, 224)
    voxel_size_nm: Annotated[VoxelSize, Meta(description="size of a voxel in nanometres, zyx")] = (10.0, 10.0, 10.0)
    seed: Annotated[int, Meta(ge=0, description="of everything that is random; same seed, same bytes")] = 0
    design: Annotated[PhantomDesign, Meta(description="what the neurites look like")] = PhantomDesign()

    def check(self) -> None:
        if min(self.shape) < _SMALLEST_EXTENT:
            raise ParameterError(f"shape {self.shape}: expected at least {_SMALLEST_EXTENT} voxels along z, y and x")
        if np.prod(self.shape, dtype=np.int64) > _LARGEST_VOXELS:
            raise ParameterError(f"shape {self.shape}: expected at most {_LARGEST_VOXELS} voxels; give a smaller one")
        if min(self.voxel_size_nm) <= 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")


class PhantomResult(Result, frozen=True, kw_only=True):
    """Where the phantom lies and what is in it."""

    image: Annotated[str, Meta(description="OME-Zarr volume, uint8")]
    labels: Annotated[str, Meta(description="OME-Zarr volume, uint32: 0 membrane, 1..objects; 6-connected each")]
    objects: Annotated[int, Meta(ge=1, description="number of labelled objects")]
    labelled_fraction: Annotated[float, Meta(ge=0.0, le=1.0, description="fraction of the voxels with a label over 0")]


def generate(shape: Triple, seed: int, design: PhantomDesign) -> tuple[np.ndarray, Labels]:
    """Image (uint8) and labels (uint32) of a phantom, zyx; the same bytes for the same arguments."""
    # Two streams: what the image looks like does not change where the neurites run.
    geometry, appearance = np.random.default_rng(seed).spawn(2)
    neurites = grow_neurites(geometry, shape, design)
    return render(appearance, neurites, design), neurites.labels


def run(parameters: PhantomParameters, report: Reporter) -> PhantomResult:
    """Generate and write a phantom.

    Raises DataError where the output cannot be written, or where the design leaves no object in the box.
    """
    folder = Path(parameters.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made ({error.strerror}); give a writable output folder") from error
    report(0, 3, "growing neurites")
    image, labels = generate(parameters.shape, parameters.seed, parameters.design)
    objects = int(labels.max())
    if not objects:
        raise DataError(
            f"a phantom of shape {parameters.shape} with this design holds no object of "
            f"{parameters.design.smallest_object} voxels; give a larger shape or calibre"
        )
    report(1, 3, "writing the image")
    write_volume(folder / "image.zarr", image, parameters.voxel_size_nm)
    report(2, 3, "writing the labels")
    write_volume(folder / "labels.zarr", labels, parameters.voxel_size_nm)
    report(3, 3, "done")
    return PhantomResult(
        image=str(folder / "image.zarr"),
        labels=str(folder / "labels.zarr"),
        objects=objects,
        labelled_fraction=float(np.count_nonzero(labels) / labels.size),
    )


STAGE = Stage(
    name="phantom",
    summary="Generate an EM-like block of neuropil with its ground truth.",
    parameters=PhantomParameters,
    result=PhantomResult,
    run=run,
    example={"output": "phantom", "shape": [96, 160, 224], "seed": 1},
)
