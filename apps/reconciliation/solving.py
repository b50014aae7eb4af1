"""The solver: from what was observed to which supervoxel is of which object.

Plan: number the objects of all subvolumes.  Do: stream the units in their order, apply the rule to a batch of pairs at
a time, write them down as evidence, and close the links in a union-find on disk.  Collect: the mapping, and the
objects.  Nothing but one batch, a window of objects and a number per subvolume is held; the bytes written depend on
what was observed, on the rule and the lists, and on nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.parameters import json_hash
from apps.core.progress import Reporter
from apps.core.supervoxels import split_ids
from apps.reconciliation.batches import Batch, read_batches
from apps.reconciliation.keeping_apart import Links, refuse_links
from apps.reconciliation.linking import CUT, FORBIDDEN, LINKED, LinkRule, Reasons, apply_rule
from apps.reconciliation.nodes import NodeTable
from apps.reconciliation.observations import Observations
from apps.reconciliation.solution import LINKS, LOCAL, OBJECT, OBJECTS, SEAMS, STARTS, Summary
from apps.reconciliation.tables import OBJECTS_SCHEMA, TableWriter, link_rows, links_writer, seam_rows, seams_writer
from apps.reconciliation.union import BLOCK, UnionFind, parent_dtype

# Objects that are counted at once: 16 bytes each.
WINDOW = 1 << 26

Ids = NDArray[np.uint64]


@dataclass(frozen=True)
class Rules:
    """What decides on a link.

    Attributes:
        rule: see LinkRule.
        cut: uint64 [n, 2], pairs of supervoxels, a < b, whose link is not to be used.
        forbidden: uint64 [m, 2], pairs that must not be in one object.
    """

    rule: LinkRule
    cut: Ids = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    forbidden: Ids = field(default_factory=lambda: np.empty((0, 2), np.uint64))

    def hash(self) -> str:
        lists = [hashlib.sha256(pairs.tobytes()).hexdigest() for pairs in (self.cut, self.forbidden)]
        return json_hash([self.rule.to_dict(), lists])


@dataclass(frozen=True)
class _Judge:
    """The rule with the links that are not to be used, as sets; decides batch by batch."""

    rule: LinkRule
    cut: Ids
    refused: Ids

    def __call__(self, batch: Batch, face: NDArray[np.int64]) -> Reasons:
        reasons = apply_rule(batch.pairs, face, self.rule)
        for pairs, reason in ((self.cut, CUT), (self.refused, FORBIDDEN)):
            if len(pairs):
                linked = np.flatnonzero(reasons == LINKED)
                a, b = batch.supervoxels()
                reasons[linked[_among(a[linked], b[linked], pairs)]] = reason
        return reasons


def solve(observations: Observations, rules: Rules, folder: Path, report: Reporter, window: int = WINDOW) -> Summary:
    """Write links, seams, mapping and objects into an empty folder, and return what was counted.

    Raises DataError where a unit is missing or damaged, or where a pair of `rules` is of supervoxels that are not there
    or, to be cut, share no voxels.
    """
    total = 3 * len(observations) + 1
    (folder / "mapping").mkdir()
    scratch = folder / "scratch"
    scratch.mkdir()
    check_cut(observations, rules.cut)
    nodes = _number_objects(observations, folder, report, total)
    enemies = _nodes_of(rules.forbidden, nodes)
    union, counts = _link(observations, rules, nodes, folder, report, total)
    refused = _refused(observations, rules, nodes, union, enemies)
    if len(refused):
        union.close()
        union, counts = _link(observations, rules, nodes, folder, report, total, refused)
    _write_mapping(union, nodes, folder)
    union.close()
    objects = _write_objects(nodes, folder, window)
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()
    report(total, total, "done")
    return counts.summary(refused=len(refused), supervoxels=nodes.count, objects=objects)


def check_cut(observations: Observations, cut: Ids) -> None:
    """Raise DataError where a pair is none of objects that share voxels: a cut that does nothing is a mistake."""
    subvolumes, local = split_ids(cut)
    for subvolume in np.unique(subvolumes[:, 0]):
        rows = np.flatnonzero(subvolumes[:, 0] == subvolume)
        known: set[tuple[int, int, int]] = set()
        if subvolume < len(observations):
            unit = observations.unit(int(subvolume))
            neighbour = np.repeat(unit.faces.neighbour, unit.faces.pairs)
            mine = np.isin(unit.pairs.a, local[rows, 0])
            columns = (unit.pairs.a[mine], neighbour[mine], unit.pairs.b[mine])
            known = set(zip(*(column.tolist() for column in columns), strict=True))
        for row in rows:
            if (int(local[row, 0]), int(subvolumes[row, 1]), int(local[row, 1])) not in known:
                raise DataError(
                    f"cut: the supervoxels {cut[row, 0]} and {cut[row, 1]} share no voxels, so there is no link to "
                    "cut; remove the pair"
                )


def _nodes_of(forbidden: Ids, nodes: NodeTable) -> NDArray[np.int64]:
    """The forbidden pairs as nodes, int64 [m, 2]."""
    found = nodes.find(forbidden.ravel())
    if (found < 0).any():
        raise DataError(f"forbidden: there is no supervoxel {forbidden.ravel()[np.argmin(found)]}; remove its pair")
    return found.reshape(-1, 2)


def _number_objects(observations: Observations, folder: Path, report: Reporter, total: int) -> NodeTable:
    """Write the ids of all objects, and their voxels in write boxes, one subvolume after the other."""
    starts = np.zeros(len(observations) + 1, np.int64)
    dense = np.zeros(len(observations), bool)
    with (folder / LOCAL).open("wb") as local, _written(folder).open("wb") as written:
        for number in range(len(observations)):
            report(number, total, "numbering objects")
            objects = observations.objects(number)
            count = len(objects.local)
            starts[number + 1] = starts[number] + count
            dense[number] = count == 0 or objects.local[-1] == count
            local.write(objects.local.astype("<u4", copy=False).data)
            written.write(objects.written.astype("<u4", copy=False).data)
    starts.tofile(folder / STARTS)
    return NodeTable(starts, dense, folder / LOCAL)


@dataclass
class _Counts:
    """Sums over batches."""

    observations: int = 0
    links: int = 0
    faces: int = 0
    both: int = 0
    linked_voxels: int = 0
    vi: float = 0.0
    worst: tuple[float, int, int] | None = None

    def add(self, seams: dict[str, Any]) -> None:
        both = seams["both"]
        self.observations += int(seams["pairs"].sum())
        self.links += int(seams["links"].sum())
        self.faces += len(both)
        self.both += int(both.sum())
        self.linked_voxels += int(seams["linked_voxels"].sum())
        self.vi += float((seams["vi"] * both).sum())
        if (both > 0).any():
            face = int(np.nanargmin(seams["agreement"]))
            first, second = (int(seams[name][face]) for name in ("subvolume_a", "subvolume_b"))
            found = (float(seams["agreement"][face]), first, second)
            self.worst = found if self.worst is None else min(self.worst, found)

    def summary(self, *, refused: int, supervoxels: int, objects: int) -> Summary:
        return Summary(
            observations=self.observations,
            links=self.links,
            refused=refused,
            supervoxels=supervoxels,
            objects=objects,
            faces=self.faces,
            both_voxels=self.both,
            linked_voxels=self.linked_voxels,
            worst_agreement=self.worst[0] if self.worst else None,
            worst_face=self.worst[1:] if self.worst else None,
            mean_vi=self.vi / self.both if self.both else None,
        )


def _link(
    observations: Observations,
    rules: Rules,
    nodes: NodeTable,
    folder: Path,
    report: Reporter,
    total: int,
    refused: Ids | None = None,
) -> tuple[UnionFind, _Counts]:
    """Judge all pairs and write them down; close the links."""
    union, counts = UnionFind(folder / "scratch" / "parents", nodes.count), _Counts()
    judge = _Judge(rules.rule, rules.cut, rules.forbidden[:0] if refused is None else refused)
    with links_writer(folder / LINKS) as links, seams_writer(folder / SEAMS) as seams:
        for batch in read_batches(observations):
            face = batch.face()
            reasons = judge(batch, face)
            links.write(link_rows(batch, reasons))
            rows = seam_rows(batch, face, reasons)
            seams.write(rows)
            counts.add(rows)
            union.union(*_nodes(batch, face, reasons == LINKED, nodes))
            report(len(observations) + 2 * batch.units, total, "linking objects")
    return union, counts


def _nodes(
    batch: Batch, face: NDArray[np.int64], rows: NDArray[np.bool_], nodes: NodeTable
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nodes of those pairs that `rows` [n] chooses."""
    sizes = np.bincount(face[rows], minlength=len(batch.owner))
    first = nodes.nodes(batch.owner, sizes, batch.pairs.a[rows])
    return first, nodes.nodes(batch.faces.neighbour, sizes, batch.pairs.b[rows])


