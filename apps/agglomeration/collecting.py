"""Action `merge`: the scores of all blocks become a decision, and tables that say what was decided and why.

It leaves `edges.parquet` (every decision point with its scores, `refused`: why it is no merger, empty where it is one),
`objects.parquet` (every object with the ids it is made of), `merges.parquet` (the mergers, strongest first), and
last `merge.json`, the record that relabelling goes by, with `mapping.npz`.
"""

from __future__ import annotations

import zipfile
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.agglomeration.inputs import Inputs
from apps.agglomeration.merging import MERGED, Edges, Merging, judge, merge, relabelled
from apps.agglomeration.scoring import EDGES, VOXELS, Scorer
from apps.agglomeration.stamps import made_as
from apps.agglomeration.tables import read_table, unit_path, write_table
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.files import file_in_the_making
from apps.core.parameters import Parameters, json_hash
from apps.core.progress import Reporter
from apps.reconciliation.box_records import written_by
from apps.reconciliation.evidence import work_of
from apps.reconciliation.pair_lists import read_pairs
from apps.reconciliation.settings import MANIFEST

RECORD, MAPPING = "merge.json", "mapping.npz"
EDGES_TABLE, MERGES_TABLE, OBJECTS_TABLE = "edges.parquet", "merges.parquet", "objects.parquet"


class MergeRecord(Parameters, frozen=True, kw_only=True):
    """What `merge` decided, and on what grounds."""

    identity: Annotated[str, Meta(description="hash of all that the decision and the new volume depend on")]
    segmentation: Annotated[str, Meta(description="the segmentation that was agglomerated")]
    solution: Annotated[
        str | None, Meta(description="identity of the reconciliation's solution that it was written by; null: of none")
    ] = None
    volume: Annotated[
        str | None, Meta(description="what tells that segmentation from one made anew; null: of an earlier version")
    ] = None
    points: Annotated[int, Meta(description="decision points")]
    scored: Annotated[int, Meta(description="those that were flooded from both sides")]
    merges: Annotated[int, Meta(description="those whose two objects became one on their evidence")]
    refused: Annotated[dict[str, int], Meta(description="the others, by why they are none")]
    steps: Annotated[int, Meta(description="looks of the network at all of them")]
    base_objects: Annotated[int, Meta(description="objects of the segmentation")]
    objects: Annotated[int, Meta(description="objects after agglomeration")]
    largest: Annotated[int, Meta(description="ids in the object that is made of most")]


@dataclass(frozen=True)
class Tables:
    """Where the tables of an agglomeration are."""

    folder: Path

    @property
    def edges(self) -> Path:
        return self.folder / EDGES_TABLE

    @property
    def merges(self) -> Path:
        return self.folder / MERGES_TABLE

    @property
    def objects(self) -> Path:
        return self.folder / OBJECTS_TABLE


def collect(inputs: Inputs, report: Reporter) -> MergeRecord:
    """Decide on all decision points.  Where the very same was decided before, that stands.

    Raises StateError that names the block where one has no scores, or scores of other parameters or voxels, and
    DataError that names a pair of objects that are not there or, to be cut, do not touch; what was decided then stays.
    """
    parameters = inputs.parameters
    scorer, tables = Scorer(inputs), Tables(parameters.work_folder)
    volume = made_as(inputs.segmentation)  # before its voxels are looked at
    contents = []
    for number in range(len(inputs.blocks)):
        report(number, 2 * len(inputs.blocks), "collecting scores")
        contents.append(_content(scorer, number))
    forbidden, cut = read_pairs(parameters.forbidden), read_pairs(parameters.cut)
    identity = json_hash([scorer.plan, contents, astuple(parameters.rule), forbidden.tolist(), cut.tolist()])
    known, solution = _known(tables), _solution_of(parameters.segmentation)
    if known is not None and known.identity == identity:
        if (known.solution, known.volume) != (solution, volume):  # which gave the same voxels
            known = replace(known, solution=solution, volume=volume)
            known.save(parameters.work_folder / RECORD)
        return known
    record = replace(_decide(inputs, scorer, tables, identity, forbidden, cut, report), volume=volume)
    record.save(parameters.work_folder / RECORD)
    return record


