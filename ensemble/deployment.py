"""Deploy a model: segment a box in overlapping subvolumes, merge them, score the result where there is ground truth.

One inference job a subvolume, then one reconciliation job (and one evaluation job) that wait for them; Balsam keeps the
order.  The same deployment, asked for again, finds its jobs and goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import json_hash
from apps.core.subvolumes import plan_subvolumes
from apps.core.volumes import VoxelSize, absolute_volume, open_volume
from apps.ffn.masks import MaskParameters, check_masks
from ensemble.display import Display, job_folders
from ensemble.jobs import CampaignJobs, Task
from ensemble.models import Model, checkpoint_of
from ensemble.workflow import run_tasks


@dataclass(frozen=True)
class Deployment:
    """What is to be segmented, with what, to where.

    Attributes:
        model: name of the model, as a tag.
        checkpoint: its checkpoint folder.
        inference: its inference settings, plain JSON.
        image: volume to segment (zyx).
        output: OME-Zarr volume to write (`*.zarr`).
        box: which part; None for all.
        subvolume, overlap: shape and overlap of the subvolumes zyx in voxels.
        subvolumes_per_job: segmented by one process; a GPU wants dozens, which share its batches.
        masks: volumes on the image's grid that say where no object may be (vessels, somata, no tissue).
        labels: ground truth, or None; threshold_box: where the threshold baseline may look at the truth.
        voxel_size_nm: for images that do not say.
    """

    model: str
    checkpoint: Path
    inference: dict[str, Any]
    image: str
    output: Path
    box: Box | None = None
    subvolume: Triple = (64, 64, 64)
    overlap: Triple = (16, 16, 16)
    subvolumes_per_job: int = 1
    masks: tuple[MaskParameters, ...] = ()
    labels: str | None = None
    threshold_box: Box | None = None
    voxel_size_nm: VoxelSize | None = None


def plan_deployment(deployment: Deployment) -> list[Task]:
    """The tasks, in order: inference for every subvolume, reconciliation, and evaluation where there are labels.

    Raises DataError or ParameterError where volume, masks, box or subvolumes do not fit each other.
    """
    volume = open_volume(deployment.image)
    box = deployment.box or volume.box
    if not volume.box.contains(box):
        raise DataError(f"{deployment.image}: box {box} leaves the volume, which is {volume.box}")
    voxel_size = volume.voxel_size_nm or deployment.voxel_size_nm
    if voxel_size is None:
        raise ParameterError(f"{deployment.image}: does not say its voxel size; give --voxel-size Z,Y,X in nanometres")
    if deployment.output.suffix != ".zarr":
        raise ParameterError(f"{deployment.output}: an OME-Zarr volume's name ends in .zarr")
    if min(voxel_size) <= 0:
        raise ParameterError(f"voxel size {voxel_size}: expected positive nanometres")
    inputs = (deployment.image, deployment.labels or "", *(mask.volume for mask in deployment.masks))
    if deployment.output.resolve() in {Path(name).resolve() for name in inputs}:
        raise ParameterError(f"{deployment.output}: is an input of the deployment; give another --out")
    if deployment.labels is not None and (labels := open_volume(deployment.labels)).shape != volume.shape:
        raise DataError(f"{labels.name}: has shape {labels.shape}; expected that of the image, {volume.shape}")
    check_masks(deployment.masks, volume)
    identity = json_hash([str(deployment), str(box)])
    prefix = f"deploy/{identity}"
    pieces_folder = deployment.output.with_name(f"{deployment.output.stem}-subvolumes-{identity[:8]}")
    tags = {"model": deployment.model}
    if deployment.subvolumes_per_job < 1:
        raise ParameterError(f"subvolumes per job {deployment.subvolumes_per_job}: expected at least 1")
    planned = plan_subvolumes(box, deployment.subvolume, deployment.overlap, volume.box)
    pieces = [
        {
            "segmentation": str(pieces_folder / f"{i:05d}.zarr"),
            "read_box": subvolume.read_box.to_dict(),
            "write_box": subvolume.write_box.to_dict(),
        }
        for i, subvolume in enumerate(planned)
    ]
    inference = []
    for first in range(0, len(pieces), deployment.subvolumes_per_job):
        own = pieces[first : first + deployment.subvolumes_per_job]
        parameters = {
            "image": deployment.image,
            "model": str(deployment.checkpoint),
            "subvolumes": [
                {"box": piece["read_box"], "write_box": piece["write_box"], "output": piece["segmentation"]}
                for piece in own
            ],
            "settings": deployment.inference,
            "masks": [mask.to_dict() for mask in deployment.masks],
            "threads": 1,
        }
        outputs = tuple(str(piece["segmentation"]) for piece in own)
        inference.append(Task(f"{prefix}/inference-{first:05d}", "inference", parameters, tags, outputs=outputs))
    merge = Task(
        f"{prefix}/reconciliation",
        "reconciliation",
        {
            "pieces": pieces,
            "box": box.to_dict(),
            "output": str(deployment.output),
            "voxel_size_nm": voxel_size,
        },
        tags,
        after=tuple(task.key for task in inference),
        outputs=(str(deployment.output),),
    )
    tasks = [*inference, merge]
    if deployment.labels is not None:
        parameters = {
            "segmentation": str(deployment.output),
            "segmentation_offset": box.offset,
            "labels": deployment.labels,
            "image": deployment.image,
            "box": box.to_dict(),
            "baselines": True,
            "threshold_box": deployment.threshold_box.to_dict() if deployment.threshold_box else None,
        }
        tasks.append(Task(f"{prefix}/evaluation", "evaluation", parameters, tags, after=(merge.key,)))
    return tasks


def deployment_of(home: Path, model: Model, *, image: str, output: Path, **choices: Any) -> Deployment:
    """The deployment of a registered model; `choices` are further fields of Deployment."""
    masks = choices.get("masks", ())
    named = {
        "labels": absolute_volume(choices["labels"]) if choices.get("labels") else None,
        "masks": tuple(replace(mask, volume=absolute_volume(mask.volume)) for mask in masks),
    }
    return Deployment(
        model=f"{model.name}:{model.version}",
        checkpoint=checkpoint_of(home, model),
        inference=model.inference,
        image=absolute_volume(image),
        output=output.absolute(),
        **{**choices, **named},
    )


def run_deployment(deployment: Deployment, jobs: CampaignJobs, display: Display) -> dict[str, Any]:
    """Do it, shown on a display; returns records by stage: a list for `inference`, one for each other stage."""
    tasks = plan_deployment(deployment)
    merge = next(task for task in tasks if task.stage == "reconciliation")
    if deployment.output.exists() and not jobs.knows(merge.key):
        raise StateError(f"{deployment.output}: exists, and is not of this deployment; give another --out")
    keys = [task.key for task in tasks]
    with display.phase("deploy", lambda: job_folders(jobs, keys)) as update:
        records = run_tasks(jobs, tasks, update)
    by_stage: dict[str, Any] = {"inference": [records[task.key] for task in tasks if task.stage == "inference"]}
    return by_stage | {task.stage: records[task.key] for task in tasks if task.stage != "inference"}


@dataclass(frozen=True)
class KeptOut:
    """What the masks kept out of a deployment's box.

    Attributes:
        voxels: of the box.
        excluded: those of them in which no object could be.
        subvolumes: of the deployment.
        without_look: those of them in which there was nothing to look at, so that they needed no network.
    """

    voxels: int
    excluded: int
    subvolumes: int
    without_look: int

    def __str__(self) -> str:
        return (
            f"{self.excluded} of {self.voxels} voxels kept out ({100 * self.excluded / self.voxels:.1f} %), "
            f"{self.without_look} of {self.subvolumes} subvolumes without a look"
        )


def kept_out(inference: Iterable[Mapping[str, Any]]) -> KeptOut:
    """Summed over the records of a deployment's inference jobs, whose write boxes tile its box."""
    results = [record["result"] for record in inference]
    return KeptOut(
        voxels=sum(result["masked_write"]["voxels"] for result in results),
        excluded=sum(result["masked_write"]["excluded"] for result in results),
        subvolumes=sum(len(result["subvolumes"]) for result in results),
        without_look=sum(result["without_look"] for result in results),
    )