def _refused(
    observations: Observations, rules: Rules, nodes: NodeTable, union: UnionFind, forbidden: NDArray[np.int64]
) -> Ids:
    """The links to refuse, uint64 [n, 2], so that no object holds a forbidden pair.

    The links of the groups that hold one are looked at once more, and are held in memory.
    """
    if len(forbidden) == 0:
        return rules.forbidden
    roots = union.find(forbidden.ravel()).reshape(-1, 2)
    broken = roots[:, 0] == roots[:, 1]
    if not broken.any():
        return rules.forbidden[:0]
    groups = np.unique(roots[broken])
    judge = _Judge(rules.rule, rules.cut, rules.forbidden[:0])
    found = [np.empty((0, 3), np.int64)]
    ids = [np.empty((0, 2), np.uint64)]
    for batch in read_batches(observations):
        face = batch.face()
        rows = judge(batch, face) == LINKED
        first, second = _nodes(batch, face, rows, nodes)
        inside = np.isin(union.find(first), groups)
        found.append(np.stack([first, second, batch.pairs.shared[rows].astype(np.int64)], axis=1)[inside])
        a, b = batch.supervoxels()
        ids.append(np.stack([a[rows][inside], b[rows][inside]], axis=1))
    links = np.concatenate(found)
    refused = refuse_links(Links(links[:, 0], links[:, 1], links[:, 2]), forbidden[broken])
    answer: Ids = np.concatenate(ids)[refused]
    return answer


