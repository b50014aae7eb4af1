"""What a planner is: it says, as often as it is asked, which tasks a step has now, from what has been done so far.

A planner is asked again whenever a task has ended, and gives all the tasks of the step each time, those that are done
too.  A task's key ends in a hash of all that its result depends on: what has not changed has the same key, and is not
done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from apps.core.parameters import json_hash
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.definition import Step
from ensemble.pipeline.gates import Miss

# waiting: not there yet; passed, accepted: good to go on with; held: by its gate; failed: its job did; absent: there is
# nothing to go on with, as the stage says.
State = Literal["waiting", "passed", "accepted", "held", "failed", "absent"]
GOES_ON: tuple[State, ...] = ("passed", "accepted")


@dataclass(frozen=True)
class SectionStatus:
    """Where a section is with a step.

    Attributes:
        state: see State.
        key: of the task whose result it is; empty where no task of ours made it.
        mark: what tells that from another, then.
        values: measure -> value, as the stage told it.
        missed: the measures that its gate holds, or held, it for.
        reasons: what is wrong with it, in words: faults that the stage named, or the message of a failed job.
    """

    state: State
    key: str = ""
    mark: str = ""
    values: Mapping[str, float | None] = field(default_factory=dict)
    missed: tuple[Miss, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def goes_on(self) -> bool:
        return self.state in GOES_ON


@dataclass(frozen=True)
class StepPlan:
    """A step as it stands.

    Attributes:
        tasks: all that are known now, what a task waits for before it.
        settled: nothing of it is to be done any more, and nothing that has to be there is missing.
        open_ended: more tasks will be known once these are done.
        values: what `${step.name}` stands for.
        sections: where each section is; empty for a step that does not work by sections.
        content: section -> what its pixels in the step's volume depend on, in the order of the planes; where steps that
            read the volume by sections can know.
        identity: of all that later steps depend on, once it is settled.
        waiting: why it can not go on, where that is not for a task of its own.
    """

    tasks: tuple[Task, ...] = ()
    settled: bool = False
    open_ended: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    sections: Mapping[int, SectionStatus] = field(default_factory=dict)
    content: Mapping[int, str] = field(default_factory=dict)
    identity: str = ""
    waiting: str = ""

    @property
    def held(self) -> list[int]:
        """Sections that the gate holds."""
        return [number for number, status in self.sections.items() if status.state == "held"]


@dataclass(frozen=True)
class Outlook:
    """What is known of a step's jobs before anything is done.

    Attributes:
        jobs: how many a run from nothing has; None where results of earlier steps tell.
        words: what they are, where there may be several.
    """

    jobs: int | None
    words: str = ""


class Progress(Protocol):
    """What has been done so far, as planners see it."""

    def outcome(self, task: Task) -> Outcome | None:
        """How this very task ended; None where it has not, or where its result is not there any more."""

    def spoil(self, key: str) -> None:
        """Say that what this task made is damaged: it has to be done again."""

    def judged(self, step: str, output: Path, done: Mapping[int, str]) -> Mapping[int, SectionStatus]:
        """Where the sections are that are done (number -> key of the task): what the stage measured, and the gate."""


@dataclass(frozen=True)
class StepContext:
    """What a planner is given of its step and of the steps before it.

    Attributes:
        name, step: the step, as the user wrote it.
        parameters: its parameters with all references resolved, and `output`.
        output: folder of the step's own.
        before: plans of the steps that it names or waits for.
        named: parameter -> the step that it names.
    """

    name: str
    step: Step
    parameters: dict[str, Any]
    output: Path
    before: Mapping[str, StepPlan]
    named: Mapping[str, str]

    @property
    def upstream(self) -> str:
        """Hash of everything before the step that its results depend on."""
        return json_hash([[name, plan.identity] for name, plan in self.before.items()])

    def parents(self) -> tuple[str, ...]:
        """Keys of the tasks that come last in the steps before."""
        return tuple(plan.tasks[-1].key for plan in self.before.values() if plan.tasks)

    def task(
        self,
        unit: str,
        parameters: dict[str, Any],
        depends: Any,
        after: tuple[str, ...] = (),
        outputs: tuple[str, ...] = (),
        claims: tuple[str, ...] = (),
        tags: Mapping[str, str] | None = None,
    ) -> Task:
        """The task that does one unit of the step; `depends` is, as plain JSON, all that its result depends on.

        `claims`: the parts of the step's output that it writes, where these may be divided in another way; else `unit`.
        """
        step = self.step
        key = f"{self.name}/{unit}-{json_hash(depends)[:12]}"
        return Task(
            key,
            step.stage,
            parameters,
            {"step": self.name, **(tags or {})},
            after=after,
            outputs=outputs,
            claims=tuple(f"{self.name}/{claim}" for claim in claims),
            num_nodes=step.num_nodes,
            ranks_per_node=step.ranks_per_node,
            wall_time_min=step.wall_time_min,
            time_limit_s=step.time_limit_s,
        )


class Planner(Protocol):
    """Plans the steps of one stage.

    Attributes:
        streams: parameters whose step, where it is of the stage given, need not be settled: the planner looks at its
            sections one by one.
    """

    streams: Mapping[str, str]

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        """The step as it stands.

        Raises ParameterError or DataError where the step's parameters or what they name cannot work.
        """

    def decides(self, step: Step) -> frozenset[str]:
        """Parameters of the stage that the planner sets; a step does not give them."""

    def gives(self, step: Step) -> frozenset[str]:
        """Names that `${step.name}` may have."""

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        """The jobs to be expected; `plan`: the step's, with nothing done."""

    def values(self, output: Path) -> dict[str, Any]:
        """What `${step.name}` stands for before anything is done: the places that the stage writes."""


def by_sections(grain: int) -> str:
    """How jobs are called that do `grain` sections each."""
    return "one for every section" if grain == 1 else f"one for every {grain} sections"


def in_parts(numbers: list[int], grain: int) -> list[list[int]]:
    """Section numbers in parts of `grain` by number (0-3, 4-7 for 4): a new section changes the last part only."""
    parts: dict[int, list[int]] = {}
    for number in numbers:
        parts.setdefault(number // grain, []).append(number)
    return list(parts.values())


def section_range(part: list[int]) -> str:
    """`00004` or `00004-00007`."""
    return f"{part[0]:05d}" if len(part) == 1 else f"{part[0]:05d}-{part[-1]:05d}"
