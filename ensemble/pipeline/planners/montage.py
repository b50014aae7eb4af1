"""Montage: a job for every few sections of the tile table, whatever else there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.core.parameters import json_hash
from apps.montage.parameters import MontageParameters
from apps.montage.section import SectionFiles, inputs_hash
from apps.montage.table import TileRow, read_table
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

Table = Mapping[int, tuple[TileRow, ...]]


class MontagePlanner:
    """`waits_for_tiles`: a section whose tiles are not all there is still being acquired, and left for later."""

    streams: frozenset[str] = frozenset()

    def __init__(self, waits_for_tiles: bool = False) -> None:
        self._waits_for_tiles = waits_for_tiles

    def plan(self, context: StepContext, progress: Progress) -> StepPlan:
        parameters = MontageParameters.from_json(context.parameters, where=f"step {context.name}")
        table = read_table(parameters.tiles)
        wanted = [number for number in parameters.sections or table if number in table]
        sections = {number: SectionStatus("waiting") for number in sorted(wanted)}
        ready = [number for number in sections if not self._waits_for_tiles or _all_there(table[number])]
        tasks: list[Task] = []
        done: dict[int, str] = {}
        for part in in_parts(ready, context.step.grain):
            task = context.task(
                section_range(part),
                {**context.parameters, "sections": part},
                _depends(parameters, table, part),
                after=context.parents(),
                outputs=tuple(str(SectionFiles.of(parameters.output, number).record) for number in part),
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
            has_image = SectionFiles.of(parameters.output, number).image.is_dir()
            sections[number] = status if has_image else replace(status, state="absent")
        settled = all(status.state != "waiting" for status in sections.values())
        return StepPlan(
            tuple(tasks),
            settled=settled,
            values=self.values(context.output),
            sections=sections,
            identity=json_hash([[number, status.key, status.state] for number, status in sections.items()]),
        )

    def values(self, output: Path) -> dict[str, Any]:
        return {"output": str(output)}


def _depends(parameters: MontageParameters, table: Table, part: list[int]) -> list[Any]:
    """What the sections' images depend on: parameters, and the tiles, of their own and of those that tell the
    illumination with them."""
    size = max(1, parameters.illumination_sections)
    depends: list[Any] = []
    for number in part:
        first = number - number % size
        rows = [row for member in range(first, first + size) if member in table for row in table[member]]
        depends.append([number, inputs_hash(parameters, rows), [file_state(row.file) for row in rows]])
    return depends


def _all_there(rows: tuple[TileRow, ...]) -> bool:
    return all(file_state(row.file) is not None for row in rows)
