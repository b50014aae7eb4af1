"""Flood filling: object after object out of an image, as Januszewski et al. and google/ffn's Canvas do it.

All positions and shapes are zyx.  The object map is in logits; NaN where the network has not looked yet.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.core.errors import DataError
from apps.ffn.examples import logit
from apps.ffn.model import ModelParameters
from apps.ffn.settings import InferenceSettings

Array = NDArray[np.float32]
Predict = Callable[[Array, Array], Array]

TRIED = -1  # in the segmentation while it grows: a seed that gave no object


@dataclass(frozen=True)
class SegmentedObject:
    """`origin`: its seed; `voxels`: how many it got; `steps`: how often the network looked."""

    id: int
    origin: Triple
    voxels: int
    steps: int


@dataclass
class Counters:
    """What a segmentation did.  `model_seconds` is spent in the network, `other_seconds` out of it."""

    seeds: int = 0
    steps: int = 0
    weak: int = 0
    small: int = 0
    model_seconds: float = 0.0
    other_seconds: float = 0.0


@dataclass
class Segmentation:
    """`labels` zyx uint32, 0 for none, objects 1..n in the order in which they were made; `tried`: (seed, steps) in
    order of every seed that was flooded; `truncated`: the bound on steps ended it."""

    labels: NDArray[np.uint32]
    objects: list[SegmentedObject]
    counters: Counters
    tried: list[tuple[Triple, int]]
    truncated: bool = False


@dataclass
class _Flood:
    """One object in the making: its queue of positions and where it has been."""

    start: Triple
    steps: int = 0
    queue: deque[Triple] = field(default_factory=deque)
    done: set[Triple] = field(default_factory=set)
    low: Triple = (0, 0, 0)
    high: Triple = (0, 0, 0)

    def __post_init__(self) -> None:
        self.queue.append(self.start)
        self.low = self.high = self.start

    def visit(self, position: Triple, cell: Triple) -> None:
        self.steps += 1
        self.done.add(cell)
        (lz, ly, lx), (hz, hy, hx), (z, y, x) = self.low, self.high, position
        self.low = min(lz, z), min(ly, y), min(lx, x)
        self.high = max(hz, z), max(hy, y), max(hx, x)


class Segmenter:
    """Segments one image; use it once."""

    def __init__(self, image: Array, model: ModelParameters, predict: Predict, settings: InferenceSettings) -> None:
        """`image` normalised zyx float32; `predict` as `Network.predictor` gives it.

        Raises DataError where the image is smaller than the field of view.
        """
        check_extent(image.shape, model, "the image")
        self._image, self._predict = image, predict
        self._fov, self._margin, self._deltas = model.fov, model.margin, model.deltas
        self._shape: Triple = (int(image.shape[0]), int(image.shape[1]), int(image.shape[2]))
        self._settings = settings
        self._init, self._pad = logit(settings.init), logit(settings.pad)
        self._move, self._segment = logit(settings.move), logit(settings.segment)
        self._max_steps = settings.max_steps(self._shape, self._deltas)
        self._seed = np.full(self._shape, np.nan, np.float32)
        self._labels = np.zeros(self._shape, np.int32)
        self._counters = Counters()
        self._objects: list[SegmentedObject] = []
        self._tried: list[tuple[Triple, int]] = []
        self._faces = _faces(model)

    def segment(self, seeds: NDArray[np.int64], on_seed: Callable[[int], None] = lambda done: None) -> Segmentation:
        """Flood from every seed [n, 3] zyx in order, those excepted that lie in or next to an object by then.

        `on_seed(i)` is called before seed i.
        """
        begin = time.perf_counter()
        truncated = False
        self._counters.seeds = len(seeds)
        for number, (z, y, x) in enumerate(seeds.tolist()):
            on_seed(number)
            if self._exhausted():
                truncated = True
                break
            if self._admit((z, y, x)):
                self._one_object((z, y, x))
        self._counters.other_seconds = time.perf_counter() - begin - self._counters.model_seconds
        labels = np.maximum(self._labels, 0).astype(np.uint32)
        return Segmentation(labels, self._objects, self._counters, self._tried, truncated or self._exhausted())

    def _exhausted(self) -> bool:
        return self._max_steps is not None and self._counters.steps >= self._max_steps

    def _admit(self, seed: Triple) -> bool:
        """Whether to start an object here; a seed too close to an object is marked as tried."""
        if not self._inside(seed) or self._labels[seed] > 0:
            return False
        around = tuple(
            slice(max(p - d, 0), p + d + 1) for p, d in zip(seed, self._settings.boundary_distance, strict=True)
        )
        if (self._labels[around] > 0).any():
            self._labels[seed] = TRIED
            return False
        return True

    def _one_object(self, start: Triple) -> None:
        flood = self._flood(start)
        touched = tuple(
            slice(max(low - margin, 0), high + margin + 1)
            for low, high, margin in zip(flood.low, flood.high, self._margin, strict=True)
        )
        weak = bool(self._seed[start] < self._move)
        seed, labels = self._seed[touched], self._labels[touched]
        self._tried.append((start, flood.steps))
        voxels = 0
        if weak:
            self._counters.weak += 1
        else:
            with np.errstate(invalid="ignore"):
                mask = (seed >= self._segment) & (labels <= 0)
            voxels = int(np.count_nonzero(mask))
        if voxels < self._settings.min_size:
            self._counters.small += not weak
            if self._labels[start] == 0:
                self._labels[start] = TRIED
        else:
            labels[mask] = len(self._objects) + 1
            self._objects.append(SegmentedObject(len(self._objects) + 1, start, voxels, flood.steps))
        # Nothing outside of what the flood touched was written: clearing that clears the canvas.
        seed[...] = np.nan

    def _flood(self, start: Triple) -> _Flood:
        self._seed[start] = self._init
        flood = _Flood(start)
        for position, cell in self._positions(flood):
            if self._seed[start] < self._move or self._exhausted():
                break
            logits = self._look(position)
            flood.visit(position, cell)
            flood.queue.extend(self._next_moves(logits, position))
        return flood

    def _positions(self, flood: _Flood) -> Iterator[tuple[Triple, Triple]]:
        """Queued positions that are still valid when their turn comes, each with its cell of the grid of deltas."""
        (sz, sy, sx), (dz, dy, dx) = flood.start, self._deltas
        hz, hy, hx = dz // 2, dy // 2, dx // 2
        gz, gy, gx = max(dz, 1), max(dy, 1), max(dx, 1)
        while flood.queue:
            position = flood.queue.popleft()
            z, y, x = position
            cell = (z - sz + hz) // gz, (y - sy + hy) // gy, (x - sx + hx) // gx
            if cell in flood.done or self._seed[position] < self._move:
                continue
            if self._inside(position) and self._labels[position] <= 0:
                yield position, cell

    def _inside(self, position: Triple) -> bool:
        """Whether a whole field of view fits around the position."""
        (z, y, x), (mz, my, mx), (nz, ny, nx) = position, self._margin, self._shape
        return mz <= z < nz - mz and my <= y < ny - my and mx <= x < nx - mx

    def _look(self, position: Triple) -> Array:
        """One step of the network at `position`; writes the object map and returns the logits written."""
        (z, y, x), (mz, my, mx) = position, self._margin
        view = slice(z - mz, z + mz + 1), slice(y - my, y + my + 1), slice(x - mx, x + mx + 1)
        seed = self._seed[view]
        unknown = np.isnan(seed)
        shown = np.where(unknown, self._pad, seed)
        begin = time.perf_counter()
        logits = self._predict(np.ascontiguousarray(self._image[view]), shown)
        self._counters.model_seconds += time.perf_counter() - begin
        self._counters.steps += 1
        disco = self._settings.disco_seed_threshold
        if disco is not None and np.count_nonzero(logits >= self._move) > disco * logits.size:
            # Once the object is found, what was judged to be outside may not come back: errs to splits, not mergers.
            fixed = ~unknown & (seed < 0) & (logits > seed)
            logits = np.where(fixed, seed, logits)
        seed[...] = logits
        return logits

    def _next_moves(self, logits: Array, position: Triple) -> list[Triple]:
        """The best position on each of the six faces at +-delta that reaches the threshold, the best face first."""
        z, y, x = position
        moves: set[tuple[float, Triple]] = set()
        for face, low, strides in self._faces:
            values = logits[face]
            best = int(values.argmax())
            score = values.item(best)
            if score >= self._move:
                oz, rest = divmod(best, strides[0])
                oy, ox = divmod(rest, strides[1])
                moves.add((score, (low[0] + oz, low[1] + oy, low[2] + ox)))
        return [(z + oz, y + oy, x + ox) for _, (oz, oy, ox) in sorted(moves, reverse=True)]


def check_extent(shape: tuple[int, ...], model: ModelParameters, what: str) -> None:
    """Raise DataError where a volume of `shape` is smaller than the field of view."""
    if any(n < f for n, f in zip(shape, model.fov, strict=True)):
        raise DataError(f"{what}: its shape {tuple(shape)} is smaller than the field of view {model.fov}")


_Face = tuple[tuple[slice, slice, slice], Triple, tuple[int, int]]


def _faces(model: ModelParameters) -> list[_Face]:
    """The faces of the box of +-deltas in the field of view: slices, offset of the first voxel off the centre, and the
    divisors that turn a flat index in the face into z, y, x."""
    faces: list[_Face] = []
    for axis in range(3):
        if model.deltas[axis] == 0:
            continue
        for side in (-model.deltas[axis], model.deltas[axis]):
            low, high = [-step for step in model.deltas], list(model.deltas)
            low[axis] = high[axis] = side
            z, y, x = (slice(m + a, m + b + 1) for m, a, b in zip(model.margin, low, high, strict=True))
            extent = [b - a + 1 for a, b in zip(low, high, strict=True)]
            faces.append(((z, y, x), (low[0], low[1], low[2]), (extent[1] * extent[2], extent[2])))
    return faces
