"""The tables that a user sees: the plan and what it will cost, and after the run what it has cost."""

from __future__ import annotations

from ensemble.deployment.plan import DeploymentPlan
from ensemble.deployment.progress import duration, voxels
from ensemble.deployment.records import Measured

Row = tuple[str, str]
_NONE = "-"


def plan_table(plan: DeploymentPlan) -> str:
    """What is to be done, and the prediction where there is one."""
    grid = plan.grid
    masked = sum(end - begin for begin, end in plan.masked)
    rows: list[Row] = [
        ("model", f"{plan.asked['model']}"),
        ("image", f"{plan.asked['image']}"),
        ("box", f"{grid.box} ({voxels(grid.box.size)} voxels of {_times(plan.voxel_size_nm)} nm)"),
        ("subvolumes", f"{_times(grid.counts)} = {len(grid)} of {_times(grid.shape)}, overlap {_times(grid.overlap)}"),
        ("wholly masked", f"{masked}"),
        ("inference jobs", f"{plan.segmentation_jobs}, of {plan.subvolumes_per_job} subvolumes"),
        ("reconciliation", _reconciliation(plan)),
    ]
    if plan.jobs_per_node > 1:
        rows.append(("jobs on a node", f"{plan.jobs_per_node}"))
    prediction = plan.prediction
    if prediction is None:
        rows.append(("predicted cost", "not known: nobody has measured this model; --speed gives a figure"))
    else:
        share = 1.0 - prediction.segmented_voxels / prediction.read_voxels
        rows += [
            ("to segment", f"{voxels(prediction.segmented_voxels)} voxels with overlaps ({100 * share:.0f} % masked)"),
            ("model's speed", f"{voxels(prediction.speed)} voxels/s in a process"),
            ("predicted cost", f"{prediction.node_hours:.3g} node-hours"),
            ("predicted time", duration(prediction.wall_seconds)),
        ]
    return _aligned(rows)


def cost_table(plan: DeploymentPlan, measured: Measured) -> str:
    """Measured beside predicted."""
    predicted = plan.prediction
    node_hours = measured.process_seconds / plan.jobs_per_node / 3600
    rows = [
        ("", "predicted", "measured"),
        ("segmented", voxels(predicted.segmented_voxels) if predicted else _NONE, voxels(measured.segmented_voxels)),
        (
            "voxels/s in a process",
            voxels(predicted.speed) if predicted else _NONE,
            voxels(measured.speed) if measured.speed else _NONE,
        ),
        ("node-hours", f"{predicted.node_hours:.3g}" if predicted else _NONE, f"{node_hours:.3g}"),
        ("time", duration(predicted.wall_seconds) if predicted else _NONE, duration(measured.wall_seconds)),
    ]
    return "\n".join(f"{name:<22} {before:>14} {after:>14}" for name, before, after in rows)


def _reconciliation(plan: DeploymentPlan) -> str:
    count = plan.reconciliation_jobs
    return "one job" if count == 1 else f"{count} jobs to compare, 1 to solve, {count} to relabel, 1 to finish"


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _aligned(rows: list[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
