"""A step that is one job: every stage that has no planner of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.core.stage import load_stage
from ensemble.pipeline.fingerprints import fingerprint
from ensemble.pipeline.planners.contract import Progress, StepContext, StepPlan


class SinglePlanner:
    """One task, once the steps before are settled; it gives the fields of its result."""

    streams: frozenset[str] = frozenset()

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        load_stage(context.step.stage).parameters.from_json(context.parameters, where=f"step {context.name}")
        read = {name: value for name, value in context.step.parameters.items() if name != "output"}
        depends = [context.step.stage, context.parameters, context.upstream, fingerprint(read)]
        task = context.task("run", context.parameters, depends, after=context.parents(), outputs=_outputs(context))
        outcome = progress.outcome(task)
        if outcome is None or outcome.record is None:
            return StepPlan((task,), values=self.values(context.output))
        values = {**self.values(context.output), **outcome.record["result"]}
        return StepPlan((task,), settled=True, values=values, identity=task.key)

    def values(self, output: Path) -> dict[str, Any]:
        return {"output": str(output)}


def _outputs(context: StepContext) -> tuple[str, ...]:
    output = context.parameters.get("output")
    return (str(output),) if isinstance(output, str) else ()
