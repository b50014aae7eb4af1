"""The manifest: every write box of a finished segmentation with the hash of its voxels, so that nothing is missing.

Its metadata say which solution the segmentation is of, as the one in the work folder may be newer by now, and where the
segmentation is, as the work folder may have been given for another output since.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, StateError
from apps.core.files import file_in_the_making, move_folder
from apps.core.progress import Reporter
from apps.core.volumes import open_volume
from apps.reconciliation.box_records import OUTPUT, SOLUTION, BoxRecord, place_from, written_by
from apps.reconciliation.making import Making, sha256

_SCHEMA = pa.schema(
    [
        ("subvolume", pa.int64()),
        *((f"{axis}_{side}", pa.int64()) for side in ("begin", "end") for axis in "zyx"),
        ("sha256", pa.string()),
        ("voxels", pa.int64()),
        ("filled", pa.int64()),
        ("by_neighbours", pa.int64()),
        ("objects", pa.int64()),
        ("identity", pa.string()),
    ]
)
_ROWS = 1 << 14


def finish(making: Making, report: Reporter) -> None:
    """Give the volume its name, once every box of it is there; otherwise raise StateError that names a missing one."""
    count = len(making.units)
    making.volume  # noqa: B018 (a clear error where it is not there)
    schema = _schema(making)
    with file_in_the_making(making.manifest) as partial, pq.ParquetWriter(partial, schema) as writer:
        rows: list[dict[str, Any]] = []
        for number in range(count):
            record = making.record(number)
            if record is None:
                raise StateError(f"subvolume {number}: its box is not written yet; run the action relabel first")
            rows.append(_row(making.corners(number), record))
            if len(rows) == _ROWS or number + 1 == count:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
            report(number, count, "counting boxes")
    # In this order: as long as the volume has not got its name, it is in the making, and this is done again.
    move_folder(making.path, making.output)
    making.clear()


def restate(making: Making) -> None:
    """Say in the manifest of a volume whose boxes are as the solution wants them that it is of that solution.

    Another solution can give the same volume: then its links are the evidence, and nothing is written anew.
    """
    if written_by(making.manifest) == making.solution.record.identity:
        return
    schema, known = _schema(making), pq.ParquetFile(making.manifest)
    with file_in_the_making(making.manifest) as partial, pq.ParquetWriter(partial, schema) as writer:
        for group in range(known.num_row_groups):
            writer.write_table(known.read_row_group(group).replace_schema_metadata(schema.metadata))


def verify(output: Path, manifest: Path, report: Reporter) -> int:
    """Read a segmentation again, box by box, and compare it with its manifest; returns how many boxes there are.

    Raises DataError that names the boxes that differ, or says that the boxes do not cover the volume.
    """
    if not manifest.is_file():
        raise DataError(f"{manifest}: no such file; expected the manifest of {output}")
    volume = open_volume(str(output))
    try:
        table = pq.ParquetFile(manifest)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{manifest}: is damaged ({error}); remove it and {output}, and run the reconciliation again"
        ) from error
    count, done, voxels = table.metadata.num_rows, 0, 0
    wrong: list[str] = []
    for batch in table.iter_batches(_ROWS):
        for row in batch.to_pylist():
            report(done, count, "verifying")
            box = _box(row)
            try:
                right = sha256(volume.read(box)) == row["sha256"]
            except DataError:
                right = False
            if not right:
                wrong.append(f"{row['subvolume']} ({box})")
            done, voxels = done + 1, voxels + box.size
    report(count, count, "verifying")
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise DataError(
            f"{output}: differs from {manifest} in the boxes of the subvolumes {', '.join(wrong[:10])}{more}; relabel "
            "them again (remove the segmentation and run the reconciliation)"
        )
    if voxels != volume.box.size:
        raise DataError(f"{manifest}: its boxes have {voxels} voxels; expected those of {output}, {volume.box.size}")
    return count


def _schema(making: Making) -> pa.Schema:
    place = place_from(making.manifest, making.output)
    return _SCHEMA.with_metadata({SOLUTION: making.solution.record.identity.encode(), OUTPUT: place.encode()})


def _row(corners: tuple[Triple, Triple], record: BoxRecord) -> dict[str, Any]:
    named = {
        f"{axis}_{side}": corner[place]
        for side, corner in zip(("begin", "end"), corners, strict=True)
        for place, axis in enumerate("zyx")
    }
    return named | record.to_dict()


def _box(row: dict[str, Any]) -> Box:
    begin, end = ([row[f"{axis}_{side}"] for axis in "zyx"] for side in ("begin", "end"))
    return Box.between((begin[0], begin[1], begin[2]), (end[0], end[1], end[2]))
