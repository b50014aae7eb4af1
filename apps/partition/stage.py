"""Stage `partition`: the training coordinates of an FFN, balanced over how much of its surroundings an object fills.

Januszewski et al. 2018, "Training": every labelled voxel is put in a class by the fraction of voxels of its own object
in the training example around it; classes are then made equally frequent, so that thin processes and objects' borders
weigh as much as the inside of large ones.  google/ffn has two programs for it (compute_partitions, build_coordinates).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import open_volume
from apps.partition.balance import ClassSample, Coordinates, balanced
from apps.partition.classes import class_blocks, large_bodies

_FRACTION = Annotated[float, Meta(gt=0.0, lt=1.0)]


class PartitionParameters(Parameters, frozen=True, kw_only=True):
    """Where the labels are, and what counts as a class."""

    labels: Annotated[str, Meta(min_length=1, description="OME-Zarr or FILE.h5:DATASET, integers, 0 no object")]
    output: Annotated[str, Meta(pattern=r"\.npz$", description="NAME.npz: zyx int32 [n, 3], fraction_class uint8 [n]")]
    box: Annotated[
        Box | None, Meta(description="labels outside of it are not looked at; null takes the whole volume")
    ] = None
    fov: Annotated[Triple, Meta(description="the network's field of view, zyx, odd")] = (17, 17, 17)
    deltas: Annotated[Triple, Meta(description="the network's step, zyx")] = (4, 4, 4)
    thresholds: Annotated[
        tuple[_FRACTION, ...], Meta(min_length=1, max_length=254, description="between the classes, ascending")
    ] = (0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    min_size: Annotated[int, Meta(ge=1, description="bodies of fewer voxels in the box are taken as no object")] = 10000
    max_coordinates: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="at most so many coordinates; null brings every class to the size of the largest"),
    ] = 1_000_000
    seed: Annotated[int, Meta(ge=0, description="of the drawing and shuffling")] = 0

    def check(self) -> None:
        if min(self.fov) < 1 or any(n % 2 == 0 for n in self.fov):
            raise ParameterError(f"fov {self.fov}: expected odd positive extents")
        if min(self.deltas) < 0:
            raise ParameterError(f"deltas {self.deltas}: expected no negative step")
        if any(a >= b for a, b in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise ParameterError(f"thresholds {self.thresholds}: expected ascending fractions")

    @property
    def radius(self) -> Triple:
        """Voxels from the centre of a training example to its border, zyx; the example is fov + 2 * deltas."""
        z, y, x = (n // 2 + d for n, d in zip(self.fov, self.deltas, strict=True))
        return z, y, x


class PartitionResult(Result, frozen=True, kw_only=True):
    """The coordinates file and what it was drawn from."""

    coordinates: Annotated[str, Meta(description="the .npz file")]
    count: Annotated[int, Meta(ge=1, description="coordinates in it")]
    classes: Annotated[dict[str, int], Meta(description="voxels of each class before balancing; class 1 fills least")]
    bodies: Annotated[int, Meta(ge=1, description="bodies of at least min_size voxels")]


def run(parameters: PartitionParameters, report: Reporter) -> PartitionResult:
    """Write balanced training coordinates.

    Every coordinate is the centre of an example of fov + 2 * deltas voxels that lies in the box whole.  Memory is
    bounded by a block with its margin and by `max_coordinates` a class.

    Raises DataError where the labels are no labels, the box is too small for one example, or no body is usable.
    """
    labels = open_volume(parameters.labels)
    if labels.dtype.kind not in "ui":
        raise DataError(f"{labels.name}: has dtype {labels.dtype}; expected labels of an integer type")
    box = parameters.box or labels.box
    if not labels.box.contains(box):
        raise DataError(f"{labels.name}: box {box} leaves the volume, which is {labels.box}")
    r = parameters.radius
    example = tuple(2 * n + 1 for n in r)
    if any(n < e for n, e in zip(box.shape, example, strict=True)):
        raise DataError(f"{labels.name}: box of shape {box.shape} is smaller than one training example, {example}")
    centres = box.grow((-r[0], -r[1], -r[2]))
    if not Path(parameters.output).parent.is_dir():
        raise DataError(f"{Path(parameters.output).parent}: no such folder; expected one to write the coordinates into")

    done, total = 0, box.size + centres.size

    def told(block: Box) -> None:
        nonlocal done
        done += block.size
        report(done, total, "partitioning")

    bodies, largest = large_bodies(labels, box, parameters.min_size, told)
    if not len(bodies):
        raise DataError(
            f"{labels.name}: no body in {box} has min_size = {parameters.min_size} voxels (the largest has {largest}); "
            "give a larger box or a smaller min_size"
        )
    samples: dict[int, ClassSample] = {}
    for block, classes in class_blocks(labels, centres, bodies, r, parameters.thresholds):
        _offer(samples, block, classes, parameters)
        told(block)
    if not samples:
        raise DataError(
            f"{labels.name}: no body of min_size = {parameters.min_size} voxels reaches into {centres}, where training "
            f"examples of {example} can be centred; give a larger box or a smaller min_size"
        )
    samples = dict(sorted(samples.items()))
    rng = np.random.default_rng(parameters.seed)
    coordinates, numbers = balanced(samples, parameters.max_coordinates, rng)
    _save(Path(parameters.output), coordinates, numbers)
    return PartitionResult(
        coordinates=parameters.output,
        count=len(coordinates),
        classes={str(number): sample.offered for number, sample in samples.items()},
        bodies=len(bodies),
    )


def _offer(
    samples: dict[int, ClassSample], block: Box, classes: NDArray[np.uint8], parameters: PartitionParameters
) -> None:
    """Offer the voxels of a block to the samples of their classes."""
    # The keys hang on the seed and on where the block lies, not on which block came first.
    rng = np.random.default_rng((parameters.seed, *block.offset))
    for number in np.flatnonzero(np.bincount(classes.ravel())):
        if number == 0:
            continue
        coordinates = (np.argwhere(classes == number) + block.offset).astype(np.int32)
        sample = samples.setdefault(int(number), ClassSample(parameters.max_coordinates))
        sample.offer(rng.random(len(coordinates)), coordinates)


def _save(path: Path, coordinates: Coordinates, classes: NDArray[np.uint8]) -> None:
    data = io.BytesIO()
    np.savez(data, zyx=coordinates, fraction_class=classes)
    write_atomically(path, data.getvalue())


STAGE = Stage(
    name="partition",
    summary="Draw balanced training coordinates from labels.",
    parameters=PartitionParameters,
    result=PartitionResult,
    run=run,
    example={
        "labels": "data/labels.zarr",
        "output": "coordinates.npz",
        "box": {"offset": [0, 0, 0], "shape": [96, 160, 120]},
        "min_size": 1000,
        "seed": 1,
    },
)
