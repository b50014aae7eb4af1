"""What a deployment will cost, before it is begun."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters
from ensemble.deployment.coverage import Coverage
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.request import Resources

# Seconds of a job that no subvolume takes: Python, TensorFlow, a network (4 s of processor time were measured),
# and Balsam before and after.
JOB_START_S = 6.0
# Voxels of read boxes a second that reconciliation compares, and of write boxes that it relabels, in a process (22 and
# 20 million a second of processor time were measured on subvolumes of 128 with overlaps of 32 voxels).
COMPARED_PER_S, RELABELLED_PER_S = 20e6, 20e6


class Prediction(Parameters, frozen=True, kw_only=True):
    """The cost of a deployment, from the speed of its model."""

    speed: Annotated[float, Meta(description="voxels of read boxes a second in one process")]
    read_voxels: Annotated[int, Meta(description="of all read boxes; what two of them share counts twice")]
    segmented_voxels: Annotated[float, Meta(description="those of them that masks leave")]
    process_seconds: Annotated[float, Meta(description="of all jobs together")]
    node_hours: Annotated[float, Meta(description="of all jobs together, several of which may share a node")]
    wall_seconds: Annotated[float, Meta(description="with as many processes at a time as are asked for")]


def predict(
    lattice: Lattice, coverage: Coverage, speed: float, jobs: int, reconciliation_jobs: int, resources: Resources
) -> Prediction:
    """The cost of segmenting what the masks leave, of starting the jobs, and of reconciliation."""
    numbers = np.arange(lattice.count)
    read = lattice.read_voxels(numbers).astype(np.float64)
    segmented = float((read * (1.0 - coverage.share))[~coverage.wholly].sum())
    inference = segmented / speed + JOB_START_S * jobs
    merging = merging_seconds(lattice)
    parallel = min(max(reconciliation_jobs, 1), resources.processes)
    seconds = inference + merging
    return Prediction(
        speed=speed,
        read_voxels=int(read.sum()),
        segmented_voxels=segmented,
        process_seconds=seconds,
        node_hours=seconds / resources.per_node / 3600,
        wall_seconds=inference / max(1, min(resources.processes, jobs)) + merging / parallel,
    )


def merging_seconds(lattice: Lattice) -> float:
    """What reconciliation takes, of one process."""
    return lattice.all_read_voxels() / COMPARED_PER_S + lattice.grid.box.size / RELABELLED_PER_S


def segmenting_seconds(prediction: Prediction, lattice: Lattice, processes: int, jobs: int) -> float:
    """What is predicted for all inference jobs, with so many processes at a time."""
    return (prediction.process_seconds - merging_seconds(lattice)) / max(1, min(processes, jobs))


def check_budget(prediction: Prediction | None, budget: float | None) -> None:
    """Raise ParameterError where the prediction is above the budget, or there is a budget and no prediction."""
    if budget is None:
        return
    if prediction is None:
        raise ParameterError(
            f"a budget of {budget:g} node-hours: nobody has measured how fast this model is, so nothing can be "
            "predicted; give --speed in voxels a second"
        )
    if prediction.node_hours > budget:
        raise ParameterError(
            f"predicted are {prediction.node_hours:.3g} node-hours, above the budget of {budget:g}: "
            f"{prediction.segmented_voxels:.3g} voxels to segment at {prediction.speed:.4g} voxels a second; give a "
            "larger --budget, a smaller --box, or a cheaper model"
        )
