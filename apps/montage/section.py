"""One section, from its surveyed tiles to its image and record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.core.boxes import Box
from apps.core.errors import DataError, UserError
from apps.core.files import lock
from apps.core.parameters import json_hash
from apps.core.volumes import Volume, new_volume
from apps.montage.brightness import Equaliser, equalise
from apps.montage.illumination import Exposure
from apps.montage.images import TileReader
from apps.montage.offsets import Extent
from apps.montage.pairs import plan_pairs
from apps.montage.parameters import MontageParameters
from apps.montage.placement import Placement, place
from apps.montage.records import Fault, PlacedTile, Scores, SectionRecord
from apps.montage.render import Piece, RenderTile, plan_pieces, render_piece, section_extent
from apps.montage.survey import SurveyedSection
from apps.montage.table import TileRow
from apps.montage.workers import Workers

Say = Callable[[float, str], None]


@dataclass(frozen=True)
class SectionFiles:
    """Where a section's image and record go."""

    image: Path
    record: Path

    @classmethod
    def of(cls, output: str, section: int) -> SectionFiles:
        folder = Path(output).absolute() / "sections"
        return cls(folder / f"{section:05d}.zarr", folder / f"{section:05d}.json")

    def load(self) -> SectionRecord | None:
        """The record, where there is one that can be read."""
        try:
            return SectionRecord.load(self.record)
        except UserError:
            return None


def inputs_hash(parameters: MontageParameters, group: list[TileRow]) -> str:
    """Of what a section is made from: the parameters that matter, and the rows and file sizes of its `group`.

    The group is the section's own rows, and those of the sections that tell the illumination with it.
    """
    rows = [(row.path, row.section, row.y, row.x, _size(row.file)) for row in group]
    return json_hash([parameters.what_matters(), rows])


def is_done(files: SectionFiles, inputs: str, group: list[TileRow]) -> SectionRecord | None:
    """The record of a section that was made from these inputs and need not be made again.

    A tile whose file is newer than the record has been replaced since.
    """
    record = files.load()
    if record is None or record.inputs != inputs or (record.shape != (0, 0) and not files.image.is_dir()):
        return None
    made = files.record.stat().st_mtime_ns
    return None if any(_changed(row.file) > made for row in group) else record


def make_section(
    surveyed: SurveyedSection,
    exposure: Exposure,
    inputs: str,
    parameters: MontageParameters,
    workers: Workers,
    say: Say,
) -> SectionRecord:
    """Place and draw one section; its record is written last.

    Raises StateError where another process works on it, DataError where the place is not writable or full, or a tile
    goes while it is at work.
    """
    files = SectionFiles.of(parameters.output, surveyed.section)
    lock_file = files.record.with_suffix(".lock")
    with lock_file.open("a") as held:
        lock(held, lock_file)
        files.record.unlink(missing_ok=True)  # what it says is about to be wrong
        try:
            record = _make(surveyed, exposure, inputs, parameters, workers, files, say)
        except FileNotFoundError as error:
            raise DataError(f"{error}: has gone while section {surveyed.section} was made; run again") from error
        record.save(files.record)
    return record


