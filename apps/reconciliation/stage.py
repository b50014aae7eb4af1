"""Reconciliation: the segmentations of overlapping subvolumes become one segmentation with ids that hold everywhere.

Plan: which read boxes overlap.  Do: find the links in each overlap.  Collect: close the links by union-find, give the
objects consecutive 64-bit ids, and write each piece's write box.  The result is the same, byte for byte, in whatever
order the pieces are given.  Memory is bounded by two pieces.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, Any

import fastremap
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.parameters import Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.subvolumes import Subvolume
from apps.core.volumes import Array, Volume, VoxelSize, new_volume, open_volume
from apps.reconciliation.linking import Candidates, LinkRule, find_links, unite


class Piece(Subvolume, frozen=True, kw_only=True):
    """One segmented subvolume."""

    segmentation: Annotated[str, Meta(description="label volume of the read box's shape; ids hold within it only")]


class ReconciliationParameters(LinkRule, frozen=True, kw_only=True):
    """What to merge and where to; the rule's fields say when two objects are one."""

    pieces: Annotated[tuple[Piece, ...], Meta(min_length=1, description="the segmented subvolumes, in any order")]
    box: Annotated[Box, Meta(description="what the merged segmentation covers; the write boxes tile it exactly")]
    output: Annotated[str, Meta(description="the merged segmentation, an OME-Zarr folder ending in .zarr")]
    voxel_size_nm: Annotated[
        VoxelSize | None, Meta(description="zyx in nanometres; that of the first piece by default")
    ] = None

    def check(self) -> None:
        if not self.output.endswith(".zarr"):
            raise ParameterError(f"output {self.output!r}: expected a name that ends in .zarr")
        for piece in self.pieces:
            if not self.box.contains(piece.write_box):
                raise ParameterError(f"{piece.segmentation}: its write_box {piece.write_box} leaves the box {self.box}")
        start, end = _corners([piece.write_box for piece in self.pieces])
        for a, b in _overlapping(start, end):
            names = f"{self.pieces[a].segmentation} and {self.pieces[b].segmentation}"
            raise ParameterError(f"{names}: their write boxes overlap; expected write boxes that tile {self.box}")
        if sum(piece.write_box.size for piece in self.pieces) != self.box.size:
            raise ParameterError(f"pieces: their write boxes leave voxels of {self.box} out; expected them to tile it")


class ReconciliationResult(Result, frozen=True, kw_only=True):
    """The merged segmentation."""

    segmentation: Annotated[str, Meta(description="uint64 OME-Zarr volume of the box's shape, ids 1 to objects")]
    objects: Annotated[int, Meta(description="objects in the merged segmentation")]
    links: Annotated[int, Meta(description="pairs of objects that the rule linked")]
    links_file: Annotated[
        str, Meta(description="Parquet table of all pairs of objects that share voxels, linked or not")
    ]


@dataclass(frozen=True)
class _Opened:
    """A piece with its volume and ids.

    Attributes:
        ids: sorted ids other than 0 in its read box; id `ids[i]` is node `first_node + i` of the union-find.
        written: [len(ids)], true for those with voxels in the write box.
    """

    piece: Piece
    volume: Volume
    ids: Array
    written: NDArray[np.bool_]
    first_node: int

    def nodes(self, ids: Array) -> NDArray[np.int64]:
        return self.first_node + np.searchsorted(self.ids, ids)

    def read(self, box: Box) -> Array:
        """The voxels of `box`, which is in the coordinates of the merged volume."""
        return _read(self.volume, self.piece, box)


