"""Prepare a campaign's data: bring the volumes in (or generate them), divide them into boxes, sample coordinates.

Plan, do, collect: `plan_preparation` is pure, the workflow does the tasks, `prepare` writes what trials read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.volumes import open_volume
from ensemble.campaigns import Campaign, CampaignData, CampaignPlan
from ensemble.jobs import Task
from ensemble.workflow import Jobs, run_tasks

# Voxels zyx of the generated phantom, and the largest validation and test boxes: what two cores do in minutes.
PHANTOM_SHAPE: Triple = (96, 160, 256)
VALIDATION_SHAPE: Triple = (64, 64, 64)
TEST_SHAPE: Triple = (96, 96, 112)
# Bodies of fewer voxels make no training examples (google/ffn's default is for volumes of 500^3).
MIN_BODY_SIZE = 1000
MAX_COORDINATES = 200_000
TRAINING_FRACTION = 0.55
PREPARATION_KEYS = ("data/phantom", "data/volumes", "data/partition", "data/trivial-answers")


@dataclass(frozen=True)
class Geometry:
    """The largest field of view and deltas zyx that training will use: what its canvases need around a coordinate."""

    fov: Triple = (13, 13, 13)
    deltas: Triple = (3, 3, 3)

    @property
    def canvas(self) -> Triple:
        """Extent zyx of a training canvas."""
        (fz, fy, fx), (dz, dy, dx) = self.fov, self.deltas
        return fz + 2 * dz, fy + 2 * dy, fx + 2 * dx

    def covers(self, other: Geometry) -> bool:
        """True where canvases of `other` are no larger than ours."""
        return all(a >= b for a, b in zip(self.canvas, other.canvas, strict=True))


def geometry_for(wanted: Geometry, init: str | None) -> Geometry:
    """`wanted`, or that of the checkpoint `init` where its canvas is larger."""
    if init is None:
        return wanted
    from apps.ffn.checkpoint import geometry_of

    theirs = Geometry(*geometry_of(init))
    return wanted if wanted.covers(theirs) else theirs


@dataclass(frozen=True)
class Division:
    """How a volume is divided: disjoint boxes for training, for scoring trials, and for the last test."""

    training: Box
    validation: Box
    test: Box


def divide(shape: Triple, geometry: Geometry) -> Division:
    """Cut a volume of `shape` zyx along x: the first part trains, the rest is held out for validation and test.

    Validation and test share the held-out part along y.  Raises DataError where the volume is too small for that.
    """
    depth, height, width = shape
    split = int(width * TRAINING_FRACTION)
    held_out = width - split
    validation = (
        min(depth, VALIDATION_SHAPE[0]),
        min(height // 3, VALIDATION_SHAPE[1]),
        min(held_out, VALIDATION_SHAPE[2]),
    )
    test_start = validation[1]
    test = (min(depth, TEST_SHAPE[0]), min(height - test_start, TEST_SHAPE[1]), min(held_out, TEST_SHAPE[2]))
    smallest = geometry.canvas
    for part in ((depth, height, split), validation, test):
        if any(n < s for n, s in zip(part, smallest, strict=True)):
            least = (smallest[0], 3 * smallest[1], int(smallest[2] / (1 - TRAINING_FRACTION)) + 1)
            raise DataError(
                f"a volume of shape {shape} is too small to train on and to test; expected at least {least}"
            )
    return Division(
        training=Box.of((0, 0, 0), (depth, height, split)),
        validation=Box.of((0, 0, split), validation),
        test=Box.of((0, test_start, split), test),
    )


def check_inputs(plan: CampaignPlan) -> Triple:
    """Open what the plan names and return the volume's shape zyx; says what is wrong before any job is made."""
    if plan.image is None:
        return PHANTOM_SHAPE
    assert plan.labels is not None  # CampaignPlan checks
    image, labels = open_volume(plan.image), open_volume(plan.labels)
    if image.dtype.name != "uint8":
        raise DataError(f"{plan.image}: has dtype {image.dtype}; expected grey values of uint8 (0 to 255): convert it")
    if image.shape != labels.shape:
        raise DataError(f"{plan.labels}: has shape {labels.shape}; expected that of the image, {image.shape}")
    if labels.dtype.kind not in "ui":
        raise DataError(f"{plan.labels}: has dtype {labels.dtype}; expected integer labels")
    if image.voxel_size_nm is None and plan.voxel_size_nm is None:
        raise ParameterError(f"{plan.image}: does not say its voxel size; give --voxel-size Z,Y,X in nanometres")
    return image.shape