def _make(
    surveyed: SurveyedSection,
    exposure: Exposure,
    inputs: str,
    parameters: MontageParameters,
    workers: Workers,
    files: SectionFiles,
    say: Say,
) -> SectionRecord:
    tiles = surveyed.tiles
    if not tiles:
        shutil.rmtree(files.image, ignore_errors=True)
        return SectionRecord(
            section=surveyed.section,
            inputs=inputs,
            shape=(0, 0),
            origin=(0.0, 0.0),
            tiles=(),
            pairs=(),
            scores=Scores(seam_residual=None, overlap_correlation=None, pairs_used=None, tiles_connected=None),
            grey_range=exposure.grey_range,
            flat_field=None,
            faults=surveyed.faults,
        )
    rows, shape = [tile.row for tile in tiles], tiles[0].shape
    say(0.3, "measuring overlaps")
    pairs = plan_pairs(rows, shape, exposure, parameters.search, parameters.min_overlap)
    placement = place(rows, pairs, parameters, workers)
    connected = placement.solution.connected
    dropped = {_worse_twin(late, early, connected): (late, early) for late, early in surveyed.twins.items()}
    drawn = np.array([index not in dropped for index in range(len(rows))])
    origin, extent = section_extent(placement.solution.positions[drawn], shape)
    positions = placement.solution.positions - origin
    looks = placement.looks if parameters.equalise else []
    equaliser = equalise(len(rows), placement.used, looks)
    say(0.6, "drawing")
    _draw(files.image, rows, drawn, positions, shape, extent, exposure, equaliser, parameters, workers, say)
    faults = [*surveyed.faults, *_twin_faults(rows, dropped), *_connection_faults(surveyed.section, rows, placement)]
    return SectionRecord(
        section=surveyed.section,
        inputs=inputs,
        shape=extent,
        origin=(float(origin[0]), float(origin[1])),
        tiles=tuple(
            PlacedTile(
                path=row.path,
                y=float(positions[index, 0]),
                x=float(positions[index, 1]),
                connected=bool(connected[index]),
                rendered=bool(drawn[index]),
                gain=float(equaliser.gain[index]),
                brightness=float(equaliser.brightness[index]),
            )
            for index, row in enumerate(rows)
        ),
        pairs=placement.pairs,
        scores=placement.scores,
        grey_range=exposure.grey_range,
        flat_field=None if exposure.flat_field is None else exposure.flat_field.coefficients,
        faults=tuple(faults),
    )


def _draw(
    target: Path,
    rows: list[TileRow],
    drawn: np.ndarray,
    positions: np.ndarray,
    shape: Extent,
    extent: Extent,
    exposure: Exposure,
    equaliser: Equaliser,
    parameters: MontageParameters,
    workers: Workers,
    say: Say,
) -> None:
    """Write the section image; the workers draw and write a chunk at a time."""
    tiles = tuple(
        RenderTile(
            rows[index],
            (float(positions[index, 0]), float(positions[index, 1])),
            float(equaliser.gain[index]),
            float(equaliser.brightness[index]),
        )
        for index in np.flatnonzero(drawn)
    )
    chunk = parameters.chunk
    whole = (1, *extent)
    with new_volume(target, whole, np.uint8, parameters.voxel_size_nm, (1, chunk, chunk)) as volume:
        pieces = plan_pieces(extent, chunk, tiles, shape, exposure, equaliser.pivot, parameters.blend)
        done, total = 0, extent[0] * extent[1]
        for pixels in workers.map(_draw_piece, ((piece, volume) for piece in pieces)):
            done += pixels
            say(0.6 + 0.4 * done / total, "drawing")


def _draw_piece(reader: TileReader, work: tuple[Piece, Volume]) -> int:
    """Draw one chunk into the volume, where nobody else writes; returns its pixels."""
    piece, volume = work
    image = render_piece(reader, piece)
    volume.write(Box.between((0, *piece.part.first), (1, *piece.part.end)), image[None])
    return image.size


def _worse_twin(late: int, early: int, connected: np.ndarray) -> int:
    """Of two tiles with the same pixels, the one that is not where it says."""
    return early if connected[late] and not connected[early] else late


def _twin_faults(rows: list[TileRow], dropped: dict[int, tuple[int, int]]) -> list[Fault]:
    faults = []
    for index, twins in dropped.items():
        kept = rows[twins[0] if index == twins[1] else twins[1]].path
        message = f"{rows[index].path}: has the same pixels as {kept}, which is taken; this one is not drawn"
        faults.append(Fault(kind="repeated_image", path=rows[index].path, message=message))
    return faults


def _connection_faults(section: int, rows: list[TileRow], placement: Placement) -> list[Fault]:
    connected = placement.solution.connected
    faults = []
    if len(rows) > 1 and not len(placement.used):
        message = f"section {section}: no overlap of its {len(rows)} tiles could be matched; they lie by the stage"
        faults.append(Fault(kind="unmatched_section", path=None, message=message))
    for index in np.flatnonzero(~connected):
        path = rows[index].path
        message = (
            f"{path}: section {section} has no overlap that could be trusted between it and the largest group "
            f"({int(connected.sum())} of {len(rows)} tiles); it is left where the stage put it"
        )
        faults.append(Fault(kind="disconnected_tile", path=path, message=message))
    return faults


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return -1


def _changed(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return -1
