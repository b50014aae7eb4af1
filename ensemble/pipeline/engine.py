"""Do a pipeline: ask the planners, submit what is new, wait for something to end, ask again.

All that is kept between runs is in Balsam's jobs, in the stages' outputs, and in the campaign's `latest.json` and
`gates.json`: a driver that was killed is started again with the same command, and goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, EnsembleError, ParameterError
from apps.core.quality import MODULES, SectionQuality, StageQuality, load_quality
from apps.core.stage import load_stage
from apps.core.suggestions import did_you_mean
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.book import PipelineJobs, TaskBook, step_of
from ensemble.pipeline.definition import Pipeline, Step
from ensemble.pipeline.fingerprints import file_state
from ensemble.pipeline.gates import ACCEPTANCES_FILE, judge, load_acceptances, misses
from ensemble.pipeline.planners import planner_for
from ensemble.pipeline.planners.contract import Outlook, SectionStatus, StepContext, StepPlan
from ensemble.pipeline.references import references, resolve, step_named_by

WAIT_S = 0.5
# Of the driver's time, as much may go into looking.
SHARE = 0.25

Plans = dict[str, StepPlan]


@dataclass(frozen=True)
class Look:
    """A pipeline as it stands.

    Attributes:
        plans: step -> its plan; a step that cannot be planned yet has one without tasks, which says what it waits for.
        outcomes: key -> how the task ended, of all tasks of the plans that have.
        running: keys of the tasks that are submitted and have not ended.
        broken: step -> why it cannot be planned at all.
    """

    plans: Plans
    outcomes: Mapping[str, Outcome]
    running: frozenset[str]
    broken: Mapping[str, str] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return all(plan.settled for plan in self.plans.values())

    def failed(self, step: str) -> list[Outcome]:
        """Tasks of the step that ended without a result."""
        ended = (self.outcomes.get(task.key) for task in self.plans[step].tasks)
        return [outcome for outcome in ended if outcome is not None and outcome.failure is not None]

    def done(self, step: str) -> int:
        """How many of its tasks have a result."""
        ended = (self.outcomes.get(task.key) for task in self.plans[step].tasks)
        return sum(outcome is not None and outcome.failure is None for outcome in ended)


class Engine:
    """One run of a pipeline.

    `folder`: of the campaign, which gets a folder for every step.  `follow`: sections whose tiles are not all there yet
    are being acquired, and are looked for again and again.
    """

    def __init__(self, pipeline: Pipeline, folder: Path, jobs: PipelineJobs, follow: bool = False) -> None:
        self._pipeline, self._folder = pipeline, folder
        self._planners = {name: planner_for(step.stage, follow) for name, step in pipeline.steps.items()}
        for name, step in pipeline.steps.items():
            self._check_step(name, step)
        self._check_outputs()
        self._book = TaskBook(jobs, folder, pipeline.steps, retry=follow)
        self._qualities: dict[tuple[str, int], tuple[str, SectionQuality]] = {}
        self._looked = self._look_took_s = 0.0
        self._acceptances_state = self._state_of_acceptances()  # before they are read: a change between is seen later
        self._acceptances = load_acceptances(folder).by_section()

    def _check_step(self, name: str, step: Step) -> None:
        """Raise ParameterError where a step gives what its planner decides, or names what another step never gives."""
        decided = sorted(self._planners[name].decides(step) & step.parameters.keys())
        if decided:
            raise ParameterError(f"step {name}: the pipeline decides about {', '.join(decided)}; leave it out")
        for other, value in references(step.parameters):
            gives = self._planners[other].gives(self._pipeline.steps[other])
            if value not in gives:
                known = f"{did_you_mean(value, gives)}: step {other} gives {', '.join(sorted(gives))}"
                raise ParameterError(f"step {name}: ${{{other}.{value}}}{known}")

    def _check_outputs(self) -> None:
        """Raise ParameterError where two steps would write one place, one of them by its default."""
        places: dict[str, str] = {}
        for name, step in self._pipeline.steps.items():
            place = os.path.normpath(self._output(name, step))
            if place in places:
                raise ParameterError(f"step {name}: has the output {place} of step {places[place]}; give its own")
            places[place] = name

    def _output(self, name: str, step: Step) -> Path:
        """Where a step writes."""
        suffix = load_stage(step.stage).output_suffix
        return Path(step.parameters.get("output") or self._folder / f"{name}{suffix}")

    def run(
        self,
        on_look: Callable[[Look], None] = lambda look: None,
        next_look_s: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Look:
        """Go on until nothing can be done any more; returns the pipeline as it then stands.

        `next_look_s`: then look again after so many seconds, for sections that have come and gates that were opened,
        until `stop()`; None does not.
        """
        look = self._go_on(self._timed_look())
        on_look(look)
        while (look.running or next_look_s is not None) and not stop():
            ended, _ = wait(self._book.futures(look.running), timeout=WAIT_S, return_when=FIRST_COMPLETED)
            if not look.running:
                time.sleep(min(WAIT_S, next_look_s or WAIT_S))
            for future in ended:
                future.result()  # raises where the service is lost
            if ended:
                # A look at ten thousand sections takes seconds: it may have its share of the time, and no more.
                time.sleep(max(0.0, self._looked + self._look_took_s * (1 / SHARE - 1) - time.monotonic()))
            due = next_look_s is not None and time.monotonic() - self._looked >= next_look_s
            opened = self._gates_changed()  # asked each time, so that a look for another reason sees it too
            if ended or due or opened:
                look = self._go_on(self._timed_look())
                on_look(look)
        return look

    def _timed_look(self) -> Look:
        begin = time.monotonic()
        look = self.look()
        self._looked = time.monotonic()
        self._look_took_s = self._looked - begin
        return look

    def _go_on(self, look: Look) -> Look:
        """Submit what is new; take back what is not wanted any more.

        A step whose outdated tasks run waits for them: two would write the same output.  Where a step cannot be planned
        just now (a table that is being written, say), nothing is taken back.
        """
        planned = {task.key: task for plan in look.plans.values() for task in plan.tasks}
        outdated = set() if look.broken else look.running - planned.keys()
        busy = {step_of(key) for key in (self._book.take_back(outdated) if outdated else ())}
        new = [
            task
            for task in planned.values()
            if task.key not in look.outcomes and task.key not in look.running and step_of(task.key) not in busy
        ]
        self._book.submit(new)
        return replace(look, running=frozenset(self._book.running() | {task.key for task in new}))

    def look(self) -> Look:
        """Plan every step, and submit nothing."""
        running, spoilt = frozenset(self._book.running()), self._book.spoilt
        plans, broken = self._plan_all()
        if self._book.spoilt != spoilt:  # planning came upon damaged results: their tasks are not done
            plans, broken = self._plan_all()
        tasks = [task for plan in plans.values() for task in plan.tasks]
        outcomes = {task.key: outcome for task in tasks if (outcome := self.outcome(task)) is not None}
        return Look(plans, outcomes, running, broken)

    def outlooks(self, look: Look) -> dict[str, Outlook]:
        """Step -> the jobs of a run from nothing, as far as they are known; `look`: with nothing done."""
        steps = self._pipeline.steps
        return {name: self._planners[name].outlook(steps[name], plan) for name, plan in look.plans.items()}

    def _plan_all(self) -> tuple[Plans, dict[str, str]]:
        plans: Plans = {}
        broken: dict[str, str] = {}
        for name, step in self._pipeline.steps.items():
            try:
                plans[name] = self._plan(name, step, plans)
            except EnsembleError as error:
                broken[name] = str(error)
                plans[name] = StepPlan(values=self._planners[name].values(self._folder / name), waiting=str(error))
        return plans, broken

    def _plan(self, name: str, step: Step, plans: Plans) -> StepPlan:
        planner = self._planners[name]
        stage = load_stage(step.stage)
        output = self._output(name, step)
        named = {
            parameter: other for parameter in step.parameters if (other := step_named_by(step.parameters, parameter))
        }
        before = {other: self._seen_from_later(other, plans[other]) for other in self._pipeline.needs(name)}
        by_sections = {
            other
            for parameter, other in named.items()
            if parameter in planner.streams and self._pipeline.steps[other].stage == planner.streams[parameter]
        }
        whole = {other for parameter, other in named.items() if parameter not in planner.streams} | set(step.after)
        streamed = by_sections - whole
        waits = [other for other, plan in before.items() if not plan.settled and other not in streamed]
        if waits:
            return StepPlan(values=planner.values(output), open_ended=True, waiting=f"waits for {', '.join(waits)}")
        parameters = resolve(step.parameters, {other: plan.values for other, plan in before.items()})
        if "output" in stage.parameters.__struct_fields__:
            parameters = {**parameters, "output": str(output)}
        plan = planner.plan(StepContext(name, step, parameters, output, before, named), self)
        gates = [other for other in before if self._waits_for_gate(other, plans)]
        held = [f"{len(plans[other].held)} held at step {other}" for other in gates]
        return replace(plan, waiting=f"waits for a gate: {', '.join(held)}") if held and not plan.settled else plan

    def _waits_for_gate(self, step: str, plans: Plans) -> bool:
        return self._pipeline.steps[step].on_held == "wait" and bool(plans[step].held)

    def _seen_from_later(self, name: str, plan: StepPlan) -> StepPlan:
        """A step whose held sections are to be waited for is not settled, and they are not there yet."""
        if self._pipeline.steps[name].on_held == "continue" or not plan.held:
            return plan
        waiting = {number: replace(plan.sections[number], state="waiting") for number in plan.held}
        return replace(plan, settled=False, sections={**plan.sections, **waiting})

    # What planners ask (planners.contract.Progress).

    def outcome(self, task: Task) -> Outcome | None:
        return self._book.outcome(task)

    def spoil(self, key: str) -> None:
        self._book.spoil(key)

    def judged(self, step: str, output: Path, done: Mapping[int, str]) -> Mapping[int, SectionStatus]:
        definition = self._pipeline.steps[step]
        if definition.stage not in MODULES or not done:
            return {number: SectionStatus("passed", key) for number, key in done.items()}
        quality, thresholds = load_quality(definition.stage), definition.thresholds()
        self._read_quality(quality, step, output, done)
        judged: dict[int, SectionStatus] = {}
        for number, key in done.items():
            known = self._qualities.get((step, number))
            if known is None or known[0] != key:
                judged[number] = SectionStatus("absent", key, reasons=("the stage says nothing of it",))
                continue
            found = known[1]
            missed = tuple(misses(found, thresholds, quality))
            verdict = judge(missed, self._acceptances.get((step, number)))
            judged[number] = SectionStatus(verdict, key, "", found.values, missed, found.faults)
        return judged

    def _read_quality(self, quality: StageQuality, step: str, output: Path, done: Mapping[int, str]) -> None:
        """Read what is not known yet.  Where a record is damaged, the task that made it has to be done again."""
        new = [n for n, key in done.items() if self._qualities.get((step, n), ("", None))[0] != key]
        if not new:
            return
        try:
            read = quality.read(output, tuple(new))
        except DataError:
            read = []
            for number in new:
                try:
                    read += quality.read(output, (number,)) if done[number] not in self._book.spoilt else []
                except DataError:
                    self._book.spoil(done[number])
        for found in read:
            self._qualities[step, found.section] = done[found.section], found

    def _gates_changed(self) -> bool:
        state = self._state_of_acceptances()
        if state == self._acceptances_state:
            return False
        self._acceptances, self._acceptances_state = load_acceptances(self._folder).by_section(), state
        return True

    def _state_of_acceptances(self) -> Any:
        return file_state(self._folder / ACCEPTANCES_FILE)
