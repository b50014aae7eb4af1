"""Volumes and observations made for the tests of reconciliation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastremap
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.parts import Part
from apps.core.progress import silent
from apps.core.subvolumes import SubvolumeGrid, piece_path
from apps.core.volumes import open_volume, write_volume
from apps.evaluation.metrics import score
from apps.reconciliation.comparing import Face, join_faces
from apps.reconciliation.observations import Objects, Pairs, Unit
from apps.reconciliation.settings import ReconciliationParameters, ReconciliationResult
from apps.reconciliation.stage import run

VOXEL_SIZE = (8.0, 8.0, 8.0)


def tubes(shape: Triple) -> NDArray[np.uint32]:
    """Objects that run along z, 5 x 5 voxels each with a wall of one voxel, ids from 1, zyx."""
    _, y, x = np.indices(shape)
    wall = (y % 6 == 0) | (x % 6 == 0)
    return np.where(wall, 0, 1 + (y // 6) * (shape[2] // 6 + 1) + x // 6).astype(np.uint32)


def write_piece(folder: Path, number: int, labels: NDArray[Any]) -> None:
    path = piece_path(folder, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, labels, VOXEL_SIZE)


def cut_up(folder: Path, truth: NDArray[Any], grid: SubvolumeGrid, gap: int = 1) -> None:
    """Write pieces of `truth` (first voxel at the box's offset) with ids of their own, `gap` apart and shuffled."""
    rng = np.random.default_rng(0)
    for number, subvolume in enumerate(grid):
        labels = fastremap.renumber(truth[subvolume.read_box.slices(grid.box.offset)])[0]
        shuffled = np.concatenate([[0], gap * (1 + rng.permutation(int(labels.max())))]).astype(np.uint32)
        write_piece(folder, number, shuffled[labels])


def small(tmp_path: Path, gap: int = 1, **chosen: Any) -> ReconciliationParameters:
    """Four tubes in four subvolumes, cut along z and x."""
    box = Box.of((0, 0, 0), (32, 13, 32))
    grid = SubvolumeGrid(box=box, shape=(16, 16, 16), overlap=(4, 0, 4))
    cut_up(tmp_path / "pieces", tubes(box.shape), grid, gap)
    given = {"grid": grid, "pieces": str(tmp_path / "pieces"), "output": str(tmp_path / "merged.zarr")}
    return ReconciliationParameters(**{**given, "min_overlap_voxels": 10, **chosen})


def digest(folder: Path) -> str:
    """Hash of all files of a folder, names and bytes."""
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return total.hexdigest()


def pairs_of(*rows: tuple[int, int, int]) -> Pairs:
    """Pairs (a, b, shared) of objects that lie in the overlap with just those voxels."""
    a, b, shared = np.array(rows, np.uint32).reshape(-1, 3).T
    voxels_a = np.array([shared[a == label].sum() for label in a], np.uint32)
    voxels_b = np.array([shared[b == label].sum() for label in b], np.uint32)
    return Pairs(a, b, shared, voxels_a, voxels_b)


@dataclass(frozen=True)
class MadeObservations:
    """Observations that are held in memory."""

    units: list[Unit]

    def __len__(self) -> int:
        return len(self.units)

    def objects(self, number: int) -> Objects:
        return self.units[number].objects

    def unit(self, number: int) -> Unit:
        return self.units[number]


def observe(objects: list[list[int]], faces: dict[tuple[int, int], list[tuple[int, int, int]]]) -> MadeObservations:
    """Observations of subvolumes with these local ids (10 voxels written of each) and these pairs by face."""
    units = []
    for number, local in enumerate(objects):
        mine = {other: pairs_of(*rows) for (first, other), rows in sorted(faces.items()) if first == number}
        both = [int(pairs.shared.sum()) for pairs in mine.values()]
        table, pairs = join_faces(
            list(mine), [Face(1000, n, 0, 0.5, pairs) for n, pairs in zip(both, mine.values(), strict=True)]
        )
        ids = np.array(local, np.uint32)
        units.append(
            Unit(Objects(ids, np.full(len(ids), 20, np.uint32), np.full(len(ids), 10, np.uint32)), table, pairs)
        )
    return MadeObservations(units)


def sv(subvolume: int, local: int) -> int:
    """A supervoxel id."""
    return (subvolume << 24) | local


def do(parameters: ReconciliationParameters, action: Any = "all", part: Part | None = None) -> ReconciliationResult:
    """Run an action of the stage, or a part of it."""
    return run(replace(parameters, action=action, part=part), silent)


def piece(parameters: ReconciliationParameters, number: int) -> Path:
    return piece_path(parameters.pieces, number)


def check_restored(parameters: ReconciliationParameters) -> None:
    """The output is the tubes that the pieces were cut out of, whatever its ids."""
    truth = tubes(parameters.grid.box.shape)
    found = open_volume(parameters.output).read()
    assert score(truth, found).vi == 0
    assert np.array_equal(truth == 0, found == 0)
