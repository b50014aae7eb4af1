"""Why supervoxels are one object: the links of a solution, looked up by object or by supervoxel.

All functions but `work_of` take the work folder of a reconciliation, and raise StateError where it holds no solution.
What they tell is the solution's; whether the volume is of it, `check_written` knows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from apps.core.errors import DataError, StateError
from apps.reconciliation.box_records import written_by
from apps.reconciliation.settings import IN_THE_MAKING, MANIFEST
from apps.reconciliation.solution import OBJECT, Solution

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 1 << 22

Ids = NDArray[np.uint64]


def work_of(segmentation: Path) -> Path | None:
    """The work folder of the reconciliation that wrote NAME.zarr; None where there is none.

    NAME-reconciliation, or NAME-deployment/reconciliation where `ensemble deploy` wrote it.
    """
    own = segmentation.with_name(f"{segmentation.stem}-reconciliation")
    deployed = segmentation.with_name(f"{segmentation.stem}-deployment") / "reconciliation"
    return next((place for place in (own, deployed) if (place / "solution").is_dir()), None)


def check_written(work: str | Path, segmentation: Path) -> str:
    """Identity of the solution, by which the segmentation is written.

    Raises StateError where that is written by another one, as when nothing was relabelled since `solve`.
    """
    folder, now = Path(work), _open(work).record.identity
    written = written_by(folder / MANIFEST)
    if written is None:
        state = f"is not of the solution in {folder}, by which nothing is written yet"
    elif written != now:
        state = f"was written before the solution that is in {folder} now, whose links tell of a volume not there yet"
    elif (folder / IN_THE_MAKING).exists():  # a kill may have come after the manifest and before the volume's name
        state = f"may be of another solution than that in {folder}, where a volume that was begun has not its name yet"
    else:
        return now
    raise StateError(
        f"{segmentation}: {state}; run the reconciliation (or `ensemble deploy`) to its end, then ask again"
    )


def supervoxels_of(work: str | Path, object_id: int) -> Ids:
    """The supervoxels of an object, uint64 [n], ascending.  Raises DataError where there is no such object."""
    solution = _open(work)
    found = _members(solution, np.array([object_id], np.uint64))
    if len(found) == 0:
        raise DataError(f"object {object_id}: {solution.folder} has no such object")
    return found


def objects_of(work: str | Path, supervoxels: Collection[int]) -> Ids:
    """The objects of supervoxels, uint64 [n], in their order; 0 where there is no such supervoxel."""
    solution = _open(work)
    nodes = solution.nodes.find(np.fromiter(supervoxels, np.uint64, len(supervoxels)))
    objects = np.zeros(len(nodes), np.uint64)
    known = nodes >= 0
    if known.any():
        objects[known] = np.memmap(solution.folder / OBJECT, np.uint64, "r")[nodes[known]]
    return objects


def read_links(
    work: str | Path,
    *,
    objects: Collection[int] = (),
    supervoxels: Collection[int] = (),
    outward: bool = False,
) -> pd.DataFrame:
    """The links among the supervoxels named, and those of the objects named: the columns of links.parquet.

    Pairs that the rule did not link are there too, with `linked` false and the `reason`.  With `outward`, also the
    pairs of which only one is among them: what an object might have been linked to.
    """
    solution = _open(work)
    members = np.fromiter(supervoxels, np.uint64, len(supervoxels))
    if len(objects):
        members = np.union1d(members, _members(solution, np.fromiter(objects, np.uint64, len(objects))))
    try:
        return _links_among(solution.links_file, np.unique(members), outward)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{solution.links_file}: is damaged ({f'{error}'.strip()}); remove {solution.folder}, and run the "
            "reconciliation again"
        ) from error


def _links_among(file: Path, members: Ids, outward: bool) -> pd.DataFrame:
    """The rows of links.parquet with both ends, or with `outward` at least one, among ascending supervoxels."""
    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    found = [table.schema_arrow.empty_table()]
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        near = [_has_member(group.column(names.index(end)).statistics, members) for end in ("a", "b")]
        # A pair belongs to the subvolume of `a`; inside an object both ends are members.
        if not (any(near) if outward else all(near)):
            continue
        ends = table.read_row_group(number, columns=["a", "b"])
        a, b = (np.isin(ends.column(end).to_numpy(), members) for end in ("a", "b"))
        rows = a | b if outward else a & b
        if rows.any():
            found.append(table.read_row_group(number).filter(pa.array(rows)))
    return pa.concat_tables(found, promote_options="permissive").to_pandas()


def _open(work: str | Path) -> Solution:
    return Solution.expect(Path(work) / "solution")


def _has_member(statistics: pq.Statistics | None, members: Ids) -> bool:
    """Whether a column chunk may hold one of the sorted ids."""
    if statistics is None or not statistics.has_min_max:
        return True
    low = np.searchsorted(members, np.uint64(statistics.min))
    return bool(low < np.searchsorted(members, np.uint64(statistics.max), side="right"))


def _members(solution: Solution, objects: Ids) -> Ids:
    """The supervoxels of all objects, ascending; read block by block, as an object may reach through all subvolumes."""
    first = solution.nodes.find(objects)
    first = first[first >= 0]  # an object's id is that of its first supervoxel
    found = [np.empty(0, np.int64)]
    for start in range(int(first.min()) if len(first) else solution.nodes.count, solution.nodes.count, _BLOCK):
        count = min(_BLOCK, solution.nodes.count - start)
        block = np.fromfile(solution.folder / OBJECT, np.uint64, count, offset=8 * start)
        found.append(np.flatnonzero(np.isin(block, objects)) + start)
    return solution.nodes.supervoxels(np.concatenate(found))