def _content(scorer: Scorer, number: int) -> str:
    """Hash of the voxels that a block's scores are of.  Raises StateError where those to decide by are not there."""
    plan, content = scorer.marks(number)
    if plan is None or content is None:
        what = "has no scores"
    elif plan != scorer.plan:
        what = "has scores of other parameters or another network"
    elif content != scorer.content(number):
        what = "has scores of other voxels: the segmentation, the image or a mask was written since"
    else:
        return content
    inputs = scorer.inputs
    where = f"block {number} ({inputs.blocks[number]}) of {inputs.parameters.segmentation}"
    raise StateError(f"{where}: {what}; run the action score for it")


def _known(tables: Tables) -> MergeRecord | None:
    """What was decided, where all that was written of it is there and can be opened."""
    from pyarrow import ArrowException, parquet

    try:
        record = read_record(tables.folder)
        read_mapping(tables.folder)
        for table in (tables.edges, tables.merges, tables.objects):
            parquet.read_schema(table)
    except (DataError, ParameterError, OSError, ArrowException):
        return None
    return record


def read_record(work: Path) -> MergeRecord | None:
    """What was decided; None where nothing was."""
    path = work / RECORD
    return MergeRecord.load(path) if path.is_file() else None


def read_mapping(work: Path) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """(base, object): ascending ids of the segmentation that became part of another, and the id of that."""
    path = work / MAPPING
    try:
        with np.load(path, allow_pickle=False) as file:
            return file["base"], file["object"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is missing or damaged ({error}); run the action merge") from error


def _decide(
    inputs: Inputs,
    scorer: Scorer,
    tables: Tables,
    identity: str,
    forbidden: NDArray[np.uint64],
    cut: NDArray[np.uint64],
    report: Reporter,
) -> MergeRecord:
    import pyarrow as pa

    parameters, blocks = inputs.parameters, len(inputs.blocks)
    found, counted = [], _Counts()
    for number in range(blocks):
        report(blocks + number, 2 * blocks, "collecting scores")
        table = read_table(unit_path(scorer.folder, number, EDGES))
        found.append(table.replace_schema_metadata(None))
        voxels = read_table(unit_path(scorer.folder, number, VOXELS))
        counted.add(voxels.column("id").to_numpy(), voxels.column("voxels").to_numpy())
    table = pa.concat_tables(found)
    edges = edges_of(table)
    counted.close()
    _check_pairs(edges, counted.ids, forbidden, cut)
    (parameters.work_folder / RECORD).unlink(missing_ok=True)
    verdicts = np.array(table.column("verdict").to_pylist(), object)
    done = merge(edges, judge(edges, parameters.rule, verdicts), forbidden, cut)
    taken = done.refused == MERGED
    with file_in_the_making(parameters.work_folder / MAPPING) as path, path.open("wb") as stream:
        np.savez(stream, base=done.base, object=done.object)
    table = table.append_column("refused", pa.array(done.refused.tolist(), pa.string()))
    table = table.append_column("object", pa.array(_object_of(edges, taken, done), pa.uint64()))
    order = np.lexsort((table.column("x"), table.column("y"), table.column("z"), edges.b, edges.a))
    write_table(tables.edges, table.take(order))
    strongest = np.lexsort((edges.b, edges.a, -edges.iou))
    write_table(tables.merges, table.take(strongest[taken[strongest]]).drop_columns(["verdict", "refused"]))
    objects, largest = _objects_table(counted, done)
    write_table(tables.objects, objects)
    reasons, numbers = np.unique(done.refused[~taken].astype(str), return_counts=True)
    steps = [table.column(name).to_numpy(zero_copy_only=False) for name in ("from_a_steps", "from_b_steps")]
    return MergeRecord(
        identity=identity,
        segmentation=str(Path(parameters.segmentation).absolute()),
        solution=_solution_of(parameters.segmentation),
        points=len(edges.a),
        scored=int(np.count_nonzero(edges.scored)),
        merges=int(np.count_nonzero(taken)),
        refused=dict(zip(reasons.tolist(), numbers.tolist(), strict=True)),
        steps=int(sum(np.nansum(np.asarray(column, float)) for column in steps)),
        base_objects=len(counted.ids),
        objects=len(objects),
        largest=largest,
    )


def _check_pairs(edges: Edges, ids: NDArray[np.uint64], forbidden: NDArray[np.uint64], cut: NDArray[np.uint64]) -> None:
    """Raise DataError where a pair is none of what is there: one that does nothing is a mistake."""
    missing = forbidden[~np.isin(forbidden, ids)]
    if len(missing):
        raise DataError(f"forbidden: the segmentation has no object {missing[0]}; remove its pair")
    near = np.isin(edges.a, cut[:, 0])
    known = set(zip(edges.a[near].tolist(), edges.b[near].tolist(), strict=True))
    for a, b in cut.tolist():
        if (a, b) not in known:
            raise DataError(
                f"cut: the objects {a} and {b} have no decision point, so there is no evidence to leave out; remove "
                "the pair"
            )


def _solution_of(segmentation: str) -> str | None:
    work = work_of(Path(segmentation))
    return None if work is None else written_by(work / MANIFEST)


def edges_of(table: Any) -> Edges:
    """The scores of a table of edges (pyarrow) that the rule looks at."""

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table.column(name).to_numpy(zero_copy_only=False), np.float64)

    shares = [column(f"from_{side}_recovers_{other}") for side in "ab" for other in "ab"]
    return Edges(
        a=table.column("a").to_numpy(),
        b=table.column("b").to_numpy(),
        scored=np.array([verdict == "scored" for verdict in table.column("verdict").to_pylist()], bool),
        iou=column("iou"),
        recovered=np.minimum.reduce(shares),
        deleted=np.maximum(column("from_a_deleted"), column("from_b_deleted")),
    )


