"""The tables that a user sees: the plan and what it will cost, and after the run what it has cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apps.core.boxes import Box
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.linking import changes
from ensemble.deployment.plan import DeploymentPlan, kept_plan
from ensemble.deployment.progress import duration, voxels
from ensemble.deployment.records import Measured
from ensemble.deployment.request import Resources
from ensemble.deployment.sizes import memory_of

Row = tuple[str, str]
_NONE = "-"


def plan_table(plan: DeploymentPlan, resources: Resources) -> str:
    """What is to be done, on what, and the prediction where there is one."""
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
        ("links", f"{plan.links}"),
    ]
    if plan.jobs_per_node > 1:
        rows.append(("jobs on a node", f"{plan.jobs_per_node}"))
    rows.append(("job's memory", _memory(plan, resources)))
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


def what_changes(plan: DeploymentPlan, resources: Resources) -> list[str]:
    """What a run of this plan makes different in a deployment that was begun before, and what not: a line each."""
    before = kept_plan(plan)
    if before is None:
        return []
    lines = []
    different = changes(before.links, plan.links)
    if different:
        lines.append(
            f"links are other ones now: {different}; objects are put together anew, and nothing is segmented again"
        )
    kept = [
        f"{option} {there} (not {asked})"
        for option, there, asked in (
            ("--per-job", plan.subvolumes_per_job, resources.subvolumes_per_job),
            ("--reconciliation-jobs", plan.reconciliation_jobs, resources.reconciliation_jobs),
        )
        if asked is not None and min(asked, len(plan.grid)) != min(there, len(plan.grid))
    ]
    if kept:
        lines.append(f"kept from the plan, as jobs are done by it: {', '.join(kept)}")
    return lines


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


def seam_text(seams: Mapping[str, Any]) -> str:
    """How well subvolumes agree where they overlap, from what reconciliation says of them (SeamSummary as JSON)."""
    if not seams["faces"]:
        return "none, one subvolume"
    if seams["agreement"] is None:
        return f"{seams['faces']}, none of which has voxels that both sides fill; all in {seams['file']}"
    first, second = seams["worst_face"]
    return (
        f"{_percent(seams['agreement'])} of the voxels that both sides of {seams['faces']} faces fill agree, at worst "
        f"{_percent(seams['worst_agreement'])}, between subvolumes {first} and {second} "
        f"({Box(**seams['worst_box'])}); all in {seams['file']}"
    )


def _percent(share: float) -> str:
    """Rounded down: 100 % is all."""
    return f"{math.floor(1e4 * share) / 100:g} %"


def _reconciliation(plan: DeploymentPlan) -> str:
    count = plan.reconciliation_jobs
    return "one job" if count == 1 else f"{count} jobs to compare, 1 to solve, {count} to relabel, 1 to finish"


def _memory(plan: DeploymentPlan, resources: Resources) -> str:
    needed = memory_of(Lattice(plan.grid).largest_read)
    has = replace(resources, jobs_per_node=plan.jobs_per_node, node_memory=plan.node_memory).process_memory
    whose = "" if plan.node_memory else " of this machine's; --node-memory says another's"
    return f"{needed / 2**30:.1f} GiB needed, {has / 2**30:.1f} GiB there{whose}"


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _aligned(rows: list[Row]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
