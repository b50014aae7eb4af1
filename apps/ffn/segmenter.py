"""Flood filling: object after object out of a subvolume, as Januszewski et al. and google/ffn's Canvas do it.

`Segmenter` decides where to look and what becomes an object; a `Canvas` (apps.ffn.canvas) does the looking.  With one
field of view at a time (mode faithful) this is the published algorithm.  With several, those that do not overlap are
taken from the head of the same queue: no two of them write to one voxel, so that nothing hangs on their order.  Objects
are made one after the other; a voxel belongs to the first that claims it.  All positions and shapes are zyx.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.ffn.canvas import Canvas, Look, Thresholds, View
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings

TRIED = -1  # in the labels while they grow: a seed that gave no object

# How far down its queue an object is searched for fields of view that do not overlap, as a multiple of their number.
QUEUE_LOOKAHEAD = 16


@dataclass(frozen=True)
class SegmentedObject:
    """`origin`: its seed; `voxels`: how many it got; `steps`: how often the network looked."""

    id: int
    origin: Triple
    voxels: int
    steps: int


class Outcome(NamedTuple):
    """What became of a seed that was flooded.

    Attributes:
        seed: number of the seed in the policy's order.
        steps: looks of the network.
        weak: whether the start fell under the move threshold.
        voxels: what the object had, claimed or not.
        box: what was looked at.
        mask: the voxels claimed, of the box's shape; None where it became no object.
        probability: quantised probability in the box where it was asked for.
    """

    seed: int
    steps: int
    weak: bool
    voxels: int
    box: Box
    mask: NDArray[np.bool_] | None
    probability: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Counters:
    """What a segmentation did.

    Attributes:
        seeds: points of the seed policy.
        steps: looks of the network.
        wasted_steps: those of them in seeds that gave no object.
        weak, small: seeds that gave none because their start grew weak, or the object was too small.
        seed_seconds: spent in the seed policy.
        model_seconds, other_seconds: of flooding, in the network and out of it; of a batch that several subvolumes
            share, each has a part by its looks.
    """

    seeds: int = 0
    steps: int = 0
    wasted_steps: int = 0
    weak: int = 0
    small: int = 0
    seed_seconds: float = 0.0
    model_seconds: float = 0.0
    other_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """All of the segmentation's."""
        return self.seed_seconds + self.model_seconds + self.other_seconds


@dataclass
class Segmentation:
    """`labels` zyx uint32, 0 for none, objects 1..n in the order in which they were made; `tried`: (seed, steps) in
    order of every seed that was flooded; `truncated`: the bound on steps ended it; `probability`: uint8 in 255ths of
    the object that holds the voxel, where it was asked for; `excluded`: where masks kept objects out, None without."""

    labels: NDArray[np.uint32]
    objects: list[SegmentedObject]
    counters: Counters
    tried: list[tuple[Triple, int]]
    truncated: bool
    probability: NDArray[np.uint8] | None = None
    excluded: NDArray[np.bool_] | None = None


@dataclass
class _Flood:
    """One object in the making: its queue of positions and where it has been."""

    seed: int
    start: Triple
    strength: float
    steps: int = 0
    queue: deque[Triple] = field(default_factory=deque)
    done: set[Triple] = field(default_factory=set)
    low: Triple = (0, 0, 0)
    high: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        self.queue.append(self.start)
        self.low = self.high = self.start