class _Counts:
    """Voxels of every object, summed over blocks."""

    def __init__(self) -> None:
        self.ids, self.voxels = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._waiting: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
        self._rows = 0

    def add(self, ids: NDArray[np.uint64], voxels: NDArray[np.int64]) -> None:
        self._waiting.append((ids, voxels))
        self._rows += len(ids)
        if self._rows > max(1_000_000, len(self.ids)):
            self.close()

    def close(self) -> None:
        """Sum up what was added."""
        ids = np.concatenate([self.ids, *(item[0] for item in self._waiting)])
        voxels = np.concatenate([self.voxels, *(item[1] for item in self._waiting)])
        self.ids, place = np.unique(ids, return_inverse=True)
        self.voxels = np.zeros(len(self.ids), np.int64)
        np.add.at(self.voxels, place, voxels)
        self._waiting, self._rows = [], 0


def _object_of(edges: Edges, taken: NDArray[np.bool_], done: Merging) -> list[int | None]:
    """The object that both ids of an edge belong to now; None where they belong to two."""
    one, other = (relabelled(ids, done.base, done.object) for ids in (edges.a, edges.b))
    return [a if a == b else None for a, b in zip(one.tolist(), other.tolist(), strict=True)]


def _objects_table(counted: _Counts, done: Merging) -> tuple[Any, int]:
    """(table of object uint64, base list of uint64, voxels int64, ascending; the longest list's length)."""
    import pyarrow as pa

    now = relabelled(counted.ids, done.base, done.object)
    order = np.lexsort((counted.ids, now))
    now, base, voxels = now[order], counted.ids[order], counted.voxels[order]
    first = np.flatnonzero(np.r_[True, now[1:] != now[:-1]]) if len(now) else np.zeros(0, np.int64)
    bounds = np.r_[first, len(now)]
    lists = pa.LargeListArray.from_arrays(pa.array(bounds, pa.int64()), pa.array(base, pa.uint64()))
    sums = np.add.reduceat(voxels, first) if len(now) else np.zeros(0, np.int64)
    table = pa.table({"object": pa.array(now[first], pa.uint64()), "base": lists, "voxels": pa.array(sums, pa.int64())})
    return table, int(np.diff(bounds).max(initial=0))
