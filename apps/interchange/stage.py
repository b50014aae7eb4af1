"""Exchange of segmentations, volumes and models with google/ffn.

Everything here is zyx; google/ffn's file names are xyz, which `apps.ffn.google_results` alone deals with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import fastremap
import numpy as np
from msgspec import Meta
from scipy import ndimage

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import make_folder, write_atomically
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, VoxelSize, open_volume, write_volume
from apps.ffn.google_request import read_request
from apps.ffn.google_results import GoogleResult, Origin, find_results, read_google_result, write_google_result
from apps.interchange.hdf5 import split_name, write_dataset
from apps.interchange.objects import ObjectRow, objects_table, read_seeds, table_of

Conversion = Literal["from_google_result", "to_google_result", "to_hdf5", "from_google_checkpoint"]

# The fields that only some conversions look at.
_OPTIONS: dict[Conversion, tuple[str, ...]] = {
    "from_google_result": ("corner", "voxel_size_nm"),
    "to_google_result": ("corner", "box", "objects"),
    "to_hdf5": ("box",),
    "from_google_checkpoint": ("image_mean", "image_std", "fov", "deltas", "voxel_size_nm"),
}


class InterchangeParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the interchange stage."""

    conversion: Annotated[
        Conversion,
        Meta(
            description="from_google_result: seg-X_Y_Z.npz, or a folder of them, to OME-Zarr labels and tables of "
            "objects; to_google_result: labels and their table to a google/ffn result; to_hdf5: a volume to a dataset "
            "that google/ffn's training reads; from_google_checkpoint: its checkpoint to a checkpoint folder"
        ),
    ]
    source: Annotated[
        str,
        Meta(
            description="what to read: a result or a folder of results; NAME.zarr or FILE.h5:DATASET; the prefix of a "
            "checkpoint"
        ),
    ]
    output: Annotated[
        str,
        Meta(
            description="from_google_result: NAME.zarr, or for a folder of results the folder of their seg-X_Y_Z.zarr; "
            "to_google_result: folder, the file goes to X/Y/seg-X_Y_Z.npz in it; to_hdf5: FILE.h5:DATASET, other "
            "datasets of the file stay; from_google_checkpoint: the checkpoint folder"
        ),
    ]
    corner: Annotated[
        Triple | None,
        Meta(description="first voxel zyx of the source in the volume; null: what its name says, 0,0,0 for labels"),
    ] = None
    box: Annotated[
        Box | None, Meta(description="what of the source to convert, in voxels of the volume; null: all of it")
    ] = None
    objects: Annotated[
        str | None, Meta(description="table of the labels' objects; null: NAME.parquet of NAME.zarr where there is one")
    ] = None
    voxel_size_nm: Annotated[
        VoxelSize | None,
        Meta(
            description="zyx in nanometres, which google/ffn's files do not say; null: 1, 1, 1 for labels, and for a "
            "checkpoint that nobody knows them, so that it is taken for images of any"
        ),
    ] = None
    image_mean: Annotated[float | None, Meta(description="grey value that the checkpoint was trained to take as 0")] = (
        None
    )
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="grey values that it was trained to take as 1")
    ] = None
    fov: Annotated[Triple | None, Meta(description="field of view zyx of the checkpoint; null: 33, 33, 33")] = None
    deltas: Annotated[Triple | None, Meta(description="deltas zyx of the checkpoint; null: 8, 8, 8")] = None

    def check(self) -> None:
        options = {name for names in _OPTIONS.values() for name in names} - set(_OPTIONS[self.conversion])
        strange = [name for name in sorted(options) if getattr(self, name) is not None]
        if strange:
            raise ParameterError(f"{', '.join(strange)}: {self.conversion} does not take them; leave them out")
        if self.conversion == "to_hdf5" and split_name(self.output) is None:
            raise ParameterError(f"output {self.output!r}: expected FILE.h5:DATASET")
        if self.conversion == "from_google_checkpoint" and None in (self.image_mean, self.image_std):
            raise ParameterError("image_mean, image_std: a google/ffn checkpoint does not hold them; give both")
        if self.voxel_size_nm and min(self.voxel_size_nm) <= 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")


