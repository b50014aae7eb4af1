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
from ensemble.pipeline.fingerprints import file_state
from ensemble.pipeline.planners.contract import (
    Progress,
    SectionStatus,
    StepContext,
    StepPlan,
    in_parts,
    section_range,
)


class AlignmentPlanner:
    """Sees the sections of a montage step one by one; those of a folder of the user's own are all there."""

    streams: frozenset[str] = frozenset({"montage"})

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        values = self.values(context.output)
        parameters = AlignmentParameters.from_json(context.parameters, where=f"step {context.name}")
        before = _sections_before(context, parameters)
        if not before:
            return StepPlan(values=values, open_ended=True, waiting="there is no section yet")
        work = _Work(context, parameters, before, progress)
        tasks, complete = work.match()
        # Solving and rendering change what is in the output: never while jobs of an older plan still do.
        outdated = progress.unfinished(context.name) - {task.key for task in tasks}
        if not complete:
            return StepPlan(tuple(tasks), values=values, open_ended=True, sections=work.sections())
        planned = [*tasks, *work.solve_and_render()]
        outdated -= {task.key for task in planned}
        if outdated:
            return StepPlan(tuple(tasks), values=values, open_ended=True, sections=work.sections())
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
    ) -> None:
        self._context, self._progress = context, progress
        self._before = before
        self._reach = parameters.matching.reach
        self._settings = parameters
        numbers = sorted(before)
        self._span = {
            "first": numbers[0] if parameters.first is None else parameters.first,
            "last": numbers[-1] if parameters.last is None else parameters.last,
        }
        self._numbers = [n for n in numbers if self._span["first"] <= n <= self._span["last"]]
        self._left_out = [n for n in self._numbers if not before[n].goes_on]
        self._matches: list[Task] = []
        self.scored: str | None = None

    def match(self) -> tuple[list[Task], bool]:
        """The matching tasks that can be done now; and whether they are all there are, and done."""
        known = [n for n in self._numbers if self._before[n].state != "waiting"]
        settled = len(known) == len(self._numbers)
        ready = self._numbers if settled else self._up_to_first_waiting()
        finished = settled
        for part in in_parts(ready, self._context.step.grain):
            matched = [n for n in part if self._before[n].goes_on]
            if not matched:
                continue
            task = self._match_task(matched)
            self._matches.append(task)
            outcome = self._progress.outcome(task)
            finished &= outcome is not None and outcome.record is not None
        return self._matches, finished

    def _up_to_first_waiting(self) -> list[int]:
        """A section may be matched with any before it, where those between cannot be used: all have to be known."""
        known = []
        for number in self._numbers:
            if self._before[number].state == "waiting":
                break
            known.append(number)
        return known

    def _match_task(self, part: list[int]) -> Task:
        window = self._window(part)
        held = [n for n in window if not self._before[n].goes_on]
        last = part[-1]
        parameters = self._for("match", sections=part, first=self._span["first"], last=last, held=self._held(last))
        depends = [
            self._settings.matching.to_dict(),
            sorted(self._settings.damaged),
            [[n, self._before[n].key, self._before[n].mark] for n in window if n not in held],
            held,
        ]
        after = tuple(dict.fromkeys(self._before[n].key for n in window if self._before[n].key and n not in held))
        return self._context.task(
            f"match-{section_range(part)}", parameters, depends, after, tags={"sections": section_range(part)}
        )

    def _window(self, part: list[int]) -> list[int]:
        """The sections of the part, and those before that they may be matched with: twice the reach, for sections
        between that turn out to be of no use."""
        first, end = bisect_left(self._numbers, part[0]), bisect_right(self._numbers, part[-1])
        return self._numbers[max(0, first - 2 * self._reach) : end]

    def _held(self, last: int) -> list[int]:
        return self._left_out[: bisect_right(self._left_out, last)]

    def _for(self, action: str, **more: Any) -> dict[str, Any]:
        return {**self._context.parameters, "action": action, **more}

    def solve_and_render(self) -> list[Task]:
        """The tasks after matching that can be done now."""
        context, paths = self._context, Paths(self._context.output)
        common = {**self._span, "held": self._held(self._span["last"])}
        settings = self._settings
        depends = [
            [task.key for task in self._matches],
            common,
            settings.damaged,
            settings.solving.to_dict(),
            settings.rendering.to_dict(),
        ]
        solve = context.task(
            "solve",
            self._for("solve", **common),
            depends,
            after=tuple(task.key for task in self._matches),
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
            after=(solve.key, *(task.key for task in renders)),
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
        for number in self._numbers:
            before = self._before[number]
            if before.goes_on or before.state == "waiting":
                found[number] = SectionStatus("waiting")
            else:
                why = f"{before.state} at step {self._context.named['montage']}"
                found[number] = SectionStatus("absent", reasons=(why, *before.reasons))
        if self.scored is None:
            return found
        present = [number for number, status in found.items() if status.state == "waiting"]
        gaps = [n for n in range(self._span["first"], self._span["last"] + 1) if n not in found]
        done = dict.fromkeys([*present, *gaps], self.scored)
        judged = self._progress.judged(self._context.name, self._context.output, done)
        found |= {**judged, **{number: replace(judged[number], state="absent") for number in gaps}}
        return dict(sorted(found.items()))


def _sections_before(context: StepContext, parameters: AlignmentParameters) -> Mapping[int, SectionStatus]:
    """Those of the montage step; of a folder of the user's own, every section that lies in it."""
    montage = context.named.get("montage")
    if montage is not None and context.before[montage].sections:
        return context.before[montage].sections
    folder = Path(parameters.montage) / "sections"
    if not folder.is_dir():
        if montage is not None:
            return {}
        raise DataError(f"step {context.name}: montage {parameters.montage}: holds no folder `sections`")
    files = sorted(path for path in folder.glob("*.zarr") if path.stem.isdigit())
    return {int(path.stem): SectionStatus("passed", mark=_mark(path)) for path in files}


def _mark(section: Path) -> str:
    """What tells a section's files from those that took their place."""
    return json_hash([file_state(section / "zarr.json"), file_state(section.with_suffix(".json"))])
