"""A step that is one job: every stage that has no planner of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.core.stage import load_stage
from ensemble.pipeline.definition import Step
from ensemble.pipeline.fingerprints import fingerprint
from ensemble.pipeline.planners.contract import Outlook, Progress, StepContext, StepPlan

OUTPUT = "output"


class SinglePlanner:
    """One task, once the steps before are settled; it gives the fields of its result.

    The user's files that its parameters name are looked at once: whatever changes them later, the task itself perhaps,
    is for the next run.
    """

    streams: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._read: list[Any] | None = None

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        return self.look(context, progress)[0]

    def look(self, context: StepContext, progress: Progress) -> tuple[StepPlan, bool]:
        """The plan, and whether this look came upon a result that stands no more; its task is spoilt then."""
        stage = load_stage(context.step.stage)
        stage.parameters.from_json(context.parameters, where=f"step {context.name}")
        if self._read is None:
            self._read = fingerprint(_without_outputs(context.step.parameters))
        depends = [context.step.stage, context.parameters, context.upstream, self._read]
        task = context.task("run", context.parameters, depends, after=context.parents(), outputs=_outputs(context))
        outcome = progress.outcome(task)
        fallen = outcome is not None and outcome.record is not None and not stage.stands(outcome.record["result"])
        if fallen:
            progress.spoil(task.key)
            outcome = progress.outcome(task)
        if outcome is None or outcome.record is None:
            return StepPlan((task,), values=self.values(context.output)), fallen
        values = {**self.values(context.output), **outcome.record["result"]}
        return StepPlan((task,), settled=True, values=values, identity=task.key), fallen

    def decides(self, step: Step) -> frozenset[str]:
        return frozenset()

    def gives(self, step: Step) -> frozenset[str]:
        return frozenset({OUTPUT, *load_stage(step.stage).result.__struct_fields__})

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        return Outlook(1)

    def values(self, output: Path) -> dict[str, Any]:
        return {OUTPUT: str(output)}


def _outputs(context: StepContext) -> tuple[str, ...]:
    output = context.parameters.get(OUTPUT)
    return (str(output),) if isinstance(output, str) else ()


def _without_outputs(value: Any) -> Any:
    """`value` (plain JSON) without what is written: parameters named `output`, at whatever depth."""
    if isinstance(value, dict):
        return {name: _without_outputs(item) for name, item in value.items() if name != OUTPUT}
    return [_without_outputs(item) for item in value] if isinstance(value, list | tuple) else value