class InterchangeResult(Result, frozen=True, kw_only=True):
    """Result of the interchange stage."""

    outputs: Annotated[tuple[str, ...], Meta(description="what was written: volumes, results or the checkpoint")]
    tables: Annotated[tuple[str, ...], Meta(description="table of objects beside each volume of labels")] = ()
    boxes: Annotated[tuple[Box, ...], Meta(description="box of each output in the volume")] = ()
    objects: Annotated[int, Meta(description="objects in all outputs")] = 0
    voxels: Annotated[int, Meta(description="voxels in objects")] = 0
    steps: Annotated[int, Meta(description="FOV steps of the objects; training steps of a checkpoint")] = 0
    runs: Annotated[
        tuple[dict[str, Any], ...],
        Meta(description="for each google/ffn result: the settings and counters of its run, as far as it holds them"),
    ] = ()


def run(parameters: InterchangeParameters, report: Reporter) -> InterchangeResult:
    """Convert.  What is written appears whole or not at all; running again writes the same.

    Raises DataError where source or output cannot work, naming it.
    """
    return _CONVERSIONS[parameters.conversion](parameters, report)


def from_google_result(parameters: InterchangeParameters, report: Reporter) -> InterchangeResult:
    """Results of google/ffn become what the inference stage writes."""
    source = Path(parameters.source)
    if not source.is_dir():
        if not parameters.output.endswith(".zarr"):
            raise ParameterError(
                f"output {parameters.output!r}: expected a name that ends in .zarr for a single result"
            )
        plan = [(source, Path(parameters.output))]
    else:
        if parameters.corner is not None:
            raise ParameterError("corner: the files of a folder say their own; leave it out")
        files = find_results(source)
        if not files:
            raise DataError(f"{source}: holds no google/ffn results; expected seg-X_Y_Z.npz or X/Y/seg-X_Y_Z.npz")
        plan = [(file, Path(parameters.output) / f"{file.stem}.zarr") for file in files]
    tables, boxes, rows, runs = [], [], [], []
    for done, (file, output) in enumerate(plan):
        report(done, len(plan), "converting results")
        result = read_google_result(file, parameters.corner)
        largest = int(result.labels.max()) if result.labels.size else 0
        dtype = np.dtype(np.uint32 if largest <= np.iinfo(np.uint32).max else np.uint64)
        runs.append({"request": read_request(result.request, str(file)), "counters": result.counters})
        found = _rows(result)
        make_folder(output.parent)
        tables.append(table_of(output))
        write_atomically(tables[-1], objects_table(found, dtype))
        write_volume(output, result.labels.astype(dtype), parameters.voxel_size_nm or UNKNOWN_VOXEL_SIZE)
        boxes.append(_box(result.corner, result.labels.shape))
        rows += found
    return InterchangeResult(
        outputs=tuple(str(output) for _, output in plan),
        tables=tuple(map(str, tables)),
        boxes=tuple(boxes),
        objects=len(rows),
        voxels=sum(row.voxels for row in rows),
        steps=sum(row.steps for row in rows),
        runs=tuple(runs),
    )


def to_google_result(parameters: InterchangeParameters, report: Reporter) -> InterchangeResult:
    """Labels and their table become a result that google/ffn's tools find by its corner."""
    volume = open_volume(parameters.source)
    if volume.dtype.kind not in "ui":
        raise DataError(f"{parameters.source}: has dtype {volume.dtype}; expected labels, which are integers")
    corner = parameters.corner or (0, 0, 0)
    box = parameters.box or volume.box.translate(corner)
    seeds = read_seeds(parameters.objects) if parameters.objects else _own_seeds(volume)
    report(0, 1, "converting labels")
    labels = _read(volume, box, corner)
    ids, counts = fastremap.unique(labels, return_counts=True)
    voxels = {int(id): int(count) for id, count in zip(ids, counts, strict=True) if id != 0}
    back = _negative(box.offset)
    # The time that an object took is not in the table.
    origins = {id: Origin(_moved(seed, back), steps, 0.0) for id, (seed, steps) in seeds.items() if id in voxels}
    path = write_google_result(parameters.output, box.offset, labels, origins)
    return InterchangeResult(
        outputs=(str(path),),
        boxes=(box,),
        objects=len(voxels),
        voxels=sum(voxels.values()),
        steps=sum(origin.steps for origin in origins.values()),
    )


def to_hdf5(parameters: InterchangeParameters, report: Reporter) -> InterchangeResult:
    """A volume of any kind becomes a dataset that google/ffn's training reads."""
    volume = open_volume(parameters.source)
    box = parameters.box or volume.box
    if box.empty or not volume.box.contains(box):
        raise DataError(f"{parameters.source}: box {box} is empty or leaves the volume, which is {volume.box}")
    write_dataset(parameters.output, volume, box, report)
    return InterchangeResult(outputs=(parameters.output,), boxes=(box,))


