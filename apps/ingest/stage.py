"""Stage `ingest`: the user's image and labels, checked once and rewritten as the pipeline's own OME-Zarr volumes.

Everything that can be wrong with the input is found here, before any costly work.  Volumes are read and written block
by block, so memory does not grow with them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import fastremap
import numpy as np
from msgspec import Meta

from apps.core.boxes import Box, Triple, tiles
from apps.core.errors import DataError, ParameterError
from apps.core.files import make_folder
from apps.core.parameters import Parameters, Result, json_hash
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Volume, VoxelSize, content_hash, new_volume, open_labels, open_volume
from apps.ingest.statistics import Histogram

_BLOCK: Triple = (64, 256, 256)  # whole chunks of the volumes written


class IngestParameters(Parameters, frozen=True, kw_only=True):
    """Which volumes to take, and where to put them."""

    image: Annotated[str, Meta(min_length=1, description="OME-Zarr or FILE.h5:DATASET; uint8, zyx")]
    labels: Annotated[str | None, Meta(description="its ground truth, integers of the same shape, 0 no object")] = None
    output: Annotated[str, Meta(min_length=1, description="folder that gets image.zarr and labels.zarr")]
    voxel_size_nm: Annotated[
        VoxelSize | None, Meta(description="size of a voxel in nanometres, zyx; null takes the image's (HDF5 has none)")
    ] = None
    box: Annotated[Box | None, Meta(description="part of the volume to take; null takes all of it")] = None

    def check(self) -> None:
        if self.voxel_size_nm is not None and not min(self.voxel_size_nm) > 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")
        if self.box is not None and self.box.empty:
            raise ParameterError(f"box {self.box}: is empty; give one with voxels in it")


class IngestResult(Result, frozen=True, kw_only=True):
    """The volumes written and what they hold."""

    image: Annotated[str, Meta(description="OME-Zarr volume, uint8")]
    labels: Annotated[str | None, Meta(description="OME-Zarr volume, uint32 or uint64; null where none were given")]
    shape: Annotated[Triple, Meta(description="of both, zyx")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="zyx")]
    image_mean: Annotated[float, Meta(description="grey level, over all voxels")]
    image_std: Annotated[float, Meta(gt=0.0, description="grey levels, over all voxels")]
    data_hash: Annotated[str, Meta(description="of the voxels written: equal data, equal hash")]
    objects: Annotated[int, Meta(ge=0, description="number of different labels over 0")]


def run(parameters: IngestParameters, report: Reporter) -> IngestResult:
    """Check, crop and rewrite the volumes.

    Raises DataError for what is wrong with a file's presence, shape, dtype or content, ParameterError where the voxel
    size is not known or the output would overwrite the input.
    """
    image = open_volume(parameters.image)
    if image.dtype != np.uint8:
        raise DataError(
            f"{image.name}: has dtype {image.dtype}; expected an image of uint8 (0 to 255), convert it first"
        )
    box = parameters.box or image.box
    if not image.box.contains(box):
        raise DataError(f"{image.name}: box {box} leaves the volume, which is {image.box}")
    labels = None if parameters.labels is None else open_labels(parameters.labels, image)
    voxel_size_nm = _voxel_size(parameters.voxel_size_nm, image, labels)
    folder = _output_folder(parameters)

    work = box.size * (1 if labels is None else 3)
    objects, largest = (0, 0) if labels is None else _survey(labels, box, _Share(report, 0, work))
    done = 0 if labels is None else box.size
    histogram = _copy_image(image, box, folder / "image.zarr", voxel_size_nm, _Share(report, done, work))
    written = [content_hash(open_volume(str(folder / "image.zarr")))]
    if labels is not None:
        dtype = np.uint32 if largest <= np.iinfo(np.uint32).max else np.uint64
        share = _Share(report, done + box.size, work)
        _copy_labels(labels, box, folder / "labels.zarr", voxel_size_nm, np.dtype(dtype), share)
        written.append(content_hash(open_volume(str(folder / "labels.zarr"))))
    return IngestResult(
        image=str(folder / "image.zarr"),
        labels=None if labels is None else str(folder / "labels.zarr"),
        shape=box.shape,
        voxel_size_nm=voxel_size_nm,
        image_mean=histogram.mean,
        image_std=histogram.std,
        data_hash=json_hash(written),
        objects=objects,
    )


class _Share:
    """Reports a part of the work: voxels done in it, after `done` of `total` before it."""

    def __init__(self, report: Reporter, done: int, total: int) -> None:
        self._report, self._done, self._total = report, done, total

    def __call__(self, box: Box, what: str) -> None:
        self._done += box.size
        self._report(self._done, self._total, what)


def _voxel_size(given: VoxelSize | None, image: Volume, labels: Volume | None) -> VoxelSize:
    if given is not None:
        return given
    if image.voxel_size_nm is None:
        raise ParameterError(f"{image.name}: does not say how large a voxel is; give voxel_size_nm (z, y, x)")
    other = None if labels is None else labels.voxel_size_nm
    if labels is not None and other is not None and not np.allclose(other, image.voxel_size_nm, rtol=1e-6):
        raise DataError(
            f"{labels.name}: has voxels of {other} nm; expected those of {image.name}, {image.voxel_size_nm}; "
            "give voxel_size_nm to say which is right"
        )
    return image.voxel_size_nm


def _output_folder(parameters: IngestParameters) -> Path:
    folder = Path(parameters.output)
    sources = [Path(name).resolve() for name in (parameters.image, parameters.labels) if name is not None]
    for target in (folder / "image.zarr", folder / "labels.zarr"):
        if target.resolve() in sources:
            raise ParameterError(f"output {folder}: {target} is an input and would be overwritten; give another folder")
    make_folder(folder)
    return folder


def _survey(labels: Volume, box: Box, share: _Share) -> tuple[int, int]:
    """Number of different labels over 0 in `box`, and the largest one."""
    found = np.zeros(0, np.uint64)
    for block in tiles(box, _BLOCK):
        ids = fastremap.unique(labels.read(block))
        if ids[0] < 0:
            raise DataError(f"{labels.name}: holds negative labels ({ids[0]}) in {block}; expected 0 for no object")
        found = np.union1d(found, ids.astype(np.uint64))
        share(block, "checking the labels")
    found = found[found > 0]
    if not len(found):
        raise DataError(f"{labels.name}: all labels in {box} are 0 (no object); expected ground truth with objects")
    return len(found), int(found[-1])


def _copy_image(image: Volume, box: Box, target: Path, voxel_size_nm: VoxelSize, share: _Share) -> Histogram:
    histogram = Histogram()
    with new_volume(target, box.shape, np.uint8, voxel_size_nm) as volume:
        for block in tiles(volume.box, _BLOCK):
            data = image.read(block.translate(box.offset))
            histogram.add(data)
            volume.write(block, data)
            share(block, "copying the image")
        if histogram.std == 0:
            raise DataError(
                f"{image.name}: every voxel of {box} is {histogram.mean:.0f}; expected an image with contrast"
            )
    return histogram


def _copy_labels(
    labels: Volume, box: Box, target: Path, voxel_size_nm: VoxelSize, dtype: np.dtype[np.unsignedinteger], share: _Share
) -> None:
    with new_volume(target, box.shape, dtype, voxel_size_nm) as volume:
        for block in tiles(volume.box, _BLOCK):
            volume.write(block, labels.read(block.translate(box.offset)).astype(dtype))
            share(block, "copying the labels")


STAGE = Stage(
    name="ingest",
    summary="Check an image and its labels and rewrite them as OME-Zarr.",
    parameters=IngestParameters,
    result=IngestResult,
    run=run,
    example={
        "image": "sample.h5:raw",
        "labels": "sample.h5:labels",
        "output": "data",
        "voxel_size_nm": [10.0, 10.0, 10.0],
        "box": {"offset": [0, 0, 0], "shape": [96, 160, 224]},
    },
)
