"""Alignment: match a few sections a job as soon as those before them are there, then solve, render, and score.

Sections that a gate of the montage holds, or whose job failed, are passed on as `held`: the others are aligned without
them, and with them once they are accepted.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.alignment.stage import AlignmentParameters
from apps.alignment.volume import Layout, Paths, group_identities, plane_identities
from apps.core.errors import DataError
from apps.core.parameters import json_hash
from ensemble.jobs import Task
from ensemble.pipeline.definition import Step
from ensemble.pipeline.fingerprints import file_state
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

# Parents that a job has at most: with thousands Balsam's answers would be mostly these.  All have ended before.
MOST_PARENTS = 64


class AlignmentPlanner:
    """Sees the sections of a montage step one by one; those of a folder of the user's own are all there.

    `follow`: sections are being acquired.  The stack is solved up to the first one that is not done yet, and again when
    that has been drawn and scored.
    """

    streams: Mapping[str, str] = {"montage": "montage"}

    def __init__(self, follow: bool = False) -> None:
        self._follow = follow
        self._last: int | None = None

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        values = self.values(context.output)
        parameters = AlignmentParameters.from_json(context.parameters, where=f"step {context.name}")
        before = _sections_before(context, parameters)
        if not before:
            return StepPlan(values=values, open_ended=True, waiting="there is no section yet")
        known = _known(before)
        if not self._follow:
            return self._plan(context, parameters, before, progress, None)
        if not known:
            return StepPlan(values=values, open_ended=True, sections=dict.fromkeys(before, SectionStatus("waiting")))
        if self._last in known:
            plan = self._plan(context, parameters, before, progress, self._last)
            if not plan.settled:
                return plan
        self._last = known[-1]
        plan = self._plan(context, parameters, before, progress, self._last)
        return replace(plan, settled=plan.settled and len(known) + _coming(before) == len(before))

    def _plan(
        self,
        context: StepContext,
        parameters: AlignmentParameters,
        before: Mapping[int, SectionStatus],
        progress: Progress,
        last: int | None,
    ) -> StepPlan:
        """The stack up to `last`; None for all of it."""
        work = _Work(context, parameters, before, progress, last)
        values = self.values(context.output)
        tasks, complete = work.match()
        if not complete:
            return StepPlan(tuple(tasks), values=values, open_ended=True, sections=work.sections())
        planned = [*tasks, *work.solve_and_render()]
        settled = work.scored is not None
        return StepPlan(
            tuple(planned),
            settled=settled,
            open_ended=not settled,
            values=values,
            sections=work.sections(),
            content=work.content() if settled else {},
            identity=work.scored or "",
        )

    def decides(self, step: Step) -> frozenset[str]:
        return frozenset({"action", "sections", "groups"})

    def gives(self, step: Step) -> frozenset[str]:
        return frozenset(self.values(Path()))

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        groups = "one for every group" if step.groups == 1 else f"one for every {step.groups} groups"
        return Outlook(None, f"match: {by_sections(step.grain)}; solve; render: {groups} of chunks; score")

    def values(self, output: Path) -> dict[str, Any]:
        paths = Paths(output)
        return {"output": str(output), "aligned": str(paths.volume), "report": str(paths.report)}


class _Work:
    """The tasks of one look at one step."""

    def __init__(
        self,
        context: StepContext,
        parameters: AlignmentParameters,
        before: Mapping[int, SectionStatus],
        progress: Progress,
        last: int | None,
    ) -> None:
        """`last`: of the sections to solve; None for all, which then have to be known."""
        self._context, self._progress = context, progress
        self._before = before
        self._reach = parameters.matching.reach
        self._settings = parameters
        numbers = sorted(before)
        first = numbers[0] if parameters.first is None else parameters.first
        end = numbers[-1] if parameters.last is None else parameters.last
        self._numbers = [n for n in numbers if first <= n <= end]
        self._known = [n for n in _known(before) if first <= n <= end]
        self._span = {"first": first, "last": end if last is None else min(end, last)}
        given = set(parameters.held)
        self._left_out = [n for n in self._known if not before[n].goes_on or n in given]
        self._going_on = sorted(set(self._known) - set(self._left_out))
        self._matches: list[Task] = []
        self.scored: str | None = None

    def match(self) -> tuple[list[Task], bool]:
        """The matching tasks that can be done now; and whether those of the sections to solve are done."""
        finished = self._span["last"] in self._known or self._known == self._numbers
        for part in in_parts(self._going_on, self._context.step.grain):
            task = self._match_task(part)
            self._matches.append(task)
            outcome = self._progress.outcome(task)
            finished &= part[0] > self._span["last"] or (outcome is not None and outcome.record is not None)
        return self._matches, finished

    def _match_task(self, part: list[int]) -> Task:
        window = self._window(part)
        held = self._held(part[-1])
        depends = [
            self._settings.matching.to_dict(),
            sorted(self._settings.damaged),
            [[n, self._before[n].key, self._before[n].mark] for n in window],
            [n for n in held if n >= window[0]],
        ]
        parameters = self._for("match", sections=part, first=self._span["first"], last=part[-1], held=held)
        return self._context.task(
            f"match-{section_range(part)}",
            parameters,
            depends,
            after=tuple(dict.fromkeys(self._before[n].key for n in window if self._before[n].key)),
            claims=tuple(f"match-{number:05d}" for number in part),
            tags={"sections": section_range(part)},
        )

    def _window(self, part: list[int]) -> list[int]:
        """The sections of the part, and those before that they may be matched with: twice the reach, for some that turn
        out to be of no use."""
        first, end = bisect_left(self._going_on, part[0]), bisect_right(self._going_on, part[-1])
        return self._going_on[max(0, first - 2 * self._reach) : end]

    def _held(self, last: int) -> list[int]:
        return self._left_out[: bisect_right(self._left_out, last)]

    def _for(self, action: str, **more: Any) -> dict[str, Any]:
        return {**self._context.parameters, "action": action, **more}

    def solve_and_render(self) -> list[Task]:
        """The tasks after matching that can be done now."""
        context, paths = self._context, Paths(self._context.output)
        common = {**self._span, "held": self._held(self._span["last"])}
        settings = self._settings
        end = self._span["last"]
        matches = [task for task in self._matches if int(task.tags["sections"].partition("-")[0]) <= end]
        depends = [
            [task.key for task in matches],
            common,
            settings.damaged,
            settings.solving.to_dict(),
            settings.rendering.to_dict(),
        ]
        solve = context.task(
            "solve",
            self._for("solve", **common),
            depends,
            after=tuple(task.key for task in matches[-MOST_PARENTS:]),
            outputs=(str(paths.solution), str(paths.volume)),
        )
        outcome = self._progress.outcome(solve)
        if outcome is None or outcome.record is None:
            return [solve]
        renders = self._render(solve, common)
        outcomes = [self._progress.outcome(task) for task in renders]
        if not all(outcome is not None and outcome.record is not None for outcome in outcomes):
            return [solve, *renders]
        score = context.task(
            "score",
            self._for("score", **common),
            [solve.key, [task.key for task in renders]],
            after=(solve.key, *(task.key for task in renders[-MOST_PARENTS:])),
            outputs=(str(paths.report),),
        )
        outcome = self._progress.outcome(score)
        if outcome is not None and outcome.record is not None:
            self.scored = score.key
        return [solve, *renders, score]

    def _render(self, solve: Task, common: dict[str, Any]) -> list[Task]:
        """One task for every few groups of chunks; a group that has not changed has the key that it had."""
        paths, grain = Paths(self._context.output), self._context.step.groups
        identities = group_identities(Layout.load(paths.solution), self._settings.rendering)
        tasks = []
        for first in range(0, len(identities), grain):
            groups = list(range(first, min(first + grain, len(identities))))
            task = self._context.task(
                f"render-{first:06d}",
                self._for("render", groups=groups, **common),
                [identities[group] for group in groups],
                after=(solve.key,),
                outputs=tuple(str(paths.rendered(group)) for group in groups),
                claims=tuple(f"group-{group}" for group in groups),
                tags={"groups": f"{groups[0]}-{groups[-1]}"},
            )
            tasks.append(task)
        return tasks

    def content(self) -> dict[int, str]:
        """What the pixels of every plane depend on, by section."""
        layout = Layout.load(Paths(self._context.output).solution)
        identities = plane_identities(layout, self._settings.rendering)
        return {section.section: identities[section.plane] for section in layout.sections}

    def sections(self) -> dict[int, SectionStatus]:
        """Those of the montage that did not come through stay absent; the others wait for the score."""
        found: dict[int, SectionStatus] = {}
        step, given = self._context.named.get("montage", ""), set(self._settings.held)
        for number in self._numbers:
            before = self._before[number]
            if number in given:
                found[number] = SectionStatus("absent", reasons=("held, by the pipeline's own word",))
            elif before.goes_on or before.state == "waiting":
                found[number] = SectionStatus("waiting")
            else:
                found[number] = SectionStatus("absent", reasons=(f"{before.state} at step {step}",))
        if self.scored is None:
            return found
        end = self._span["last"]
        present = [n for n, status in found.items() if status.state == "waiting" and n <= end]
        gaps = [n for n in range(self._span["first"], self._span["last"] + 1) if n not in found]
        done = dict.fromkeys([*present, *gaps], self.scored)
        judged = self._progress.judged(self._context.name, self._context.output, done)
        found |= {**judged, **{number: replace(judged[number], state="absent") for number in gaps}}
        return dict(sorted(found.items()))


def _known(before: Mapping[int, SectionStatus]) -> list[int]:
    """The sections up to the first one that is not done yet: a section may be matched with any before it, where those
    between cannot be used, so that all of them have to be known."""
    known = []
    for number in sorted(before):
        if before[number].state == "waiting":
            break
        known.append(number)
    return known


def _coming(before: Mapping[int, SectionStatus]) -> int:
    """How many sections wait for something outside of the pipeline, as they say."""
    return sum(status.state == "waiting" and bool(status.reasons) for status in before.values())


def _sections_before(context: StepContext, parameters: AlignmentParameters) -> Mapping[int, SectionStatus]:
    """Those of the montage step; of a folder that no montage step of this pipeline writes, all that lie in it."""
    montage = context.named.get("montage")
    if montage is not None and (context.before[montage].sections or not context.before[montage].settled):
        return context.before[montage].sections
    folder = Path(parameters.montage) / "sections"
    if not folder.is_dir():
        raise DataError(f"step {context.name}: montage {parameters.montage}: holds no folder `sections`")
    files = sorted(path for path in folder.glob("*.zarr") if path.stem.isdigit())
    return {int(path.stem): SectionStatus("passed", mark=_mark(path)) for path in files}


def _mark(section: Path) -> str:
    """What tells a section's files from those that took their place."""
    return json_hash([file_state(section / "zarr.json"), file_state(section.with_suffix(".json"))])
