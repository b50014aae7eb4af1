"""The tasks of a deployment, made when they are wanted: a million subvolumes need no list of their tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from apps.core.parameters import json_hash
from ensemble.deployment.coverage import numbers_in
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.plan import DeploymentPlan
from ensemble.deployment.request import Deployment
from ensemble.deployment.sizes import plan_masked_per_job
from ensemble.jobs import Task

Action = Literal["compare", "solve", "relabel", "finish", "all"]
# What depends on the rules for links.
AFTER_COMPARING: tuple[Action, ...] = ("all", "solve", "relabel", "finish")
ALL_ACTIONS: tuple[Action, ...] = ("compare", *AFTER_COMPARING)


@dataclass(frozen=True)
class Segmenting:
    """An inference job: the task, and the numbers of its subvolumes."""

    task: Task
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class DeploymentTasks:
    """Makes the tasks of a plan.  The same plan gives the same keys, so that an earlier run's jobs are found again."""

    plan: DeploymentPlan
    deployment: Deployment

    def segmenting(self) -> Iterator[Segmenting]:
        """One job after the other, in the order of the subvolumes; the wholly masked ones last."""
        numbers, size = self.plan.to_segment(), self.plan.subvolumes_per_job
        for first in range(0, len(numbers), size):
            yield self.segment(numbers[first : first + size].tolist(), f"inference-{size}", first // size)
        numbers, size = numbers_in(self.plan.masked), plan_masked_per_job(Lattice(self.plan.grid).largest_read)
        for first in range(0, len(numbers), size):
            yield self.segment(numbers[first : first + size].tolist(), f"masked-{size}", first // size)

    def segment_alone(self, number: int) -> Segmenting:
        """A job for one subvolume, which failed in a job with others."""
        return self.segment([number], "alone", number)

    def segment(self, numbers: Sequence[int], kind: str, index: int) -> Segmenting:
        parameters = {**self._inference, "numbers": list(numbers)}
        return Segmenting(self._task("inference", parameters, kind, index), tuple(numbers))

    def reconcile(self, action: Action, index: int | None = None) -> Task:
        """One phase of reconciliation; `index`: which of its shares.

        All but the comparisons are other tasks where the links have other rules.
        """
        part = None if index is None else {"index": index, "of": self.plan.reconciliation_jobs}
        kind = action if index is None else f"{action}-{self.plan.reconciliation_jobs}"
        if action in AFTER_COMPARING:
            kind = f"{kind}-{self.plan.links.identity}"
        return self._task("reconciliation", reconciliation_parameters(self.plan, action) | {"part": part}, kind, index)

    def is_of_other_rules(self, key: str) -> bool:
        """Whether a key is of a job of this deployment that solves, relabels or finishes by other rules for links."""
        prefix = f"deploy/{self.plan.identity}/"
        action, _, rest = key.removeprefix(prefix).partition("/")[0].partition("-")
        return key.startswith(prefix) and action in AFTER_COMPARING and self.plan.links.identity not in rest

    def evaluate(self) -> Task:
        """Score the result against the truth."""
        deployment, box = self.deployment, self.plan.grid.box
        threshold = deployment.threshold_box
        parameters = {
            "segmentation": self.plan.output,
            "segmentation_offset": list(box.offset),
            "labels": deployment.labels,
            "image": deployment.image,
            "box": box.to_dict(),
            "baselines": True,
            "threshold_box": threshold.to_dict() if threshold else None,
        }
        task = self._task("evaluation", parameters, "evaluation")
        # Other labels are another evaluation of the same segmentation.
        return replace(task, key=f"{task.key}-{json_hash(parameters)[:8]}", workdir=task.key)

    def _task(self, stage: str, parameters: dict[str, Any], kind: str, index: int | None = None) -> Task:
        place = kind if index is None else f"{kind}/{index // 1000:03d}/{index:06d}"
        return Task(
            key=f"deploy/{self.plan.identity}/{place}",
            stage=stage,
            parameters=parameters,
            tags={"model": self.deployment.model},
            jobs_per_node=self.plan.jobs_per_node,
        )

    @cached_property
    def _inference(self) -> dict[str, Any]:
        return {
            "image": self.deployment.image,
            "model": str(self.deployment.checkpoint),
            "grid": self.plan.grid.to_dict(),
            "output": str(self.plan.pieces),
            "settings": self.deployment.inference,
            "masks": [mask.to_dict() for mask in self.deployment.masks],
            "threads": self.deployment.threads,
            "any_voxel_size": self.deployment.any_voxel_size,
        }


def reconciliation_parameters(plan: DeploymentPlan, action: str) -> dict[str, Any]:
    """Parameters of the stage `reconciliation` for a deployment."""
    rules = plan.links.parameters() if action in AFTER_COMPARING else {}
    return {
        **rules,
        "grid": plan.grid.to_dict(),
        "pieces": str(plan.pieces),
        "output": plan.output,
        "work": str(plan.work),
        "voxel_size_nm": list(plan.voxel_size_nm),
        "action": action,
    }
