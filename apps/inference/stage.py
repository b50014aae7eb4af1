"""Segment one subvolume with a trained FFN."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import open_volume, write_volume
from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.segmenter import SegmentedObject
from apps.ffn.settings import InferenceSettings
from apps.inference.segment import check_image, segment_box

# HDF5 does not say its voxel size; what is written then says one nanometre a voxel.
_UNKNOWN_VOXEL_SIZE = (1.0, 1.0, 1.0)


class InferenceParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the inference stage."""

    image: Annotated[str, Meta(description="image volume, uint8: NAME.zarr or FILE.h5:DATASET")]
    model: Annotated[str, Meta(description="checkpoint folder, or prefix of a google/ffn checkpoint")]
    box: Annotated[Box, Meta(description="the box to segment, in voxels of the image: the subvolume's read box")]
    output: Annotated[str, Meta(description="where the segmentation goes: NAME.zarr; its objects to NAME.parquet")]
    settings: Annotated[InferenceSettings, Meta(description="thresholds and limits of flood filling")] = (
        InferenceSettings()
    )
    fov: Annotated[Triple | None, Meta(description="field of view zyx; null: the model's, 33 for google/ffn")] = None
    deltas: Annotated[Triple | None, Meta(description="deltas zyx; null: the model's, 8 for google/ffn")] = None
    image_mean: Annotated[float | None, Meta(description="null: the model's; google/ffn's hold none")] = None
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="null: the model's; google/ffn's hold none")
    ] = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of TensorFlow")] = 1

    def check(self) -> None:
        if not self.output.endswith(".zarr"):
            raise ParameterError(f"output {self.output!r}: expected a name that ends in .zarr")


class InferenceResult(Result, frozen=True, kw_only=True):
    """Result of the inference stage."""

    segmentation: Annotated[str, Meta(description="uint32 OME-Zarr of the box's shape; 0 none, ids 1..objects")]
    table: Annotated[str, Meta(description="Parquet: id, z, y, x (seed, volume coordinates), voxels, steps")]
    objects: Annotated[int, Meta(description="number of objects")]
    voxels: Annotated[int, Meta(description="voxels in objects")]
    seeds: Annotated[int, Meta(description="seeds of the policy")]
    steps: Annotated[int, Meta(description="fields of view that the network looked at")]
    rejected: Annotated[int, Meta(description="seeds whose object was too weak or too small")]
    truncated: Annotated[bool, Meta(description="whether the bound on steps ended the segmentation")]
    model_seconds: Annotated[float, Meta(description="seconds in the network")]
    other_seconds: Annotated[float, Meta(description="seconds of flood filling outside of the network")]
    voxels_per_second: Annotated[float, Meta(description="voxels of the box per second of flood filling")]


def run(parameters: InferenceParameters, report: Reporter) -> InferenceResult:
    """Segment the box.

    Raises DataError and ParameterError, before any long work, where image, box, model or output cannot work.
    """
    image = open_volume(parameters.image)
    checkpoint = load_checkpoint(parameters.model, parameters.fov, parameters.deltas)
    normalisation = checkpoint.normalisation(parameters.image_mean, parameters.image_std)
    check_image(image, parameters.box, checkpoint)
    output = Path(parameters.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror or error}); give a writable place") from error
    found = segment_box(
        image, parameters.box, checkpoint, normalisation, parameters.settings, parameters.threads, report
    )
    table = output.with_suffix(".parquet")
    write_atomically(table, _objects_table(found.objects, parameters.box.offset))
    write_volume(output, found.labels, image.voxel_size_nm or _UNKNOWN_VOXEL_SIZE)
    counters = found.counters
    seconds = counters.model_seconds + counters.other_seconds
    return InferenceResult(
        segmentation=str(output),
        table=str(table),
        objects=len(found.objects),
        voxels=sum(item.voxels for item in found.objects),
        seeds=counters.seeds,
        steps=counters.steps,
        rejected=counters.weak + counters.small,
        truncated=found.truncated,
        model_seconds=counters.model_seconds,
        other_seconds=counters.other_seconds,
        voxels_per_second=parameters.box.size / seconds if seconds else 0.0,
    )


def _objects_table(objects: list[SegmentedObject], offset: Triple) -> bytes:
    """Parquet of the objects, seeds in volume coordinates."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"id": pa.array([item.id for item in objects], pa.uint32())}
    for axis, name in enumerate("zyx"):
        columns[name] = pa.array([item.origin[axis] + offset[axis] for item in objects], pa.int64())
    columns["voxels"] = pa.array([item.voxels for item in objects], pa.int64())
    columns["steps"] = pa.array([item.steps for item in objects], pa.int64())
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


STAGE = Stage(
    name="inference",
    summary="Segment one subvolume with a trained flood-filling network.",
    parameters=InferenceParameters,
    result=InferenceResult,
    run=run,
    example={
        "image": "volume/image.zarr",
        "model": "training/checkpoint",
        "box": {"offset": [0, 0, 0], "shape": [64, 128, 128]},
        "output": "segmentation/box.zarr",
        "settings": {"min_size": 500},
        "threads": 1,
    },
)