def _write_mapping(union: UnionFind, nodes: NodeTable, folder: Path) -> None:
    """Write the object id of each node: the supervoxel id of its root; and keep the roots for the counts."""
    with (folder / OBJECT).open("wb") as stream:
        for _, roots in union.roots():
            stream.write(nodes.supervoxels(roots).astype("<u8", copy=False).data)


def _write_objects(nodes: NodeTable, folder: Path, window: int) -> int:
    """Write the objects with voxels in a write box, by ascending id; returns how many there are.

    Roots are taken window by window, and only nodes from a window's first on can have their root in it.
    """
    count = 0
    parents = folder / "scratch" / "parents"
    with TableWriter(folder / OBJECTS, OBJECTS_SCHEMA) as writer:
        for first in range(0, max(nodes.count, 1), window):
            size = min(window, nodes.count - first)
            supervoxels, voxels = np.zeros(size, np.int64), np.zeros(size, np.int64)
            for roots, written in _sweep(parents, _written(folder), first, nodes.count):
                inside = (roots >= first) & (roots < first + size)
                place = roots[inside] - first
                np.add.at(supervoxels, place, 1)
                np.add.at(voxels, place, written[inside])
            rows = np.flatnonzero(voxels)
            for start in range(0, len(rows), 1 << 20):
                part = rows[start : start + (1 << 20)]
                ids = nodes.supervoxels(part + first)
                writer.write({"object": ids, "supervoxels": supervoxels[part], "own_voxels": voxels[part]})
            count += len(rows)
    return count


def _sweep(
    parents: Path, written: Path, first: int, count: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(roots, voxels in the write box) of the nodes from `first` on, block by block."""
    dtype = parent_dtype(count)
    for start in range(first, count, BLOCK):
        size = min(BLOCK, count - start)
        roots = np.fromfile(parents, dtype, size, offset=start * dtype.itemsize)
        yield roots.astype(np.int64), np.fromfile(written, np.uint32, size, offset=4 * start).astype(np.int64)


def _among(a: Ids, b: Ids, pairs: Ids) -> NDArray[np.bool_]:
    """True where (a[k], b[k]) is a row of `pairs`."""
    found = np.isin(a, pairs[:, 0])
    rows = np.flatnonzero(found)
    known = set(map(tuple, pairs[np.isin(pairs[:, 0], a[rows])].tolist()))
    found[rows] = [pair in known for pair in zip(a[rows].tolist(), b[rows].tolist(), strict=True)]
    return found


def _written(folder: Path) -> Path:
    return folder / "scratch" / "written"