def plan_preparation(plan: CampaignPlan, folder: Path, division: Division, geometry: Geometry) -> list[Task]:
    """The tasks PREPARATION_KEYS: phantom (where no volume is given), ingest, then coordinates and trivial answers."""
    output = folder / "data"
    tasks = []
    if plan.image is None:
        source = folder / "phantom"
        image, labels = str(source / "image.zarr"), str(source / "labels.zarr")
        tasks.append(
            Task("data/phantom", "phantom", {"output": str(source), "shape": PHANTOM_SHAPE, "seed": plan.seed})
        )
    else:
        image, labels = plan.image, plan.labels or ""
    volumes = Task(
        "data/volumes",
        "ingest",
        {"image": image, "labels": labels, "output": str(output), "voxel_size_nm": plan.voxel_size_nm},
        after=tuple(task.key for task in tasks),
    )
    partition = Task(
        "data/partition",
        "partition",
        {
            "labels": str(output / "labels.zarr"),
            "output": str(output / "coordinates.npz"),
            "box": division.training.to_dict(),
            "fov": geometry.fov,
            "deltas": geometry.deltas,
            "min_size": MIN_BODY_SIZE,
            "max_coordinates": MAX_COORDINATES,
            "seed": plan.seed,
        },
        after=("data/volumes",),
    )
    trivial = Task(
        "data/trivial-answers",
        "evaluation",
        {
            "segmentation": None,
            "labels": str(output / "labels.zarr"),
            "image": str(output / "image.zarr"),
            "box": division.validation.to_dict(),
            "baselines": True,
            "threshold_box": division.training.to_dict(),
        },
        after=("data/volumes",),
    )
    return [*tasks, volumes, partition, trivial]


@dataclass(frozen=True)
class Preparation:
    """The prepared data, and the records of the jobs that prepared it."""

    data: CampaignData
    records: list[dict[str, Any]]


def prepare(
    campaign: Campaign, jobs: Jobs, wanted: Geometry, on_progress: Callable[[int, int], None] | None = None
) -> Preparation:
    """Do what is missing of the preparation, as tasks of the campaign, and write down what trials read.

    Raises StateError where the campaign was prepared for smaller canvases than are wanted now.
    """
    geometry = geometry_for(wanted, campaign.plan.init)
    known = campaign.data
    if known is not None:
        prepared = Geometry(known.fov, known.deltas)
        if not prepared.covers(geometry):
            raise StateError(
                f"campaign {campaign.name}: was prepared for {prepared}, the search needs {geometry}; "
                "use a new campaign"
            )
        geometry = prepared
    division = divide(check_inputs(campaign.plan), geometry)
    records = run_tasks(jobs, plan_preparation(campaign.plan, campaign.folder, division, geometry), on_progress)
    volumes, partition, trivial = (records[key]["result"] for key in PREPARATION_KEYS[1:])
    data = CampaignData(
        image=volumes["image"],
        labels=volumes["labels"],
        coordinates=partition["coordinates"],
        image_mean=volumes["image_mean"],
        image_std=volumes["image_std"],
        voxel_size_nm=tuple(volumes["voxel_size_nm"]),
        data_hash=volumes["data_hash"],
        training_box=division.training,
        validation_box=division.validation,
        test_box=division.test,
        fov=geometry.fov,
        deltas=geometry.deltas,
        trivial_answers=trivial["baselines"],
        init=campaign.plan.init,
    )
    campaign.save_data(data)
    return Preparation(data, list(records.values()))
