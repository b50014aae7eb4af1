"""A stage that several jobs can share (apps/core/parts.py): `parts` jobs for each of its shared phases, one for every
other, each phase after the one before.

The last job is given the whole of the stage to do: it finds the units that are done, completes them, and does what is
missing, where someone has deleted results of an earlier run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.core.parts import Phase
from apps.core.stage import load_stage
from ensemble.jobs import Task
from ensemble.pipeline.definition import Step
from ensemble.pipeline.planners.contract import Outlook, Progress, StepContext, StepPlan
from ensemble.pipeline.planners.single import SinglePlanner

ACTION, PART, ALL = "action", "part", "all"


class PhasedPlanner:
    """With one part, or an action that the step chooses itself, it is a single job."""

    streams: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._single = SinglePlanner()

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        plan, fallen = self._single.look(context, progress)
        if not _shared(context.step):
            return plan
        (whole,) = plan.tasks
        phases = _earlier(context, whole)
        shares = [task for tasks in phases for task in tasks]
        if fallen:  # it is all to be made again, and not by the last job alone
            for task in shares:
                progress.spoil(task.key)
        if plan.settled:  # by however many parts: what this many did of it is named, and nothing is done for show
            return replace(plan, tasks=(*(task for task in shares if progress.outcome(task) is not None), whole))
        return replace(plan, tasks=(*shares, replace(whole, after=_after(context, phases))))

    def decides(self, step: Step) -> frozenset[str]:
        return frozenset({PART}) if _shared(step) else frozenset()

    def gives(self, step: Step) -> frozenset[str]:
        return self._single.gives(step)

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        if not _shared(step):
            return Outlook(1)
        phases = [(phase, step.parts if phase.shared else 1) for phase in _before_last(step)]
        words = [f"{jobs} x {phase.action or 'part'}" if phase.shared else phase.action for phase, jobs in phases]
        return Outlook(sum(jobs for _, jobs in phases) + 1, ", ".join([*words, "run"]))

    def values(self, output: Path) -> dict[str, Any]:
        return self._single.values(output)


def _shared(step: Step) -> bool:
    return step.parts > 1 and step.parameters.get(ACTION, ALL) == ALL


def _earlier(context: StepContext, whole: Task) -> list[list[Task]]:
    """The jobs of all phases but the last; `whole`, the stage as one job, tells what their results depend on."""
    phases: list[list[Task]] = []
    for number, phase in enumerate(_before_last(context.step)):
        after = _after(context, phases)
        jobs = _jobs(phase, number, context.step.parts)
        phases.append(
            [context.task(name, {**context.parameters, **own}, [whole.key, own], after=after) for name, own in jobs]
        )
    return phases


def _before_last(step: Step) -> tuple[Phase, ...]:
    return load_stage(step.stage).phases[:-1]


def _after(context: StepContext, phases: list[list[Task]]) -> tuple[str, ...]:
    """What a job waits for that comes after these phases."""
    return (*context.parents(), *(task.key for task in (phases[-1] if phases else ())))


def _jobs(phase: Phase, number: int, parts: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what it is told besides the step's parameters) of each job of a phase."""
    action = {ACTION: phase.action} if phase.action else {}
    name = phase.action or f"phase-{number}"
    if not phase.shared:
        yield name, action
        return
    for index in range(parts):
        yield f"{name}-{index:04d}", {**action, PART: {"index": index, "of": parts}}