def run(parameters: ReconciliationParameters, report: Reporter) -> ReconciliationResult:
    """Merge the pieces into `output`, which appears only when it is complete.

    Raises DataError that names the piece where one is missing, unreadable, or not of its read box's shape.
    """
    pieces = sorted(parameters.pieces, key=lambda piece: piece.write_box.offset)
    volumes = [_open(piece) for piece in pieces]
    voxel_size = _voxel_size(parameters, volumes)
    overlaps = plan(pieces)
    steps = 2 * len(pieces) + len(overlaps)

    links_file = parameters.output.removesuffix(".zarr") + ".links.parquet"
    # The output is opened first: a place that cannot be written is an error now, not after the work.
    with new_volume(parameters.output, parameters.box.shape, np.uint64, voxel_size) as merged:
        opened: list[_Opened] = []
        for piece, volume in zip(pieces, volumes, strict=True):
            report(len(opened), steps, "reading ids")
            opened.append(_index(piece, volume, opened[-1] if opened else None))
        found = []
        for done, (a, b, common) in enumerate(overlaps):
            report(len(pieces) + done, steps, "linking objects")
            found.append(find_links(opened[a].read(common), opened[b].read(common), parameters))
        numbers = collect(opened, overlaps, found)
        oz, oy, ox = parameters.box.offset
        for done, item in enumerate(opened):
            report(steps - len(pieces) + done, steps, "writing")
            new_ids = numbers[item.first_node : item.first_node + len(item.ids)]
            labels = _relabel(item.read(item.piece.write_box), item.ids, new_ids)
            merged.write(item.piece.write_box.translate((-oz, -oy, -ox)), labels)
        write_atomically(links_file, _links_table(opened, overlaps, found))
    report(steps, steps, "done")
    return ReconciliationResult(
        segmentation=parameters.output,
        objects=int(numbers.max(initial=0)),
        links=sum(int(candidates.linked.sum()) for candidates in found),
        links_file=links_file,
    )


def plan(pieces: list[Piece]) -> list[tuple[int, int, Box]]:
    """The pairs of pieces (by index, first < second) whose read boxes overlap, with the common box."""
    start, end = _corners([piece.read_box for piece in pieces])
    pairs = _overlapping(start, end)
    return [(a, b, pieces[a].read_box.intersection(pieces[b].read_box)) for a, b in pairs]


def collect(opened: list[_Opened], overlaps: list[tuple[int, int, Box]], found: list[Candidates]) -> NDArray[np.uint64]:
    """The new id of every node: 1, 2, ... in the order of pieces and their ids; 0 for objects that nobody writes."""
    nodes = opened[-1].first_node + len(opened[-1].ids)
    links = [np.empty((0, 2), np.int64)]
    for (a, b, _), candidates in zip(overlaps, found, strict=True):
        first = opened[a].nodes(candidates.first[candidates.linked])
        second = opened[b].nodes(candidates.second[candidates.linked])
        links.append(np.stack([first, second], axis=1))
    group = unite(nodes, np.concatenate(links))
    written = np.concatenate([item.written for item in opened])
    appears = np.zeros(int(group.max(initial=-1)) + 1, bool)
    appears[group[written]] = True
    number = np.where(appears, np.cumsum(appears), 0).astype(np.uint64)
    return number[group]


