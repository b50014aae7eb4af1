"""Stage `montage`: the tiles of every section put together into one image.

Plan: the table's rows, by section and by the group that tells the illumination.  Do: one section after the other
(survey, pairs, solve, draw; section.py), each whole or not there.  Collect: a line for each section.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.errors import DataError, ParameterError
from apps.core.files import make_folder
from apps.core.parameters import Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.montage.illumination import Exposure, estimate_flat_field
from apps.montage.parameters import MontageParameters
from apps.montage.records import Scores, SectionRecord
from apps.montage.section import SectionFiles, inputs_hash, is_done, make_section
from apps.montage.survey import SurveyedSection, grey_range, survey_section
from apps.montage.table import TileRow, read_table
from apps.montage.workers import Workers

Table = dict[int, tuple[TileRow, ...]]


class SectionSummary(Result, frozen=True, kw_only=True):
    """One section in the result; its record has the rest."""

    section: Annotated[int, Meta(ge=0, description="number of the section")]
    image: Annotated[str | None, Meta(description="OME-Zarr volume (1, rows, columns), uint8; null where none is")]
    record: Annotated[str, Meta(description="JSON with positions, pairs, scores and faults")]
    tiles: Annotated[int, Meta(ge=0, description="tiles that could be read")]
    connected: Annotated[int, Meta(ge=0, description="those that pairs tie to the largest group")]
    scores: Annotated[Scores, Meta(description="quality without ground truth")]
    faults: Annotated[tuple[str, ...], Meta(description="what was wrong, in words")]


class MontageResult(Result, frozen=True, kw_only=True):
    """The sections done, in order."""

    sections: Annotated[tuple[SectionSummary, ...], Meta(description="one line each")]
    faults: Annotated[int, Meta(ge=0, description="number of faults in all of them")]


def run(parameters: MontageParameters, report: Reporter) -> MontageResult:
    """Put sections together; those that are there already, from the same inputs, are left as they are.

    Raises ParameterError where a section asked for is not in the table or a backend is not installed, DataError where
    the table cannot be read, none of the tiles is there, or the output cannot be written.
    """
    table = read_table(parameters.tiles)
    wanted = _wanted(parameters, table)
    _check_tiles_are_there(parameters, table)
    output = SectionFiles.of(parameters.output, 0).record.parent
    make_folder(output)
    records = []
    with Workers(parameters.workers, parameters.worker_kind, parameters.cache_mib * 2**20) as workers:
        surveys = _Surveys(parameters, table, workers)
        for index, section in enumerate(wanted):

            def say(part: float, what: str, index: int = index, section: int = section) -> None:
                report(index + part, len(wanted), f"section {section}: {what}")

            rows = [row for member in surveys.group(section) for row in table[member]]
            inputs = inputs_hash(parameters, rows)
            record = is_done(SectionFiles.of(parameters.output, section), inputs, rows)
            if record is None:
                say(0.0, "reading tiles")
                surveyed, exposure = surveys.of(section)
                record = make_section(surveyed, exposure, inputs, parameters, workers, say)
            records.append(record)
    report(len(wanted), len(wanted), "done")
    summaries = tuple(_summarise(parameters, record) for record in records)
    return MontageResult(sections=summaries, faults=sum(len(summary.faults) for summary in summaries))


class _Surveys:
    """Surveys of the sections, kept as long as their group is worked on."""

    def __init__(self, parameters: MontageParameters, table: Table, workers: Workers) -> None:
        self._parameters, self._table, self._workers = parameters, table, workers
        self._kept: dict[int, SurveyedSection] = {}

    def group(self, section: int) -> list[int]:
        """The sections of the table that tell the illumination and grey range of this one, by number alone: the answer
        does not depend on what else a job is asked to do.
        """
        size = max(1, self._parameters.illumination_sections)
        first = section - section % size
        return [number for number in range(first, first + size) if number in self._table]

    def of(self, section: int) -> tuple[SurveyedSection, Exposure]:
        group = self.group(section)
        self._kept = {number: kept for number, kept in self._kept.items() if number in group}
        for number in group:
            if number not in self._kept:
                self._kept[number] = survey_section(number, self._table[number], self._workers)
        surveyed = self._kept[section]
        shape = surveyed.tiles[0].shape if surveyed.tiles else (0, 0)
        tiles = [tile for number in group for tile in self._kept[number].tiles if tile.shape == shape]
        values = self._parameters.grey_range or grey_range(tiles)
        field = None
        if self._parameters.illumination_sections:
            field = estimate_flat_field(tiles, self._parameters.illumination_degree, values[0] if values else 0.0)
        return surveyed, Exposure(values, field)


def _wanted(parameters: MontageParameters, table: Table) -> list[int]:
    if parameters.sections is None:
        return list(table)
    unknown = [section for section in parameters.sections if section not in table]
    if unknown:
        raise ParameterError(
            f"sections {', '.join(map(str, unknown))}: not in {parameters.tiles}, which has {len(table)} sections "
            f"from {min(table)} to {max(table)}"
        )
    return sorted(set(parameters.sections))


def _check_tiles_are_there(parameters: MontageParameters, table: Table) -> None:
    """A tile that is missing is a fault of its section; if all of the table are, it is the table that is wrong."""
    rows = [row for section in table.values() for row in section]
    if not any(row.file.is_file() for row in rows):
        raise DataError(
            f"{parameters.tiles}: none of the {len(rows)} tiles it lists is there, the first as {rows[0].file}; "
            "expected paths relative to the table's folder, or absolute ones"
        )


def _summarise(parameters: MontageParameters, record: SectionRecord) -> SectionSummary:
    files = SectionFiles.of(parameters.output, record.section)
    return SectionSummary(
        section=record.section,
        image=None if record.shape == (0, 0) else str(files.image),
        record=str(files.record),
        tiles=len(record.tiles),
        connected=sum(tile.connected for tile in record.tiles),
        scores=record.scores,
        faults=tuple(fault.message for fault in record.faults),
    )


STAGE = Stage(
    name="montage",
    summary="Put the overlapping tiles of sections together, each section as one image.",
    parameters=MontageParameters,
    result=MontageResult,
    run=run,
    example={
        "tiles": "phantom/tiles.csv",
        "output": "montage",
        "sections": [0, 1, 2],
        "voxel_size_nm": [40.0, 8.0, 8.0],
        "search": 48,
        "workers": 2,
    },
)
