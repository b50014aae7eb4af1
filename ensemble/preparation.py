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
# What is generated, and how its columns are divided, for searches whose labels are classes of pixels and not objects.
SECTIONS_SHAPE: Triple = (24, 384, 384)
SECTIONS_DESIGN = {"somata": 1.2, "vessels": 5, "resin": 14}
SECTION_THICKNESS = 4
SECTION_VOXEL_NM = (40.0, 10.0, 10.0)
CLASSES_FRACTIONS = (0.6, 0.2)
NO_GEOMETRY: Triple = (0, 0, 0)
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


def divide_columns(shape: Triple) -> Division:
    """Cut a volume of `shape` zyx along x into training, validation and test, each with all sections and rows.

    For stages that need no training coordinates.  Raises DataError where there are too few columns.
    """
    depth, height, width = shape
    first, second = (round(width * sum(CLASSES_FRACTIONS[: n + 1])) for n in (0, 1))
    if not 0 < first < second < width:
        raise DataError(f"a volume of shape {shape} is too narrow to train on and to test; expected at least 5 columns")
    parts = ((0, first), (first, second), (second, width))
    training, validation, test = (Box.between((0, 0, a), (depth, height, b)) for a, b in parts)
    return Division(training, validation, test)


def check_plan(plan: CampaignPlan, wanted: Geometry | None) -> Division:
    """Open what the plan names, and divide it for a search of that geometry; None: one that needs no coordinates.

    Raises what `check_inputs` and `divide` raise.
    """
    if wanted is None:
        return divide_columns(check_inputs(plan, SECTIONS_SHAPE))
    return divide(check_inputs(plan), geometry_for(wanted, plan.init))


def check_inputs(plan: CampaignPlan, generated: Triple = PHANTOM_SHAPE) -> Triple:
    """Open what the plan names and return the volume's shape zyx; says what is wrong before any job is made.

    `generated`: the shape where it names nothing.
    """
    if plan.image is None:
        return generated
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


def plan_preparation(plan: CampaignPlan, folder: Path, division: Division, geometry: Geometry | None) -> list[Task]:
    """The tasks PREPARATION_KEYS: phantom (where no volume is given), ingest, then coordinates and trivial answers.

    Without a geometry there are no coordinates and trivial answers, and the phantom's labels are its masks.
    """
    output = folder / "data"
    tasks = []
    if plan.image is None:
        source = folder / "phantom"
        made: dict[str, Any] = {"output": str(source), "shape": PHANTOM_SHAPE, "seed": plan.seed}
        if geometry is None:
            made |= {
                "shape": SECTIONS_SHAPE,
                "design": SECTIONS_DESIGN,
                "section_thickness": SECTION_THICKNESS,
                "voxel_size_nm": SECTION_VOXEL_NM,
            }
        image, labels = str(source / "image.zarr"), str(source / ("labels.zarr" if geometry else "masks.zarr"))
        tasks.append(Task("data/phantom", "phantom", made))
    else:
        image, labels = plan.image, plan.labels or ""
    volumes = Task(
        "data/volumes",
        "ingest",
        {"image": image, "labels": labels, "output": str(output), "voxel_size_nm": plan.voxel_size_nm},
        after=tuple(task.key for task in tasks),
    )
    if geometry is None:
        return [*tasks, volumes]
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
    campaign: Campaign, jobs: Jobs, wanted: Geometry | None, on_progress: Callable[[int, int], None] | None = None
) -> Preparation:
    """Do what is missing of the preparation, as tasks of the campaign, and write down what trials read.

    `wanted`: what training coordinates are sampled for; None: there are none.

    Raises StateError where the campaign was prepared for smaller canvases than are wanted now, or for coordinates where
    none are wanted: its data are divided otherwise.
    """
    known = campaign.data
    if wanted is None:
        if known is not None and known.coordinates:
            raise StateError(
                f"campaign {campaign.name}: was prepared for networks that trace objects, this search tells classes of "
                "pixels; use a new campaign"
            )
        division = check_plan(campaign.plan, None)
        records = run_tasks(jobs, plan_preparation(campaign.plan, campaign.folder, division, None), on_progress)
        return _save(campaign, division, None, records)
    geometry = geometry_for(wanted, campaign.plan.init)
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
    return _save(campaign, division, geometry, records)


def _save(
    campaign: Campaign, division: Division, geometry: Geometry | None, records: dict[str, dict[str, Any]]
) -> Preparation:
    """Write down what the tasks have prepared."""
    volumes, partition, trivial = (records[key]["result"] if key in records else None for key in PREPARATION_KEYS[1:])
    assert volumes is not None  # it is always among the tasks
    data = CampaignData(
        image=volumes["image"],
        labels=volumes["labels"],
        coordinates=partition["coordinates"] if partition else "",
        image_mean=volumes["image_mean"],
        image_std=volumes["image_std"],
        voxel_size_nm=tuple(volumes["voxel_size_nm"]),
        data_hash=volumes["data_hash"],
        training_box=division.training,
        validation_box=division.validation,
        test_box=division.test,
        fov=geometry.fov if geometry else NO_GEOMETRY,
        deltas=geometry.deltas if geometry else NO_GEOMETRY,
        trivial_answers=trivial["baselines"] if trivial else {},
        init=campaign.plan.init,
    )
    campaign.save_data(data)
    return Preparation(data, list(records.values()))