def _corners(boxes: list[Box]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([box.offset for box in boxes]), np.array([box.end for box in boxes])


def _overlapping(start: NDArray[np.int64], end: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The pairs (a, b), a < b, of boxes given by corners [n, 3] that share voxels."""
    pairs = []
    for a in range(len(start) - 1):
        common = np.minimum(end[a], end[a + 1 :]) - np.maximum(start[a], start[a + 1 :])
        pairs += [(a, a + 1 + int(b)) for b in np.flatnonzero((common > 0).all(axis=1))]
    return pairs


def _open(piece: Piece) -> Volume:
    volume = open_volume(piece.segmentation)
    if volume.dtype.kind not in "ui":
        raise DataError(f"{piece.segmentation}: has dtype {volume.dtype}; expected integer labels")
    if volume.shape != piece.read_box.shape:
        raise DataError(
            f"{piece.segmentation}: has the shape {volume.shape}; expected {piece.read_box.shape}, that of its "
            f"read box {piece.read_box}"
        )
    return volume


def _voxel_size(parameters: ReconciliationParameters, volumes: list[Volume]) -> VoxelSize:
    if parameters.voxel_size_nm is not None:
        return parameters.voxel_size_nm
    sizes = {volume.voxel_size_nm for volume in volumes}
    size = sizes.pop()
    if sizes or size is None:
        raise ParameterError("voxel_size_nm: the pieces do not give one common voxel size; give it (zyx, nanometres)")
    return size


def _read(volume: Volume, piece: Piece, box: Box) -> Array:
    oz, oy, ox = piece.read_box.offset
    try:
        return volume.read(box.translate((-oz, -oy, -ox)))
    except Exception as error:  # zarr and its codecs raise what they like where a chunk is broken
        raise DataError(
            f"{piece.segmentation}: cannot be read ({type(error).__name__}: {error}); segment {piece.read_box} again"
        ) from error


def _index(piece: Piece, volume: Volume, previous: _Opened | None) -> _Opened:
    data = _read(volume, piece, piece.read_box)
    ids = fastremap.unique(data)
    if ids[0] < 0:
        raise DataError(f"{piece.segmentation}: holds the id {ids[0]}; expected ids from 0 on")
    ids = ids[ids != 0]
    written = np.isin(ids, fastremap.unique(data[piece.write_box.slices(piece.read_box.offset)]))
    return _Opened(piece, volume, ids, written, previous.first_node + len(previous.ids) if previous else 0)


def _relabel(labels: Array, ids: Array, new_ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace sorted `ids` by `new_ids`, and 0 by 0."""
    distinct, inverse = np.unique(labels, return_inverse=True)
    place = np.minimum(np.searchsorted(ids, distinct), max(len(ids) - 1, 0))
    numbers = np.where(distinct == 0, np.uint64(0), new_ids[place] if len(ids) else np.uint64(0))
    relabelled: NDArray[np.uint64] = numbers.astype(np.uint64)[inverse].reshape(labels.shape)
    return relabelled


def _links_table(opened: list[_Opened], overlaps: list[tuple[int, int, Box]], found: list[Candidates]) -> bytes:
    """Parquet: segmentation_a, id_a, segmentation_b, id_b, shared, voxels_a, voxels_b (in the overlap), linked."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(values: list[Any], dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.asarray(value, dtype) for value in values]) if values else np.empty(0, dtype)

    def names(pieces: list[int]) -> Any:
        repeated = zip(pieces, found, strict=True)
        return pa.array([opened[i].piece.segmentation for i, c in repeated for _ in range(len(c.first))], pa.string())

    table = pa.table(
        {
            "segmentation_a": names([a for a, _, _ in overlaps]),
            "id_a": column([c.first for c in found], np.uint64),
            "segmentation_b": names([b for _, b, _ in overlaps]),
            "id_b": column([c.second for c in found], np.uint64),
            "shared": column([c.shared for c in found], np.int64),
            "voxels_a": column([c.first_voxels for c in found], np.int64),
            "voxels_b": column([c.second_voxels for c in found], np.int64),
            "linked": column([c.linked for c in found], bool),
        }
    )
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


STAGE = Stage(
    name="reconciliation",
    summary="Merge the segmentations of overlapping subvolumes into one with ids that hold everywhere.",
    parameters=ReconciliationParameters,
    result=ReconciliationResult,
    run=run,
    example={
        "pieces": [
            {
                "segmentation": "subvolumes/0.zarr",
                "read_box": {"offset": [0, 0, 0], "shape": [64, 64, 72]},
                "write_box": {"offset": [0, 0, 0], "shape": [64, 64, 64]},
            },
            {
                "segmentation": "subvolumes/1.zarr",
                "read_box": {"offset": [0, 0, 56], "shape": [64, 64, 72]},
                "write_box": {"offset": [0, 0, 64], "shape": [64, 64, 64]},
            },
        ],
        "box": {"offset": [0, 0, 0], "shape": [64, 64, 128]},
        "output": "segmentation.zarr",
    },
)
