"""The plan of a deployment: which subvolumes, in how many jobs, at what cost.  It is made once, and kept.

The plan stands in `plan.json` in the folder NAME-deployment beside the output NAME.zarr, with the pieces and the work
of reconciliation.  The same request finds it there again and goes on with it, with whatever nodes; another one that
wants the same output is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import zarr
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import settled
from apps.core.parameters import Parameters, json_hash
from apps.core.subvolumes import SubvolumeGrid
from apps.core.supervoxels import MAX_SUBVOLUMES
from apps.core.volumes import Volume, VoxelSize, open_labels, open_volume, same_voxel_size
from apps.ffn.applicability import check_overlap, check_voxel_size
from apps.ffn.checkpoint import Checkpoint, load_checkpoint
from apps.ffn.masks import MaskParameters, check_masks
from apps.ffn.model import ModelParameters
from apps.ffn.segmenter import check_extent
from apps.inference.segment import check_image
from apps.reconciliation.settings import MANIFEST, choose_chunks
from ensemble.deployment import sizes
from ensemble.deployment.coverage import Coverage, measure_coverage, numbers_in, ranges_of
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.linking import LinkRules, choose_rules, keep_tables
from ensemble.deployment.prediction import COMPARED_PER_S, Prediction, check_budget, predict
from ensemble.deployment.request import Deployment, Resources

PLAN_FILE = "plan.json"
PIECES, RECONCILIATION = "pieces", "reconciliation"
# Seconds of reconciliation up to which one job does all of it, and of a job where there are several.
ONE_JOB_S, RECONCILIATION_JOB_S = 60.0, 120.0


class DeploymentPlan(Parameters, frozen=True, kw_only=True):
    """What is to be done; plain JSON."""

    identity: Annotated[str, Meta(description="hash of the request and the grid: the deployment's name in Balsam")]
    asked: Annotated[dict[str, Any], Meta(description="the request, as far as the result depends on it")]
    grid: Annotated[SubvolumeGrid, Meta(description="the subvolumes")]
    voxel_size_nm: Annotated[VoxelSize, Meta(description="of the output, zyx")]
    output: Annotated[str, Meta(description="the merged segmentation, NAME.zarr")]
    folder: Annotated[str, Meta(description="where the plan, the pieces and the work of reconciliation are")]
    masked: Annotated[
        tuple[tuple[int, int], ...], Meta(description="subvolumes in which masks exclude everything, as ranges")
    ]
    subvolumes_per_job: Annotated[int, Meta(ge=1, description="that one inference job segments")]
    reconciliation_jobs: Annotated[int, Meta(ge=1, description="that share its work; 1: one job does all of it")]
    jobs_per_node: Annotated[int, Meta(ge=1, description="that share a node")]
    prediction: Annotated[Prediction | None, Meta(description="what it costs; null: nobody measured the model")]
    node_memory: Annotated[
        int, Meta(ge=0, description="bytes of a node, as it was said last; 0: nobody did, and it is this machine's")
    ] = 0
    links: Annotated[LinkRules, Meta(description="when two objects are one, as it was said last")] = LinkRules()

    @property
    def pieces(self) -> Path:
        return Path(self.folder) / PIECES

    @property
    def work(self) -> Path:
        """Of reconciliation."""
        return Path(self.folder) / RECONCILIATION

    def to_segment(self) -> NDArray[np.int64]:
        """Numbers of the subvolumes that are not wholly masked, ascending."""
        left = np.ones(len(self.grid), bool)
        left[numbers_in(self.masked)] = False
        return np.flatnonzero(left)

    @property
    def segmentation_jobs(self) -> int:
        """Inference jobs that start a network."""
        left = len(self.grid) - sum(end - begin for begin, end in self.masked)
        return -(-left // self.subvolumes_per_job)


def plan_deployment(deployment: Deployment, resources: Resources) -> DeploymentPlan:
    """The plan that an earlier run of the same request has kept, or a new one; see `keep_plan` and `renew_plan`.

    Of a kept one other rules for links, jobs on a node, memory of a node and speed are taken; nothing is written.

    Raises DataError, ParameterError or StateError, before anything is started, where image, model, masks, box,
    subvolumes, budget or output do not fit each other, or the output belongs to another deployment.
    """
    volume, model, voxel_size = _check_inputs(deployment)
    asked = _asked(deployment, volume)
    kept = _kept_plan(deployment, asked, voxel_size)
    if kept is None:
        plan = _new_plan(deployment, asked, volume, model, voxel_size, resources)
    else:
        plan = _go_on(kept, deployment, resources)
    plan = replace(plan, links=choose_rules(deployment.links, plan.links, deployment.folder, len(plan.grid)))
    check_budget(plan.prediction, resources.budget)
    return plan


def keep_plan(plan: DeploymentPlan) -> None:
    """Write the plan into its folder, where the same request finds it.  Raises DataError where that cannot be done."""
    folder = Path(plan.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be created ({error.strerror}); give another --out") from error
    if not (folder / PLAN_FILE).is_file():
        plan.save(folder / PLAN_FILE)


def kept_plan(plan: DeploymentPlan) -> DeploymentPlan | None:
    """What is kept of a plan; None before it is."""
    file = Path(plan.folder) / PLAN_FILE
    return DeploymentPlan.load(file) if file.is_file() else None


def renew_plan(plan: DeploymentPlan) -> None:
    """Have the kept plan, and what it needs, as `plan` says, which may differ in what a run may change.

    For the process alone that works on the output.
    """
    keep_tables(plan.links)
    if kept_plan(plan) != plan:
        plan.save(Path(plan.folder) / PLAN_FILE)


def find_plan(output: Path) -> DeploymentPlan:
    """The kept plan of the deployment that made `output`.  Raises StateError where there is none."""
    file = _plan_file(output)
    if not file.is_file():
        raise StateError(f"{output}: no deployment made it, {file} is not there")
    return DeploymentPlan.load(file)


def work_beside(output: Path) -> Path:
    """The work folder of reconciliation that lies beside an output, wherever the two are now."""
    return _plan_file(output).with_name(RECONCILIATION)


def _plan_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}-deployment") / PLAN_FILE


def _check_inputs(deployment: Deployment) -> tuple[Volume, ModelParameters, VoxelSize]:
    volume = open_volume(deployment.image)
    box = deployment.box or volume.box
    if not volume.box.contains(box):
        raise DataError(f"{deployment.image}: box {box} leaves the volume, which is {volume.box}")
    if box.empty:
        raise ParameterError(f"box {box}: is empty; expected a box with voxels")
    checkpoint = load_checkpoint(str(deployment.checkpoint))
    voxel_size = _check_voxel_size(deployment, volume, checkpoint)
    if deployment.output.suffix != ".zarr":
        raise ParameterError(f"{deployment.output}: an OME-Zarr volume's name ends in .zarr")
    inputs = (deployment.image, deployment.labels or "", *(mask.volume for mask in deployment.masks))
    if deployment.output.resolve() in {Path(name).resolve() for name in inputs}:
        raise ParameterError(f"{deployment.output}: is an input of the deployment; give another --out")
    if deployment.labels is not None:
        labels = open_labels(deployment.labels, volume)
        if not same_voxel_size(labels.voxel_size_nm, voxel_size):
            raise DataError(
                f"{labels.name}: has voxels of {labels.voxel_size_nm} nm; expected those of the image, {voxel_size} nm"
            )
    check_masks(deployment.masks, volume)
    check_image(volume, volume.box, checkpoint.model)
    return volume, checkpoint.model, voxel_size


def _check_voxel_size(deployment: Deployment, volume: Volume, checkpoint: Checkpoint) -> VoxelSize:
    voxel_size = volume.voxel_size_nm or deployment.voxel_size_nm
    if voxel_size is None:
        raise ParameterError(f"{deployment.image}: does not say its voxel size; give --voxel-size Z,Y,X in nanometres")
    if min(voxel_size) <= 0:
        raise ParameterError(f"voxel size {voxel_size}: expected positive nanometres")
    trained = checkpoint.voxel_size_nm or deployment.trained_voxel_size_nm
    if not deployment.any_voxel_size:
        check_voxel_size(deployment.image, voxel_size, deployment.model, trained, "--any-voxel-size")
    return voxel_size


def _asked(deployment: Deployment, volume: Volume) -> dict[str, Any]:
    box = deployment.box or volume.box
    return {
        "model": deployment.model,
        "checkpoint": str(deployment.checkpoint),
        "inference settings": deployment.inference,
        "image": deployment.image,
        "masks": [_mask_text(mask) for mask in deployment.masks],
        "box": str(box),
        "time of the image": _made(volume),
        "times of the masks": [_made(open_volume(mask.volume)) for mask in deployment.masks],
    }


def _made(volume: Volume) -> int:
    """When a volume was made, in nanoseconds: another one under the same name is another input."""
    if isinstance(volume.array, zarr.Array):
        return (Path(volume.name) / volume.array.path / "zarr.json").stat().st_mtime_ns
    return Path(volume.name.rpartition(":")[0]).stat().st_mtime_ns


def _mask_text(mask: MaskParameters) -> str:
    values = "" if mask.values is None else f"={','.join(map(str, mask.values))}"
    return f"{mask.volume}{values}{' (inverted)' if mask.invert else ''}"


def _kept_plan(deployment: Deployment, asked: dict[str, Any], voxel_size: VoxelSize) -> DeploymentPlan | None:
    """Raises StateError where output or folder belong to something else."""
    file, output = _plan_file(deployment.output), deployment.output
    if not file.is_file():
        if output.exists():
            raise StateError(f"{output}: exists, and is not of this deployment; give another --out")
        if file.parent.exists() and not file.parent.is_dir():
            raise StateError(f"{file.parent}: is a file; expected room for the deployment's folder, give another --out")
        if file.parent.exists() and not all(map(_is_leftover, file.parent.iterdir())):
            raise StateError(f"{file.parent}: exists, and holds no {PLAN_FILE} of a deployment; give another --out")
        return None
    plan = DeploymentPlan.load(file)
    if settled(plan.output) != settled(output):
        # Its jobs write to where it was begun, whatever is asked for here.
        raise StateError(
            f"{output}: {file.parent} was copied or moved here, and is the deployment of {plan.output}; a deployment "
            "goes on where it was begun: move it back, or give another --out"
        )
    now: dict[str, Any] = {**asked, "voxel size": list(voxel_size)}
    for name, given in (("subvolume", deployment.subvolume), ("overlap", deployment.overlap)):
        if given is not None:
            now[name] = list(given)
    before = {
        **plan.asked,
        "voxel size": list(plan.voxel_size_nm),
        "subvolume": list(plan.grid.shape),
        "overlap": list(plan.grid.overlap),
    }
    different = [f"{name} {before[name]} (now {value})" for name, value in now.items() if before.get(name) != value]
    if different:
        raise StateError(
            f"{output}: another deployment makes it, with {'; '.join(different)}; give another --out, or remove "
            f"{file.parent}"
        )
    if output.exists() and not (plan.work / MANIFEST).is_file():
        raise StateError(
            f"{output}: exists, and {plan.work} does not say that this deployment made it; remove it, or give another "
            "--out"
        )
    return plan


def _go_on(kept: DeploymentPlan, deployment: Deployment, resources: Resources) -> DeploymentPlan:
    """A kept plan with what another run may change: what jobs share a node, and how fast the model is said to be.

    How many subvolumes a job has, and how many jobs share reconciliation, is in the names of jobs that are done.
    Raises ParameterError where a job has too little memory now.
    """
    lattice, before = Lattice(kept.grid), kept.prediction
    resources = dataclasses.replace(
        resources,
        jobs_per_node=resources.jobs_per_node or kept.jobs_per_node,
        node_memory=resources.node_memory or kept.node_memory,
        subvolumes_per_job=kept.subvolumes_per_job,
        reconciliation_jobs=kept.reconciliation_jobs,
    )
    sizes.check_memory(lattice.largest_read, resources)
    prediction, speed = before, deployment.speed or (before and before.speed)
    if speed and (before is None or before.speed != speed or kept.jobs_per_node != resources.per_node):
        coverage = measure_coverage(lattice, deployment.masks)
        _, prediction = _jobs_and_cost(dataclasses.replace(deployment, speed=speed), lattice, coverage, resources)
    return replace(kept, jobs_per_node=resources.per_node, node_memory=resources.node_memory, prediction=prediction)


def _is_leftover(path: Path) -> bool:
    """Whether a file is what a kill left of a plan that was being written."""
    return path.name.startswith(f".{PLAN_FILE}.") and path.suffix == ".partial"


def _new_plan(
    deployment: Deployment,
    asked: dict[str, Any],
    volume: Volume,
    model: ModelParameters,
    voxel_size: VoxelSize,
    resources: Resources,
) -> DeploymentPlan:
    box = deployment.box or volume.box
    overlap = deployment.overlap or sizes.plan_overlap(model.fov, model.deltas)
    shape = deployment.subvolume or sizes.plan_shape(box, overlap, deployment.speed, resources)
    if deployment.overlap is None:  # no more than the subvolumes have
        overlap = cast(Triple, tuple(min(o, n) for o, n in zip(overlap, shape, strict=True)))
    grid = SubvolumeGrid(box=box, shape=shape, overlap=overlap, bounds=volume.box)
    choose_chunks(grid)  # raises ParameterError where two subvolumes would write one chunk
    check_overlap(grid, model.fov)
    if len(grid) > MAX_SUBVOLUMES:
        raise ParameterError(f"subvolume {shape}: {len(grid)} of them; expected {MAX_SUBVOLUMES} at most")
    lattice = Lattice(grid)
    what = f"box {box}: what a subvolume of it reads is too little; give a larger box or --overlap"
    check_extent(lattice.smallest_read, model, what)
    sizes.check_memory(lattice.largest_read, resources)
    coverage = measure_coverage(lattice, deployment.masks)
    per_job, prediction = _jobs_and_cost(deployment, lattice, coverage, resources)
    return DeploymentPlan(
        identity=json_hash([asked, grid.to_dict(), str(deployment.output)]),
        asked=asked,
        grid=grid,
        voxel_size_nm=voxel_size,
        output=str(deployment.output),
        folder=str(deployment.folder),
        masked=ranges_of(np.flatnonzero(coverage.wholly)),
        subvolumes_per_job=per_job,
        reconciliation_jobs=plan_reconciliation_jobs(lattice, resources),
        jobs_per_node=resources.per_node,
        node_memory=resources.node_memory,
        prediction=prediction,
    )


def plan_reconciliation_jobs(lattice: Lattice, resources: Resources) -> int:
    """One job where there is little to do; otherwise jobs that last some minutes."""
    if resources.reconciliation_jobs is not None:
        return min(resources.reconciliation_jobs, lattice.count)
    seconds = lattice.all_read_voxels() / COMPARED_PER_S
    if seconds <= ONE_JOB_S:
        return 1
    return min(lattice.count, max(resources.processes, round(seconds / RECONCILIATION_JOB_S)))


def _jobs_and_cost(
    deployment: Deployment, lattice: Lattice, coverage: Coverage, resources: Resources
) -> tuple[int, Prediction | None]:
    left = ~coverage.wholly
    count = int(np.count_nonzero(left))
    speed = deployment.speed
    seconds = None
    if speed and count:
        read = lattice.read_voxels(np.flatnonzero(left)) * (1.0 - coverage.share[left])
        seconds = float(read.mean()) / speed
    per_job = sizes.plan_subvolumes_per_job(count, seconds, resources)
    if speed is None:
        return per_job, None
    jobs = -(-count // per_job) + -(-(lattice.count - count) // sizes.plan_masked_per_job(lattice.largest_read))
    reconciliation_jobs = plan_reconciliation_jobs(lattice, resources)
    return per_job, predict(lattice, coverage, speed, jobs, reconciliation_jobs, resources)
