"""Masking: its training is one job; to mask a volume is one job that makes the mask volume, then one for every few
sections.  Sections that the alignment's gate holds are left out, until they are accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.core.parameters import json_hash
from apps.core.volumes import open_volume
from apps.masking.stage import MaskingParameters
from ensemble.pipeline.definition import Step
from ensemble.pipeline.fingerprints import fingerprint
from ensemble.pipeline.planners.contract import (
    Outlook,
    Progress,
    SectionStatus,
    StepContext,
    StepPlan,
    by_sections,
    in_parts,
    section_range,
)
from ensemble.pipeline.planners.single import SinglePlanner
from ensemble.pipeline.references import step_named_by


class MaskingPlanner:
    """By the action: `train` is a single job, anything else masks the whole volume."""

    streams: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._single = SinglePlanner()

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        if context.parameters.get("action") == "train":
            return self._single.plan(context, progress)
        parameters = MaskingParameters.from_json(
            {**context.parameters, "action": "segment"}, where=f"step {context.name}"
        )
        planes = _planes(context, parameters)
        sections = {
            number: SectionStatus("waiting") if identity is not None else _absent(context, number)
            for number, identity in planes.items()
        }
        first = min(planes)
        model = [fingerprint(parameters.model), _identity_of(context, "model")]
        own = {name: value for name, value in context.parameters.items() if name not in ("sections", "action")}
        volume = open_volume(parameters.image)
        prepare = context.task(
            "prepare",
            {**context.parameters, "action": "prepare", "first_section": first, "sections": None},
            [volume.shape, first, own],
            after=context.parents(),
            outputs=(str(context.output / "masks.zarr"),),
        )
        values = self.values(context.output)
        outcome = progress.outcome(prepare)
        if outcome is None or outcome.record is None:
            return StepPlan((prepare,), open_ended=True, values=values, sections=sections)
        tasks, done = [prepare], dict[int, str]()
        for part in in_parts([n for n, identity in planes.items() if identity is not None], context.step.grain):
            task = context.task(
                section_range(part),
                {**context.parameters, "action": "segment", "first_section": first, "sections": part},
                [own, model, first, [[number, planes[number]] for number in part]],
                after=(prepare.key, *context.parents()),
                outputs=tuple(str(context.output / "sections" / f"{number:05d}.json") for number in part),
                claims=tuple(f"{number:05d}" for number in part),
                tags={"sections": section_range(part)},
            )
            tasks.append(task)
            outcome = progress.outcome(task)
            if outcome is None:
                continue
            if outcome.record is None:
                sections |= dict.fromkeys(part, SectionStatus("failed", task.key, reasons=(outcome.message,)))
            else:
                done |= dict.fromkeys(part, task.key)
        sections |= progress.judged(context.name, context.output, done)
        return StepPlan(
            tuple(tasks),
            settled=all(status.state not in ("waiting", "failed") for status in sections.values()),
            values=values,
            sections=sections,
            identity=json_hash([[number, status.key, status.state] for number, status in sections.items()]),
        )

    def decides(self, step: Step) -> frozenset[str]:
        if step.parameters.get("action") == "train":
            return frozenset()
        own_volume = step_named_by(step.parameters, "image") is None
        return frozenset({"action", "sections"} if own_volume else {"action", "sections", "first_section"})

    def gives(self, step: Step) -> frozenset[str]:
        if step.parameters.get("action") == "train":
            return self._single.gives(step)
        return frozenset(self.values(Path()))

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        if step.parameters.get("action") == "train":
            return self._single.outlook(step, plan)
        waiting = [number for number, status in plan.sections.items() if status.state == "waiting"]
        jobs = len(in_parts(waiting, step.grain)) + 1 if plan.tasks else None
        return Outlook(jobs, f"prepare, {by_sections(step.grain)}")

    def values(self, output: Path) -> dict[str, Any]:
        return {"output": str(output), "masks": str(output / "masks.zarr")}


def _planes(context: StepContext, parameters: MaskingParameters) -> Mapping[int, str | None]:
    """Section -> what its plane's pixels depend on; None for a section that is not to be masked."""
    aligned = context.named.get("image")
    if aligned is None or not context.before[aligned].content:
        volume = open_volume(parameters.image)
        mark = json_hash([fingerprint(parameters.image), context.upstream])
        wanted = range(parameters.first_section, parameters.first_section + volume.shape[0])
        return dict.fromkeys(wanted, mark)
    before = context.before[aligned]
    none = SectionStatus("absent")
    return {
        section: content if before.sections.get(section, none).goes_on else None
        for section, content in before.content.items()
    }


def _absent(context: StepContext, section: int) -> SectionStatus:
    """A section that the step before does not pass on, and why."""
    name = context.named["image"]
    before = context.before[name].sections.get(section, SectionStatus("absent"))
    return SectionStatus("absent", reasons=(f"{before.state} at step {name}",))


def _identity_of(context: StepContext, parameter: str) -> str | None:
    step = context.named.get(parameter)
    return None if step is None else context.before[step].identity