def from_google_checkpoint(parameters: InterchangeParameters, report: Reporter) -> InterchangeResult:
    """A checkpoint of google/ffn becomes one of this project, which holds normalisation, field of view and deltas."""
    from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint

    if Path(parameters.source).is_dir():
        raise DataError(f"{parameters.source}: is a folder; expected the prefix of a google/ffn checkpoint")
    output = Path(parameters.output)
    # A training's checkpoint holds what cannot be made again; an import can.
    if output.exists() and not _imported(output):
        raise DataError(f"{output}: is there and no imported checkpoint; give another name")
    report(0, 1, "converting the checkpoint")
    checkpoint = load_checkpoint(parameters.source, parameters.fov, parameters.deltas)
    mean, std = checkpoint.normalisation(parameters.image_mean, parameters.image_std)
    info = CheckpointInfo(
        model=checkpoint.model,
        image_mean=mean,
        image_std=std,
        voxel_size_nm=parameters.voxel_size_nm,
        step=checkpoint.step,
        provenance={"imported_from": str(Path(parameters.source).absolute()), "code_version": code_version()},
    )
    save_checkpoint(output, info, checkpoint.weights, {})
    return InterchangeResult(outputs=(str(output),), steps=checkpoint.step)


_CONVERSIONS: dict[Conversion, Callable[[InterchangeParameters, Reporter], InterchangeResult]] = {
    "from_google_result": from_google_result,
    "to_google_result": to_google_result,
    "to_hdf5": to_hdf5,
    "from_google_checkpoint": from_google_checkpoint,
}


def _rows(result: GoogleResult) -> list[ObjectRow]:
    """The objects that have voxels, by id; one without an origin has its first voxel for a seed, and no steps."""
    ids, first, counts = fastremap.unique(result.labels, return_index=True, return_counts=True)
    numbers = np.searchsorted(ids[ids > 0], result.labels).astype(np.int32) + 1
    numbers[result.labels == 0] = 0
    extents = iter(ndimage.find_objects(numbers))
    rows = []
    for id, index, voxels in zip(ids.tolist(), first.tolist(), counts.tolist(), strict=True):
        if id == 0:
            continue
        z, y, x = (int(n) for n in np.unravel_index(index, result.labels.shape))
        origin = result.origins.get(id, Origin((z, y, x), 0, 0.0))
        zs, ys, xs = next(extents)
        rows.append(
            ObjectRow(
                id=id,
                seed=_moved(origin.zyx, result.corner),
                low=_moved((zs.start, ys.start, xs.start), result.corner),
                high=_moved((zs.stop - 1, ys.stop - 1, xs.stop - 1), result.corner),
                voxels=voxels,
                steps=origin.steps,
            )
        )
    return rows


def _own_seeds(volume: Volume) -> dict[int, tuple[Triple, int]]:
    table = table_of(volume.name)
    return read_seeds(table) if volume.name.endswith(".zarr") and table.is_file() else {}


def _read(volume: Volume, box: Box, corner: Triple) -> np.ndarray[tuple[int, ...], np.dtype[np.integer]]:
    """`box` of a volume whose first voxel is at `corner`, with non-negative labels."""
    own = box.translate(_negative(corner))
    if box.empty or not volume.box.contains(own):
        raise DataError(
            f"{volume.name}: box {box} is empty or leaves the labels, which are {volume.box.translate(corner)}"
        )
    labels = volume.read(own)
    if labels.min() < 0:
        raise DataError(f"{volume.name}: holds negative labels; expected 0 for none and positive ids")
    return labels


def _imported(folder: Path) -> bool:
    from apps.ffn.checkpoint import read_info

    return "imported_from" in read_info(folder).provenance


def _moved(point: Triple, by: Triple) -> Triple:
    return point[0] + by[0], point[1] + by[1], point[2] + by[2]


def _negative(point: Triple) -> Triple:
    return -point[0], -point[1], -point[2]


def _box(corner: Triple, shape: tuple[int, ...]) -> Box:
    return Box.of(corner, (shape[0], shape[1], shape[2]))


STAGE = Stage(
    name="interchange",
    summary="Convert segmentations, volumes and checkpoints from and to google/ffn's files.",
    parameters=InterchangeParameters,
    result=InterchangeResult,
    run=run,
    example={
        "conversion": "from_google_result",
        "source": "results/fib25/10/20/seg-10_20_30.npz",
        "output": "segmentation/box.zarr",
        "voxel_size_nm": [10.0, 10.0, 10.0],
    },
)
