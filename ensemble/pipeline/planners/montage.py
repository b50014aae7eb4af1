"""Montage: a job for every few sections of the tile table, whatever else there is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.core.errors import ParameterError
from apps.core.parameters import json_hash
from apps.montage.parameters import MontageParameters
from apps.montage.section import SectionFiles, inputs_hash
from apps.montage.table import TileRow, read_table
from ensemble.jobs import Task
from ensemble.pipeline.definition import Step
from ensemble.pipeline.fingerprints import file_state
from ensemble.pipeline.planners.contract import (
    Outlook,
    Progress,
    SectionStatus,
    State,
    StepContext,
    StepPlan,
    by_sections,
    in_parts,
    section_range,
)

Table = Mapping[int, tuple[TileRow, ...]]

# How often the tiles' sizes and times are asked for while a pipeline runs: on a shared file system each is a request.
TILES_EVERY_S = 30.0
# A tile that has not been written to for so long is complete, whatever is seen of it the first time.
OLD_S = 60.0


class MontagePlanner:
    """Plans a montage from its table.

    `follow`: sections are being acquired.  One whose tiles are not all there, each as it was at the look before, is
    left for later: those at the end of the table wait; one with a section after it that is there is absent until it
    comes.
    """

    streams: Mapping[str, str] = {}

    def __init__(self, follow: bool = False) -> None:
        self._follow = follow
        self._table: tuple[Any, Table] | None = None
        self._tiles = _Tiles(0.0 if follow else TILES_EVERY_S)

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        parameters = MontageParameters.from_json(context.parameters, where=f"step {context.name}")
        table = self._read(parameters.tiles)
        self._tiles.begin_look()
        sections = self._sections(context, parameters, table)
        ready = [number for number, status in sections.items() if status.state == "waiting" and not status.reasons]
        tasks: list[Task] = []
        done: dict[int, str] = {}
        for part in in_parts(ready, context.step.grain):
            task = context.task(
                section_range(part),
                {**context.parameters, "sections": part},
                self._depends(parameters, table, part),
                after=context.parents(),
                outputs=tuple(str(SectionFiles.of(parameters.output, number).record) for number in part),
                claims=tuple(f"{number:05d}" for number in part),
                tags={"sections": section_range(part)},
            )
            tasks.append(task)
            outcome = progress.outcome(task)
            if outcome is None:
                continue
            if outcome.record is None:
                failed = SectionStatus("failed", task.key, reasons=(outcome.message,))
                sections |= dict.fromkeys(part, failed)
            else:
                done |= dict.fromkeys(part, task.key)
        for number, status in progress.judged(context.name, context.output, done).items():
            sections[number] = _with_image(parameters, number, status, progress)
        return StepPlan(
            tuple(tasks),
            settled=all(status.state != "waiting" or status.reasons for status in sections.values()),
            values=self.values(context.output),
            sections=sections,
            identity=json_hash([[number, status.key, status.state] for number, status in sections.items()]),
        )

    def decides(self, step: Step) -> frozenset[str]:
        return frozenset()

    def gives(self, step: Step) -> frozenset[str]:
        return frozenset({"output"})

    def outlook(self, step: Step, plan: StepPlan) -> Outlook:
        return Outlook(len(plan.tasks) or None, by_sections(step.grain))

    def values(self, output: Path) -> dict[str, Any]:
        return {"output": str(output)}

    def _read(self, name: str) -> Table:
        """The table, read again where the file has changed."""
        state = (name, file_state(Path(name)))
        if self._table is None or self._table[0] != state or state[1] is None:
            self._table = state, read_table(name)
        return self._table[1]

    def _sections(self, context: StepContext, parameters: MontageParameters, table: Table) -> dict[int, SectionStatus]:
        """The sections to do, waiting; those that are being acquired say so."""
        wanted = sorted(set(table if parameters.sections is None else parameters.sections))
        unknown = [number for number in wanted if number not in table]
        if unknown and not self._follow:
            raise ParameterError(
                f"step {context.name}: sections {unknown[:12]}: not in {parameters.tiles}, which has {len(table)} "
                f"sections from {min(table)} to {max(table)}"
            )
        sections = dict.fromkeys(wanted, SectionStatus("waiting"))
        if self._follow:
            later: State = "waiting"  # until there is a section after it that is there
            for number in reversed(wanted):
                coming = self._tiles.coming(table.get(number, ()))
                if coming == 0:
                    later = "absent"
                else:
                    what = (
                        "no row in the table yet"
                        if coming is None
                        else f"{coming} of its tiles are not there yet, or are being written"
                    )
                    sections[number] = SectionStatus(later, reasons=(what,))
        return sections

    def _depends(self, parameters: MontageParameters, table: Table, part: list[int]) -> list[Any]:
        """What the sections' images depend on: parameters, and the tiles, of their own and of those that tell the
        illumination with them."""
        size = max(1, parameters.illumination_sections)
        depends: list[Any] = []
        for number in part:
            first = number - number % size
            rows = [row for member in range(first, first + size) if member in table for row in table[member]]
            depends.append([number, inputs_hash(parameters, rows), [self._tiles.state(row.file) for row in rows]])
        return depends


class _Tiles:
    """Sizes and times of tiles, asked for anew every `every_s` seconds."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._asked = 0.0
        self._now: dict[Path, tuple[int, int] | None] = {}
        self._before: dict[Path, tuple[int, int] | None] = {}

    def begin_look(self) -> None:
        if time.monotonic() - self._asked >= self._every_s:
            self._asked = time.monotonic()
            self._before, self._now = self._now, {}

    def state(self, file: Path) -> tuple[int, int] | None:
        if file not in self._now:
            self._now[file] = file_state(file)
        return self._now[file]

    def coming(self, rows: tuple[TileRow, ...]) -> int | None:
        """How many of a section's tiles are not there, or still being written; None where it has no row."""
        return sum(not self._complete(row.file) for row in rows) if rows else None

    def _complete(self, file: Path) -> bool:
        state = self.state(file)
        if state is None or file in self._before:
            return state is not None and state == self._before[file]
        return time.time() - state[1] / 1e9 > OLD_S


def _with_image(parameters: MontageParameters, number: int, status: SectionStatus, progress: Progress) -> SectionStatus:
    """The status of a section that is done: absent where it has no image, to be done again where that has gone."""
    files = SectionFiles.of(parameters.output, number)
    if files.image.is_dir():
        return status
    record = files.load()
    if record is None or record.shape != (0, 0):
        progress.spoil(status.key)
        return SectionStatus("waiting")
    return replace(status, state="absent")
