"""Why voxels are one object: from an object of a final segmentation down to the links of its supervoxels.

An agglomerated object is made of objects of the segmentation before it (base objects), joined at decision points; such
a one of supervoxels, objects of single subvolumes, joined by links of reconciliation.  Only tables are read, no volume.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apps.agglomeration.collecting import EDGES_TABLE, OBJECTS_TABLE, MergeRecord, read_record
from apps.agglomeration.relabelling import published
from apps.agglomeration.tables import read_table
from apps.core.errors import DataError, StateError
from apps.core.supervoxels import split_ids
from apps.reconciliation.evidence import check_written, objects_of, read_links, supervoxels_of, work_of


@dataclass(frozen=True)
class Supervoxel:
    """An object of one subvolume: its number, and its id in the piece."""

    id: int
    subvolume: int
    local: int


@dataclass(frozen=True)
class BaseObject:
    """An object before agglomeration.

    Attributes:
        supervoxels: what it is made of.
        links: pairs of these that share voxels of an overlap: columns of reconciliation's links.parquet.
    """

    id: int
    supervoxels: list[Supervoxel]
    links: list[dict[str, Any]]


@dataclass(frozen=True)
class Explanation:
    """What an object of a segmentation is made of, and on what evidence.

    Attributes:
        object: its id; `asked` may be that of a base object, or of a supervoxel, that became part of it.
        voxels: of it, where agglomeration counted them.
        base: the objects it was made of by agglomeration; the object itself alone where there was none.
        decision_points: those between two of these: rows of edges.parquet; `refused` is empty where it joined them.
        agglomeration, reconciliation: the folders whose tables tell it; None where there are none.
    """

    asked: int
    object: int
    voxels: int | None
    base: list[BaseObject]
    decision_points: list[dict[str, Any]]
    agglomeration: str | None
    reconciliation: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def explain(
    segmentation: str | Path, asked: int, agglomeration: Path | None = None, reconciliation: Path | None = None
) -> Explanation:
    """Explain the object `asked` of a segmentation NAME.zarr.

    The folders of evidence are by default NAME-agglomeration, and of the segmentation before that NAME-reconciliation
    (NAME-deployment/reconciliation where `ensemble deploy` made it).
    Raises StateError where there is no such folder with a decision or solution, or where the decision or solution there
    is not that which the segmentation, or the one that was agglomerated, was written by; DataError where no object has
    that id.
    """
    target = Path(segmentation)
    if not 0 < asked < 1 << 64:
        raise DataError(f"object {asked}: is no id; expected one of {target}, 1 to 2^64 - 1")
    folder = agglomeration or target.with_name(f"{target.stem}-agglomeration")
    record = read_record(folder)
    if agglomeration is not None and record is None:
        raise StateError(f"{folder}: is no folder of an agglomeration that was decided; expected NAME-agglomeration")
    _check_written(folder, record, target)
    before = target if record is None else _segmentation_before(target, Path(record.segmentation))
    links = _links_of(before, reconciliation, record)
    start = asked if links is None else _object_of(links, asked)
    if record is None:
        object_id, voxels, members, points = start, None, [start], []
    else:
        object_id, voxels, members = _members(folder, start, asked, target)
        points = _points(folder, members)
    base = [BaseObject(member, [], []) for member in members] if links is None else _trace(links, members)
    return Explanation(
        asked=asked,
        object=object_id,
        voxels=voxels,
        base=base,
        decision_points=points,
        agglomeration=None if record is None else str(folder),
        reconciliation=None if links is None else str(links),
    )


def _check_written(folder: Path, record: MergeRecord | None, target: Path) -> None:
    """Raise StateError where the tables of an agglomeration tell of another volume than the one that has its name."""
    written = published(folder)
    if written == (None if record is None else record.identity):
        return
    if record is None:
        state = f"is of a decision whose tables are no more: a merge that was begun in {folder} has not ended"
    elif written is None:
        state = f"is not of the decision in {folder}, by which nothing is written yet"
    else:
        state = f"was written before the decision that is in {folder} now, whose tables tell of a volume not there yet"
    raise StateError(f"{target}: {state}; run the agglomeration to its end (merge, relabel, finish), then ask again")


def _segmentation_before(target: Path, recorded: Path) -> Path:
    """What was agglomerated; where all was moved together since, what has its name beside the new segmentation."""
    beside = target.with_name(recorded.name)
    return beside if beside.exists() and not recorded.exists() else recorded


def _links_of(segmentation: Path, given: Path | None, record: MergeRecord | None) -> Path | None:
    """The folder of a segmentation's reconciliation; None where there is none and agglomeration's record is enough."""
    folder = given or work_of(segmentation)
    if folder is not None and (folder / "solution").is_dir():
        solution = check_written(folder, segmentation)
        if record is not None and record.solution not in (None, solution):
            raise StateError(
                f"{segmentation}: was reconciled anew after it was agglomerated, and the links in {folder} are of what "
                "it is now; run the agglomeration again, then ask again"
            )
        return folder
    if given is None and record is not None:
        return None
    folder = folder or segmentation.with_name(f"{segmentation.stem}-reconciliation")
    raise StateError(
        f"{segmentation}: has no evidence of its objects ({folder} is no folder of a reconciliation); give a "
        "segmentation that `ensemble deploy`, or the stages reconciliation and agglomeration, wrote"
    )


def _object_of(links: Path, asked: int) -> int:
    """The object of reconciliation that an id, of it or of one of its supervoxels, belongs to."""
    found = int(objects_of(links, [asked])[0])
    if not found:
        raise DataError(f"object {asked}: {links} has no such object, and no supervoxel of that id")
    return found


def _members(folder: Path, start: int, asked: int, target: Path) -> tuple[int, int, list[int]]:
    """(object, voxels, base objects) of the object that a base object belongs to."""
    table = read_table(folder / OBJECTS_TABLE)
    base = table.column("base").combine_chunks()
    flat = base.flatten().to_numpy()
    place = np.flatnonzero(flat == np.uint64(start))
    if not len(place):
        raise DataError(f"object {asked}: {target} has no such object, and none that it is part of")
    lengths = base.value_lengths().to_numpy()
    row = int(np.searchsorted(np.cumsum(lengths), place[0], side="right"))
    return table.column("object")[row].as_py(), table.column("voxels")[row].as_py(), base[row].as_py()


def _points(folder: Path, members: list[int]) -> list[dict[str, Any]]:
    """The decision points between two of the base objects, those that joined them first, strongest first."""
    import pyarrow as pa

    table = read_table(folder / EDGES_TABLE)
    known = np.array(members, np.uint64)
    inside = np.isin(table.column("a").to_numpy(), known) & np.isin(table.column("b").to_numpy(), known)
    rows: list[dict[str, Any]] = table.filter(pa.array(inside)).to_pylist()
    return sorted(rows, key=lambda row: (row["refused"] != "", -(row["iou"] or 0.0), row["a"], row["b"]))


def _trace(links: Path, members: list[int]) -> list[BaseObject]:
    """The supervoxels and links of objects of a reconciliation."""
    every = np.concatenate([supervoxels_of(links, member) for member in members])
    owners = dict(zip(every.tolist(), objects_of(links, every.tolist()).tolist(), strict=True))
    parts: dict[int, list[Supervoxel]] = defaultdict(list)
    subvolumes, local = split_ids(every)
    for number, subvolume, own in zip(every.tolist(), subvolumes.tolist(), local.tolist(), strict=True):
        parts[owners[number]].append(Supervoxel(number, subvolume, own))
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_links(links, supervoxels=every.tolist()).to_dict("records"):
        if owners[row["a"]] == owners[row["b"]]:
            found[owners[row["a"]]].append({str(name): _plain(value) for name, value in row.items()})
    return [BaseObject(member, parts[member], found[member]) for member in members]


def _plain(value: Any) -> Any:
    """A value of a pandas row as JSON can say it."""
    if isinstance(value, float) and np.isnan(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
