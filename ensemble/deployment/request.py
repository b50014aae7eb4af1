"""What a deployment is asked to do, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import replace

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.volumes import VoxelSize, absolute_volume
from apps.ffn.masks import MaskParameters
from ensemble.deployment.linking import LinkChoices
from ensemble.models import Model, checkpoint_of

COST_COLUMN = "m:node_hours_per_gigavoxel"


@dataclass(frozen=True)
class Deployment:
    """What is to be segmented, with what, to where.

    Attributes:
        model: name of the model, as a tag.
        checkpoint: its checkpoint folder, or the prefix of a google/ffn checkpoint.
        inference: its inference settings, plain JSON.
        image: volume to segment (zyx).
        output: OME-Zarr volume to write (`*.zarr`).
        box: which part; None for all.
        subvolume, overlap: write shape and overlap of the subvolumes zyx in voxels; None: planned.
        masks: volumes on the image's grid that say where no object may be (vessels, somata, no tissue).
        labels: ground truth, or None; threshold_box: where the threshold baseline may look at the truth.
        voxel_size_nm: for images that do not say.
        trained_voxel_size_nm: what the model was trained at; None where that is not known.
        any_voxel_size: segment an image of other voxels than that all the same.
        speed: voxels of read boxes that one process segments a second; None where nobody measured it.
        threads: of one process.
        links: what is said about when two objects are one.
    """

    model: str
    checkpoint: Path
    inference: dict[str, Any]
    image: str
    output: Path
    box: Box | None = None
    subvolume: Triple | None = None
    overlap: Triple | None = None
    masks: tuple[MaskParameters, ...] = ()
    labels: str | None = None
    threshold_box: Box | None = None
    voxel_size_nm: VoxelSize | None = None
    trained_voxel_size_nm: VoxelSize | None = None
    any_voxel_size: bool = False
    speed: float | None = None
    threads: int = 1
    links: LinkChoices = field(default_factory=LinkChoices)

    def __post_init__(self) -> None:
        if self.speed is not None and not self.speed > 0:
            raise ParameterError(f"speed {self.speed}: expected voxels a second, a positive number")
        if not 1 <= self.threads <= 1024:
            raise ParameterError(f"threads {self.threads}: expected 1 to 1024")

    @property
    def folder(self) -> Path:
        """Where everything of the deployment but its output is kept."""
        return self.output.with_name(f"{self.output.stem}-deployment")


@dataclass(frozen=True)
class Resources:
    """What a deployment may use.

    Attributes:
        nodes: at a time.
        jobs_per_node: that share a node; None: as in the last run, or else one.
        node_memory: bytes of one node; 0: as it was said last, or else this machine's.
        wall_time_min: of an allocation; a subvolume is to take a small part of it.
        subvolumes_per_job, reconciliation_jobs: None: planned.  A plan that is kept has its own.
        budget: node-hours that the prediction may not exceed; None: any.
    """

    nodes: int = 1
    jobs_per_node: int | None = None
    node_memory: int = 0
    wall_time_min: int = 120
    subvolumes_per_job: int | None = None
    reconciliation_jobs: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "jobs_per_node", "wall_time_min", "subvolumes_per_job", "reconciliation_jobs", "budget"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ParameterError(f"{name.replace('_', ' ')} {value}: expected a positive number")
        if self.node_memory < 0:
            raise ParameterError(f"node memory {self.node_memory}: expected bytes")

    @property
    def per_node(self) -> int:
        """Jobs that share a node."""
        return self.jobs_per_node or 1

    @property
    def processes(self) -> int:
        """Jobs at a time."""
        return self.nodes * self.per_node

    @property
    def process_memory(self) -> int:
        """Bytes for one job.  The nodes of a site on this machine are virtual: they share its memory."""
        node = self.node_memory or psutil.virtual_memory().total // self.nodes
        return node // self.per_node


def deployment_of(home: Path, model: Model, *, image: str, output: Path, **choices: Any) -> Deployment:
    """The deployment of a registered model; `choices` are further fields of Deployment."""
    masks = choices.get("masks", ())
    named = {
        "labels": absolute_volume(choices["labels"]) if choices.get("labels") else None,
        "masks": tuple(replace(mask, volume=absolute_volume(mask.volume)) for mask in masks),
        "speed": speed_of(model) if choices.get("speed") is None else choices["speed"],
    }
    return Deployment(
        model=f"{model.name}:{model.version}",
        checkpoint=checkpoint_of(home, model),
        inference=model.inference,
        image=absolute_volume(image),
        output=output.absolute(),
        trained_voxel_size_nm=model.voxel_size_nm,
        **{**choices, **named},
    )


def speed_of(model: Model) -> float | None:
    """Voxels a second of one process, as the trial that gave the model was measured; None where it was not."""
    cost = model.row.get(COST_COLUMN)
    return 1e9 / (3600 * cost) if isinstance(cost, int | float) and cost > 0 else None
