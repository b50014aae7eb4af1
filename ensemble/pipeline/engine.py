"""Do a pipeline: ask the planners, submit what is new, wait for something to end, ask again.

All that is kept between runs is in Balsam's jobs, in the stages' outputs, and in the campaign's `latest.json` and
`gates.json`: a driver that was killed is started again with the same command, and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from apps.core.errors import EnsembleError
from apps.core.quality import MODULES, SectionQuality, load_quality
from apps.core.stage import load_stage
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.definition import Pipeline, Step
from ensemble.pipeline.fingerprints import file_state
from ensemble.pipeline.gates import ACCEPTANCES_FILE, judge, load_acceptances, misses
from ensemble.pipeline.ledger import Ledger
from ensemble.pipeline.planners import planner_for
from ensemble.pipeline.planners.contract import SectionStatus, StepContext, StepPlan
from ensemble.pipeline.references import resolve, step_named_by
from ensemble.workflow import Jobs

WAIT_S = 0.5
# Of the driver's time, as much may go into looking.
SHARE = 0.25

Plans = dict[str, StepPlan]


class PipelineJobs(Jobs, Protocol):
    """Who does a pipeline's tasks."""

    def unfinished(self) -> set[str]:
        """Keys of tasks of the campaign that were submitted, by whomever, and have not ended."""


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
        self._pipeline, self._folder, self._jobs = pipeline, folder, jobs
        self._planners = {name: planner_for(step.stage, follow) for name, step in pipeline.steps.items()}
        self._ledger = Ledger(folder)
        self._futures: dict[str, Future[Outcome]] = {}
        self._tried: set[str] = set()  # tasks that this run has submitted: one that fails is not tried a second time
        self._qualities: dict[tuple[str, int], tuple[str, SectionQuality]] = {}
        self._acceptances = load_acceptances(folder)
        self._acceptances_state = self._state_of_acceptances()

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
        begin = time.monotonic()
        look = self._submit_new(self.look())
        on_look(look)
        looked = time.monotonic()
        while (look.running or next_look_s is not None) and not stop():
            ended, _ = wait([self._futures[key] for key in look.running], timeout=WAIT_S, return_when=FIRST_COMPLETED)
            if not look.running:
                time.sleep(WAIT_S)
            for future in ended:
                future.result()  # raises where the service is lost
            # A look at ten thousand sections takes seconds: it may have its share of the time, and no more.
            if ended:
                time.sleep(max(0.0, looked + (looked - begin) * (1 / SHARE - 1) - time.monotonic()))
            due = next_look_s is not None and time.monotonic() - looked >= next_look_s
            if ended or due or self._gates_changed():
                begin = time.monotonic()
                look = self._submit_new(self.look())
                on_look(look)
                looked = time.monotonic()
        return look

    def look(self) -> Look:
        """Plan every step, and submit nothing."""
        plans: Plans = {}
        broken: dict[str, str] = {}
        for name, step in self._pipeline.steps.items():
            try:
                plans[name] = self._plan(name, step, plans)
            except EnsembleError as error:
                broken[name] = str(error)
                plans[name] = StepPlan(waiting=str(error))
        tasks = [task for plan in plans.values() for task in plan.tasks]
        outcomes = {task.key: outcome for task in tasks if (outcome := self.outcome(task)) is not None}
        return Look(plans, outcomes, frozenset(self._running()), broken)

    def _plan(self, name: str, step: Step, plans: Plans) -> StepPlan:
        planner = self._planners[name]
        output = Path(step.parameters.get("output") or self._folder / name)
        named = {
            parameter: other for parameter in step.parameters if (other := step_named_by(step.parameters, parameter))
        }
        before = {other: self._seen_from_later(other, plans[other]) for other in self._pipeline.needs(name)}
        by_sections = {other for parameter, other in named.items() if parameter in planner.streams}
        whole = {other for parameter, other in named.items() if parameter not in planner.streams} | set(step.after)
        streamed = by_sections - whole
        waits = [other for other, plan in before.items() if not plan.settled and other not in streamed]
        if waits:
            return StepPlan(values=planner.values(output), open_ended=True, waiting=f"waits for {', '.join(waits)}")
        parameters = resolve(step.parameters, {other: plan.values for other, plan in before.items()})
        if "output" in load_stage(step.stage).parameters.__struct_fields__:
            parameters = {**parameters, "output": str(output)}
        return planner.plan(StepContext(name, step, parameters, output, before, named), self)

    def _seen_from_later(self, name: str, plan: StepPlan) -> StepPlan:
        """A step whose held sections are to be waited for is not settled, and they are not there yet."""
        if self._pipeline.steps[name].on_held == "continue" or not plan.held:
            return plan
        waiting = {number: replace(plan.sections[number], state="waiting") for number in plan.held}
        return replace(plan, settled=False, sections={**plan.sections, **waiting})

    # What planners ask (planners.contract.Progress).

    def outcome(self, task: Task) -> Outcome | None:
        """How this very task ended; None where it has not, where a failure is to be tried again, or where what it made
        is not there any more."""
        outcome = self._jobs.outcome(task.key)
        if outcome is None:
            return None
        if outcome.failure is not None:
            return outcome if task.key in self._tried else None
        there = all(Path(output).exists() for output in task.outputs)
        return outcome if there and self._ledger.is_latest(task.key) else None

    def unfinished(self, step: str) -> set[str]:
        return {key for key in self._running() if key.startswith(f"{step}/")}

    def judged(self, step: str, output: Path, done: Mapping[int, str]) -> Mapping[int, SectionStatus]:
        definition = self._pipeline.steps[step]
        if definition.stage not in MODULES or not done:
            return {number: SectionStatus("passed", key) for number, key in done.items()}
        quality, thresholds = load_quality(definition.stage), definition.thresholds()
        new = tuple(n for n, key in done.items() if self._qualities.get((step, n), ("", None))[0] != key)
        for found in quality.read(output, new) if new else ():
            self._qualities[step, found.section] = done[found.section], found
        judged: dict[int, SectionStatus] = {}
        for number, key in done.items():
            known = self._qualities.get((step, number))
            if known is None or known[0] != key:
                judged[number] = SectionStatus("absent", key, reasons=("the stage says nothing of it",))
                continue
            found = known[1]
            missed = tuple(misses(found, thresholds, quality))
            verdict = judge(missed, self._acceptances.of(step, number))
            judged[number] = SectionStatus(verdict, key, "", found.values, missed, found.faults)
        return judged

    # Submission.

    def _submit_new(self, look: Look) -> Look:
        new = [
            task
            for plan in look.plans.values()
            for task in plan.tasks
            if task.key not in look.outcomes and task.key not in self._tried
        ]
        if not new:
            return look
        running = look.running
        # Whatever ended before, badly or with a result that has gone, is done anew; what runs is waited for.
        self._jobs.forget([task.key for task in new if self._jobs.outcome(task.key) is not None])
        self._ledger.begin(task.key for task in new)
        for task in new:
            self._tried.add(task.key)
            self._futures[task.key] = self._jobs.submit(task)
        return replace(look, running=running | {task.key for task in new})

    def _running(self) -> set[str]:
        unknown = self._jobs.unfinished() - self._futures.keys()
        for key in unknown:
            if key.partition("/")[0] not in self._pipeline.steps:
                continue  # a search of the same campaign
            # Of an earlier driver: it is waited for, so that nothing works beside it on the same output.
            self._futures[key] = self._jobs.submit(Task(key, "", {}))
        return {key for key, future in self._futures.items() if not future.done()}

    def _gates_changed(self) -> bool:
        state = self._state_of_acceptances()
        if state == self._acceptances_state:
            return False
        self._acceptances, self._acceptances_state = load_acceptances(self._folder), state
        return True

    def _state_of_acceptances(self) -> Any:
        return file_state(self._folder / ACCEPTANCES_FILE)
