"""Stage `consensus`: the split consensus of two segmentations of the same subvolumes, for example with the seeds in
forward and in reverse order.

The unit is a subvolume.  Its consensus goes where reconciliation looks for pieces, with a table of what each object is
the common part of, and last a record; a subvolume with a record of the same inputs is not done again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.consensus.splitting import Consensus, split_consensus
from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.parameters import Parameters, Result, json_hash
from apps.core.parts import Part, Phase, share
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.tables import parquet_bytes
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, content_hash, open_volume, write_volume


class ConsensusParameters(Parameters, frozen=True, kw_only=True):
    """Two segmentations, and where their consensus goes."""

    grid: Annotated[SubvolumeGrid, Meta(description="the subvolumes that both were made in")]
    first: Annotated[str, Meta(min_length=1, description="folder of the first segmentation's pieces")]
    second: Annotated[str, Meta(min_length=1, description="folder of the second segmentation's pieces")]
    output: Annotated[str, Meta(min_length=1, description="folder of the consensus's pieces")]
    min_voxels: Annotated[int, Meta(ge=1, description="common parts with fewer voxels are dropped")] = 1000
    connected: Annotated[
        bool, Meta(description="whether the disconnected parts of a pair become objects of their own")
    ] = False
    part: Annotated[
        Part | None, Meta(description="this job's share of the subvolumes; one without it makes what is missing")
    ] = None

    def check(self) -> None:
        folders = [Path(folder).absolute() for folder in (self.first, self.second, self.output)]
        if len(set(folders)) < len(folders):
            raise ParameterError(f"first, second, output: expected three different folders, not {self.first!r} twice")


class ConsensusResult(Result, frozen=True, kw_only=True):
    """The pieces of the consensus."""

    pieces: Annotated[str, Meta(description="folder of the pieces, which reconciliation takes")]
    subvolumes: Annotated[int, Meta(description="subvolumes of this job's share")]
    made: Annotated[int, Meta(description="those of them that were not there yet")]
    first_objects: Annotated[int, Meta(description="objects of the first segmentation that are part of the consensus")]
    second_objects: Annotated[int, Meta(description="objects of the second one, likewise")]
    objects: Annotated[int, Meta(description="objects of the consensus, in all of these subvolumes")]
    voxels: Annotated[int, Meta(description="voxels in them")]
    dropped_voxels: Annotated[int, Meta(description="voxels in objects of both whose common part was too small")]
    complete: Annotated[bool, Meta(description="whether every subvolume is there; a part alone does not tell")]


class PieceRecord(Result, frozen=True, kw_only=True):
    """The record of one subvolume."""

    identity: Annotated[str, Meta(description="hash of all that the consensus depends on")]
    first_objects: Annotated[int, Meta(description="objects of the first segmentation in the consensus")]
    second_objects: Annotated[int, Meta(description="objects of the second one in the consensus")]
    objects: Annotated[int, Meta(description="objects of the consensus")]
    voxels: Annotated[int, Meta(description="voxels in them")]
    dropped: Annotated[int, Meta(description="voxels of parts that were too small")]


def record_path(piece: Path) -> Path:
    return piece.with_name(f"{piece.stem}-consensus.json")


def run(parameters: ConsensusParameters, report: Reporter) -> ConsensusResult:
    """Make the consensus of the subvolumes, or of a part of them.

    Raises DataError that names the piece where one is missing, damaged, or not of its read box's shape.
    """
    numbers = share(len(parameters.grid), parameters.part)
    for number in numbers:  # all of them before any work
        for folder in (parameters.first, parameters.second):
            _open(parameters, folder, number)
    records, made = [], 0
    for done, number in enumerate(numbers):
        report(done, len(numbers), "consensus")
        record, new = _make(parameters, number)
        records.append(record)
        made += new
    report(1, 1, "done")
    return ConsensusResult(
        pieces=parameters.output,
        subvolumes=len(numbers),
        made=made,
        first_objects=sum(record.first_objects for record in records),
        second_objects=sum(record.second_objects for record in records),
        objects=sum(record.objects for record in records),
        voxels=sum(record.voxels for record in records),
        dropped_voxels=sum(record.dropped for record in records),
        complete=parameters.part is None,
    )


def _make(parameters: ConsensusParameters, number: int) -> tuple[PieceRecord, bool]:
    """The record of a subvolume, and whether it was made now."""
    first, second = (_open(parameters, folder, number) for folder in (parameters.first, parameters.second))
    identity = json_hash(
        [
            parameters.grid.subvolume(number).to_dict(),
            [parameters.min_voxels, parameters.connected],
            [content_hash(first), content_hash(second)],
            code_version(),
        ]
    )
    piece = piece_path(parameters.output, number)
    record_file = record_path(piece)
    if piece.is_dir() and record_file.is_file():
        known = PieceRecord.load(record_file)
        if known.identity == identity:
            return known, False
    found = split_consensus(first.read(), second.read(), parameters.min_voxels, parameters.connected)
    record_file.unlink(missing_ok=True)  # it must not speak for what is new
    write_volume(piece, found.labels, first.voxel_size_nm or UNKNOWN_VOXEL_SIZE)
    write_atomically(piece.with_suffix(".parquet"), _table(found))
    record = PieceRecord(
        identity=identity,
        first_objects=len(set(found.first.tolist())),
        second_objects=len(set(found.second.tolist())),
        objects=len(found.voxels),
        voxels=int(found.voxels.sum()),
        dropped=found.dropped,
    )
    record.save(record_file)
    return record, True


def _open(parameters: ConsensusParameters, folder: str, number: int) -> Volume:
    path, box = piece_path(folder, number), parameters.grid.subvolume(number).read_box
    try:
        volume = open_volume(str(path))
    except DataError as error:
        raise DataError(f"subvolume {number}: {error}; segment {box} into {folder} first") from error
    if volume.dtype.kind not in "ui" or volume.shape != box.shape:
        raise DataError(
            f"{path}: is of dtype {volume.dtype} and shape {volume.shape}; expected integer labels of its read box "
            f"{box}"
        )
    return volume


def _table(found: Consensus) -> bytes:
    """Parquet: id, first, second (the objects that it is the common part of), voxels."""
    import numpy as np
    import pyarrow as pa

    columns = {
        "id": np.arange(1, len(found.voxels) + 1, dtype=np.uint32),
        "first": found.first.astype(np.uint64),
        "second": found.second.astype(np.uint64),
        "voxels": found.voxels,
    }
    return parquet_bytes(pa.table(columns))


STAGE = Stage(
    name="consensus",
    summary="Keep what two segmentations of the same subvolumes agree on: every split of either.",
    parameters=ConsensusParameters,
    result=ConsensusResult,
    run=run,
    example={
        "grid": {"box": {"offset": [0, 0, 0], "shape": [64, 128, 128]}, "shape": [64, 64, 64], "overlap": [0, 32, 32]},
        "first": "deployed/forward",
        "second": "deployed/reverse",
        "output": "deployed/consensus",
    },
    phases=(Phase(shared=True), Phase()),
)
