"""Stage `partition`: the training coordinates of an FFN, balanced over how much of its surroundings an object fills.

Januszewski et al. 2018, "Training": every labelled voxel is put in a class by the fraction of voxels of its own object
in the training example around it; classes are then made equally frequent, so that thin processes and objects' borders
weigh as much as the inside of large ones.  google/ffn has two programs for it: compute_partitions gives the volume of
classes, build_coordinates draws from it.  Here one stage does both; it can write or read the volume between them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Volume, open_volume
from apps.partition.balance import Sampler, balanced
from apps.partition.classes import class_blocks, large_bodies
from apps.partition.outputs import check_folder, save_coordinates
from apps.partition.partition_volume import (
    EXCLUDED,
    PartitionVolume,
    check_new_partition_volume,
    new_partition_volume,
    open_partition_volume,
)

_FRACTION = Annotated[float, Meta(gt=0.0, lt=1.0)]


class PartitionParameters(Parameters, frozen=True, kw_only=True):
    """Where the labels are, and what counts as a class."""

    labels: Annotated[
        str | None, Meta(description="OME-Zarr or FILE.h5:DATASET, integers, 0 no object; null: read partition_volume")
    ] = None
    partition_volume: Annotated[
        Annotated[str, Meta(pattern=r"\.(h5|hdf5|hdf):.+$")] | None,
        Meta(description="FILE.h5:DATASET of classes, google/ffn's form: written with labels, read without"),
    ] = None
    output: Annotated[
        str, Meta(pattern=r"\.(npz|tfrecord\.gz)$", description="NAME.npz, or NAME.tfrecord.gz in google/ffn's form")
    ]
    name: Annotated[str, Meta(min_length=1, description="label_volume_name in a TFRecord")] = "volume"
    mask: Annotated[
        str | None, Meta(description="integers on the labels' grid; voxels that are not zero are never a centre")
    ] = None
    box: Annotated[
        Box | None, Meta(description="labels outside of it are not looked at; null takes the whole volume")
    ] = None
    fov: Annotated[Triple, Meta(description="the network's field of view, zyx, odd")] = (17, 17, 17)
    deltas: Annotated[Triple, Meta(description="the network's step, zyx")] = (4, 4, 4)
    margin: Annotated[
        Triple | None,
        Meta(description="voxels zyx that a centre keeps from the box's border; null: fov // 2 + deltas, the least"),
    ] = None
    thresholds: Annotated[
        tuple[_FRACTION, ...], Meta(min_length=1, max_length=253, description="between the classes, ascending")
    ] = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    min_size: Annotated[int, Meta(ge=1, description="bodies of fewer voxels in the box are taken as no object")] = 10000
    background: Annotated[bool, Meta(description="draw from class 0, no object, too, as build_coordinates does")] = (
        False
    )
    max_coordinates: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="at most so many coordinates; null brings every class to the size of the largest"),
    ] = 1_000_000
    seed: Annotated[int, Meta(ge=0, description="of the drawing and shuffling")] = 0

    def check(self) -> None:
        if not self.labels and self.partition_volume is None:
            raise ParameterError("labels, partition_volume: one is needed, labels to partition or a partition volume")
        if min(self.fov) < 1 or any(n % 2 == 0 for n in self.fov):
            raise ParameterError(f"fov {self.fov}: expected odd positive extents")
        if min(self.deltas) < 0:
            raise ParameterError(f"deltas {self.deltas}: expected no negative step")
        if self.margin is not None and any(m < r for m, r in zip(self.margin, self.radius, strict=True)):
            raise ParameterError(f"margin {self.margin}: expected at least fov // 2 + deltas, {self.radius}")
        if any(a >= b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ParameterError(f"thresholds {self.thresholds}: expected ascending fractions")

    @property
    def radius(self) -> Triple:
        """Voxels from the centre of a training example to its border, zyx; the example is fov + 2 * deltas."""
        z, y, x = (n // 2 + d for n, d in zip(self.fov, self.deltas, strict=True))
        return z, y, x


class PartitionResult(Result, frozen=True, kw_only=True):
    """The coordinates file and what it was drawn from."""

    coordinates: Annotated[str, Meta(description="the file of coordinates")]
    partition_volume: Annotated[str | None, Meta(description="the volume of classes that was written or read")]
    count: Annotated[int, Meta(ge=1, description="coordinates in the file")]
    classes: Annotated[dict[str, int], Meta(description="voxels of each class before balancing; class 1 fills least")]
    bodies: Annotated[
        int | None, Meta(description="bodies of at least min_size voxels; null for a partition volume that was read")
    ]


Blocks = Iterator[tuple[Box, NDArray[np.uint8]]]


def run(parameters: PartitionParameters, report: Reporter) -> PartitionResult:
    """Write balanced training coordinates.

    Every coordinate is the centre of an example of 2 * margin + 1 voxels that lies in the box whole.  Memory is bounded
    by a block with its surroundings and by `max_coordinates` a class.

    Raises DataError where the labels are no labels, the mask does not fit, the box is too small for one example, or no
    body is usable.
    """
    check_folder(parameters.output)
    if parameters.labels is None:
        return _draw_from_volume(parameters, report)
    return _draw_from_labels(parameters, parameters.labels, report)


def _draw_from_labels(parameters: PartitionParameters, name: str, report: Reporter) -> PartitionResult:
    labels = open_volume(name)
    if labels.dtype.kind not in "ui":
        raise DataError(f"{labels.name}: has dtype {labels.dtype}; expected labels of an integer type")
    box = _box_in(labels.box, parameters.box, labels.name)
    candidates = _candidates(parameters, box, labels.name)
    mask = _open_mask(parameters.mask, labels.box, labels.name, whole=True)
    if parameters.partition_volume is not None:
        check_new_partition_volume(parameters.partition_volume)
    r = parameters.radius
    centres = box.grow((-r[0], -r[1], -r[2]))
    told = _Progress(report, box.size + centres.size)

    bodies, largest = large_bodies(labels, box, parameters.min_size, told)
    if not len(bodies):
        raise DataError(
            f"{labels.name}: no body in {box} has min_size = {parameters.min_size} voxels (the largest has {largest}); "
            "give a larger box or a smaller min_size"
        )
    sampler = _sampler(parameters)
    blocks = _without_excluded(class_blocks(labels, centres, bodies, r, parameters.thresholds), mask)
    with contextlib.ExitStack() as stack:
        writer = None
        if parameters.partition_volume is not None:
            writer = stack.enter_context(new_partition_volume(parameters.partition_volume, centres, r))
        for block, classes in blocks:
            sampler.offer(block, classes, candidates)
            if writer is not None:
                writer.write(block, classes)
            told(block)
        if not any(sampler.samples):
            raise DataError(
                f"{labels.name}: no body of min_size = {parameters.min_size} voxels reaches into {candidates}, where "
                f"training examples can be centred, outside of the mask ({parameters.mask}); "
                "give a larger box, a smaller min_size or another mask"
            )
    return _finish(parameters, sampler, box, len(bodies))


def _draw_from_volume(parameters: PartitionParameters, report: Reporter) -> PartitionResult:
    assert parameters.partition_volume is not None  # PartitionParameters.check
    volume: PartitionVolume = open_partition_volume(parameters.partition_volume)
    name = volume.classes.name
    box = _box_in(volume.box, parameters.box, name)
    candidates = _candidates(parameters, box, name)
    mask = _open_mask(parameters.mask, volume.region, name, whole=False)
    told, sampler = _Progress(report, volume.region.size), _sampler(parameters)
    for block, classes in _without_excluded(volume.blocks(), mask):
        sampler.offer(block, classes, candidates)
        told(block)
    if not any(sampler.samples):
        raise DataError(
            f"{name}: holds no voxel of an object in {candidates}, where training examples can be centred, outside of "
            f"the mask ({parameters.mask}); partition again with a smaller min_size"
        )
    return _finish(parameters, sampler, box, None)


def _finish(parameters: PartitionParameters, sampler: Sampler, box: Box, bodies: int | None) -> PartitionResult:
    samples = dict(sorted(sampler.samples.items()))
    rng = np.random.default_rng(parameters.seed)
    coordinates, numbers = balanced(samples, parameters.max_coordinates, rng)
    save_coordinates(parameters.output, coordinates, numbers, box, parameters.name)
    return PartitionResult(
        coordinates=parameters.output,
        partition_volume=parameters.partition_volume,
        count=len(coordinates),
        classes={str(number): sample.offered for number, sample in samples.items()},
        bodies=bodies,
    )


class _Progress:
    """Reports voxels done, block by block."""

    def __init__(self, report: Reporter, total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    def __call__(self, block: Box) -> None:
        self._done += block.size
        self._report(self._done, self._total, "partitioning")


def _sampler(parameters: PartitionParameters) -> Sampler:
    skipped = frozenset({EXCLUDED} if parameters.background else {EXCLUDED, 0})
    return Sampler(parameters.max_coordinates, parameters.seed, skipped)


def _box_in(whole: Box, wanted: Box | None, name: str) -> Box:
    box = wanted or whole
    if not whole.contains(box):
        raise DataError(f"{name}: box {box} leaves the volume, which is {whole}")
    return box


def _candidates(parameters: PartitionParameters, box: Box, name: str) -> Box:
    """Where examples can be centred."""
    margin = parameters.margin or parameters.radius
    example = tuple(2 * n + 1 for n in margin)
    if any(n < e for n, e in zip(box.shape, example, strict=True)):
        raise DataError(f"{name}: box of shape {box.shape} is smaller than one training example, {example}")
    return box.grow((-margin[0], -margin[1], -margin[2]))


def _open_mask(name: str | None, labels: Box, of: str, whole: bool) -> Volume | None:
    """The mask, found to hold the box `labels`, and no more where that is the `whole` grid."""
    if name is None:
        return None
    mask = open_volume(name)
    if mask.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {mask.dtype}; expected a mask of integers, 0 where voxels are used")
    if not mask.box.contains(labels) or (whole and mask.box != labels):
        raise DataError(f"{name}: has the shape {mask.shape}; expected the grid of the labels, {of} is {labels}")
    return mask


def _without_excluded(blocks: Blocks, mask: Volume | None) -> Blocks:
    for block, classes in blocks:
        if mask is not None:
            classes[mask.read(block) != 0] = EXCLUDED
        yield block, classes


STAGE = Stage(
    name="partition",
    summary="Draw balanced training coordinates from labels.",
    parameters=PartitionParameters,
    result=PartitionResult,
    run=run,
    output_suffix=".npz",
    example={
        "labels": "data/labels.zarr",
        "output": "coordinates.npz",
        "box": {"offset": [0, 0, 0], "shape": [96, 160, 120]},
        "min_size": 1000,
        "seed": 1,
    },
)