class Segmenter:
    """Segments one subvolume; use it once.

    `propose` gives the next positions to look at, `absorb` takes what was seen there, until `propose` gives none.
    """

    def __init__(
        self,
        shape: Triple,
        seeds: NDArray[np.int64],
        model: ModelParameters,
        settings: InferenceSettings,
        *,
        excluded: NDArray[np.bool_] | None = None,
        probability: bool = False,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """`seeds` [n, 3] zyx in the order in which to try them; nothing is looked for or claimed where `excluded`.

        `on_outcome` is told of every seed that was flooded, in order.  Raises DataError where the subvolume is smaller
        than the field of view.
        """
        check_extent(shape, model, "the subvolume")
        self.shape, self.settings = shape, settings
        self._fov, self._margin, self._deltas = model.fov, model.margin, model.deltas
        self._move = float(Thresholds.of(settings).move)
        self._max_steps = settings.max_steps(shape, model.deltas)
        self._labels = np.zeros(shape, np.int32)
        self._excluded = excluded
        self._probability = np.zeros(shape, np.uint8) if probability else None
        self._on_outcome = on_outcome
        self._seeds: list[Triple] = [(z, y, x) for z, y, x in seeds.tolist()]
        self._next_seed = 0
        self._flood: _Flood | None = None
        self._picked: list[tuple[Triple, Triple]] = []
        self._counters = Counters(seeds=len(self._seeds))
        self._seconds = np.zeros(3)
        self._objects: list[SegmentedObject] = []
        self._tried: list[tuple[Triple, int]] = []

    @property
    def progress(self) -> float:
        """Share of the seeds that is done with."""
        return self._next_seed / max(1, len(self._seeds))

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to look at, so that `propose` would give nothing."""
        return self._flood is None and self._admitted() is None

    @property
    def steps(self) -> int:
        """Looks of the network so far."""
        return self._counters.steps + (self._flood.steps if self._flood else 0)

    def restore(self, outcome: Outcome) -> None:
        """Take over what an earlier process found out about the next seed that is admitted.

        Raises DataError where that is another seed, so that the outcome is of another segmentation.
        """
        if self._admitted() != outcome.seed:
            raise DataError(f"the flood log is of another segmentation: seed {outcome.seed} was not next")
        self._commit(outcome)

    def propose(self, canvas: Canvas, slot: int) -> list[Look]:
        """The next looks, none of which overlap; empty when the subvolume is done."""
        while True:
            if self._flood is None and not self._begin(canvas, slot):
                return []
            flood = self._flood
            assert flood is not None
            if flood.strength >= self._move and not self._exhausted():
                self._picked = self._pick(flood)
                if self._picked:
                    return [Look(slot, position, flood.start) for position, _ in self._picked]
            self._end(flood, canvas, slot)

    def spend(self, seed: float = 0.0, model: float = 0.0, other: float = 0.0) -> None:
        """Add to the seconds of the counters."""
        self._seconds += seed, model, other

    def absorb(self, views: Sequence[View]) -> None:
        """Take the views of the looks that `propose` gave, in their order."""
        flood, move = self._flood, self._move
        assert flood is not None
        for (position, cell), view in zip(self._picked, views, strict=True):
            flood.strength = view.start
            if not view.valid:
                continue
            flood.steps += 1
            flood.done.add(cell)
            z, y, x = position
            (lz, ly, lx), (hz, hy, hx) = flood.low, flood.high
            flood.low = min(lz, z), min(ly, y), min(lx, x)
            flood.high = max(hz, z), max(hy, y), max(hx, x)
            # The best face first; two faces share an edge, and may have the same best voxel.
            for _, (oz, oy, ox) in sorted({best for best in view.moves if best[0] >= move}, reverse=True):
                flood.queue.append((z + oz, y + oy, x + ox))

    def result(self) -> Segmentation:
        """What there is."""
        labels = np.maximum(self._labels, 0).astype(np.uint32)
        seed, model, other = self._seconds.tolist()
        counters = replace(self._counters, seed_seconds=seed, model_seconds=model, other_seconds=other)
        return Segmentation(
            labels, self._objects, counters, self._tried, self._exhausted(), self._probability, self._excluded
        )

    def _exhausted(self) -> bool:
        return self._max_steps is not None and self.steps >= self._max_steps

    def _admitted(self) -> int | None:
        """Number of the next seed to flood from, None where no seed is left or the bound on steps is reached."""
        while self._next_seed < len(self._seeds) and not self._exhausted():
            if self._admit(self._seeds[self._next_seed]):
                return self._next_seed
            self._next_seed += 1
        return None

    def _admit(self, seed: Triple) -> bool:
        """Whether to start an object here; a seed too close to an object is marked as tried."""
        if not self._free(seed):
            return False
        around = tuple(
            slice(max(p - d, 0), p + d + 1) for p, d in zip(seed, self.settings.boundary_distance, strict=True)
        )
        if (self._labels[around] > 0).any():
            self._labels[seed] = TRIED
            return False
        return True

    def _free(self, position: Triple) -> bool:
        """Whether a whole field of view fits around the position, which no object holds and no mask excludes."""
        (z, y, x), (mz, my, mx), (nz, ny, nx) = position, self._margin, self.shape
        if not (mz <= z < nz - mz and my <= y < ny - my and mx <= x < nx - mx):
            return False
        if self._excluded is not None and self._excluded[position]:
            return False
        return bool(self._labels[position] <= 0)

    def _begin(self, canvas: Canvas, slot: int) -> bool:
        number = self._admitted()
        if number is None:
            return False
        self._flood = _Flood(number, self._seeds[number], strength=math.inf)
        canvas.begin(slot, self._flood.start)
        return True

    def _pick(self, flood: _Flood) -> list[tuple[Triple, Triple]]:
        """Take positions from the queue whose fields of view do not overlap, each with its cell of the grid of deltas;
        those passed over keep their places."""
        (sz, sy, sx), (dz, dy, dx) = flood.start, self._deltas
        hz, hy, hx = dz // 2, dy // 2, dx // 2
        gz, gy, gx = max(dz, 1), max(dy, 1), max(dx, 1)
        fovs = self.settings.fovs_per_object
        picked: list[tuple[Triple, Triple]] = []
        passed: list[Triple] = []
        queue = flood.queue
        while queue and len(picked) < fovs and len(passed) < QUEUE_LOOKAHEAD * fovs:
            position = queue.popleft()
            z, y, x = position
            cell = (z - sz + hz) // gz, (y - sy + hy) // gy, (x - sx + hx) // gx
            if cell in flood.done or not self._free(position):
                continue
            if any(self._overlap(position, other) for other, _ in picked):
                passed.append(position)
            else:
                picked.append((position, cell))
        queue.extendleft(reversed(passed))
        return picked

    def _overlap(self, a: Triple, b: Triple) -> bool:
        (fz, fy, fx), (az, ay, ax), (bz, by, bx) = self._fov, a, b
        return abs(az - bz) < fz and abs(ay - by) < fy and abs(ax - bx) < fx

    def _end(self, flood: _Flood, canvas: Canvas, slot: int) -> None:
        """The flood is over: ask the canvas for the object, and keep it or not."""
        self._flood = None
        whole = Box.of((0, 0, 0), self.shape)
        (hz, hy, hx), margin = flood.high, self._margin
        box = Box.between(flood.low, (hz + 1, hy + 1, hx + 1)).grow(margin).intersection(whole)
        mask, probability = canvas.take(slot, box, self._probability is not None)
        mask &= self._labels[box.slices()] <= 0
        if self._excluded is not None:
            mask &= ~self._excluded[box.slices()]
        weak = flood.strength < self._move
        voxels = 0 if weak else int(np.count_nonzero(mask))
        kept = voxels >= self.settings.min_size
        outcome = Outcome(
            flood.seed, flood.steps, weak, voxels, box, mask if kept else None, probability if kept else None
        )
        self._commit(outcome)
        self._on_outcome(outcome)

    def _commit(self, outcome: Outcome) -> None:
        start, counters = self._seeds[outcome.seed], self._counters
        self._next_seed = outcome.seed + 1
        self._tried.append((start, outcome.steps))
        counters = replace(counters, steps=counters.steps + outcome.steps)
        if outcome.mask is None:
            counters = replace(
                counters,
                wasted_steps=counters.wasted_steps + outcome.steps,
                weak=counters.weak + outcome.weak,
                small=counters.small + (not outcome.weak),
            )
            if self._labels[start] == 0:
                self._labels[start] = TRIED
        else:
            number = len(self._objects) + 1
            self._labels[outcome.box.slices()][outcome.mask] = number
            if self._probability is not None and outcome.probability is not None:
                view = self._probability[outcome.box.slices()]
                np.copyto(view, outcome.probability, where=outcome.mask)
            self._objects.append(SegmentedObject(number, start, outcome.voxels, outcome.steps))
        self._counters = counters


def check_extent(shape: tuple[int, ...], model: ModelParameters, what: str) -> None:
    """Raise DataError where a volume of `shape` is smaller than the field of view."""
    if any(n < f for n, f in zip(shape, model.fov, strict=True)):
        raise DataError(f"{what}: its shape {tuple(shape)} is smaller than the field of view {model.fov}")
