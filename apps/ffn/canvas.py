"""Canvases: where the object map of a subvolume is kept, and the network looks at it.

One canvas holds several subvolumes, each in a slot of its own.  The map is in logits, NaN where the network has not
looked yet.  What an implementation does in one look at a position (a field of view's centre) is the published step
(Januszewski et al., and google/ffn's Canvas): show the image and the map with `pad` where it is unknown, write the
logits back, and report the best voxel of each face of the box of +-deltas.  `HostCanvas` keeps the map in this process'
memory; `apps.ffn.tensorflow_canvas` keeps it on the device.  All positions and shapes are zyx.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DivergedError
from apps.ffn.model import ModelParameters
from apps.ffn.movement import logit
from apps.ffn.settings import InferenceSettings

Array = NDArray[np.float32]
Predict = Callable[[Array, Array], Array]

# From this probability on a voxel counts as one that a look can take away (google/ffn's history of deletions).
HELD = 0.8


class Look(NamedTuple):
    """A request: look at `position` of the subvolume in `slot`, whose object started at `start`."""

    slot: int
    position: Triple
    start: Triple


class View(NamedTuple):
    """What a look gave.

    Attributes:
        valid: whether the map was at `move` or more at the position; otherwise nothing was done.
        start: the map at the object's start, afterwards.
        moves: (logit, offset zyx) of the best voxel of every face, whether it reaches `move` or not.
        deleted: voxels that the look took away from the object: at `HELD` or more before, under even odds after.
    """

    valid: bool
    start: float
    moves: list[tuple[float, Triple]]
    deleted: int = 0


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of a segmentation in logits; `disco` as in InferenceSettings."""

    init: np.float32
    pad: np.float32
    move: np.float32
    segment: np.float32
    disco: float | None

    @classmethod
    def of(cls, settings: InferenceSettings) -> Thresholds:
        return cls(
            init=logit(settings.init),
            pad=logit(settings.pad),
            move=logit(settings.move),
            segment=logit(settings.segment),
            disco=settings.disco_seed_threshold,
        )


class Canvas(Protocol):
    """The contract.  The looks of one `launch` never overlap within a slot, so that their order does not matter.

    Attributes:
        slots: how many subvolumes it holds at once.
        batch: how many looks one `launch` takes at most.
        pipelined: whether `launch` returns before the work is done, so that two batches in flight pay.
        model_seconds: time spent in (or waiting for) the network so far.
    """

    slots: int
    batch: int
    pipelined: bool
    model_seconds: float

    def load(self, slot: int, image: Array) -> None:
        """Put a subvolume (normalised, zyx) into a slot, with an unknown map."""

    def begin(self, slot: int, start: Triple) -> None:
        """Start an object: the map is unknown but for `init` at its start."""

    def launch(self, looks: Sequence[Look]) -> None:
        """Hand over a batch of looks."""

    def collect(self) -> list[View]:
        """Wait for the earliest batch handed over; its views in the order of its looks."""

    def take(self, slot: int, box: Box, probability: bool) -> tuple[NDArray[np.bool_], NDArray[np.uint8] | None]:
        """End an object that was looked at in `box`: where its map is at `segment` or more, and where asked the
        quantised probability (`quantise`); the map is unknown again."""


@dataclass(frozen=True)
class Face:
    """One face of the box of +-deltas in the field of view.

    Attributes:
        view: slices of the field of view.
        low: offset zyx of the face's first voxel from the centre.
        extent: of the face, zyx.
    """

    view: tuple[slice, slice, slice]
    low: Triple
    extent: Triple

    def offset(self, index: int) -> Triple:
        """Offset zyx from the centre of the face's voxel with that flat index."""
        oz, rest = divmod(index, self.extent[1] * self.extent[2])
        oy, ox = divmod(rest, self.extent[2])
        return self.low[0] + oz, self.low[1] + oy, self.low[2] + ox


def faces_of(model: ModelParameters) -> list[Face]:
    """The faces on every axis that the field of view moves along."""
    faces: list[Face] = []
    for axis in range(3):
        if model.deltas[axis] == 0:
            continue
        for side in (-model.deltas[axis], model.deltas[axis]):
            low, high = [-step for step in model.deltas], list(model.deltas)
            low[axis] = high[axis] = side
            z, y, x = (slice(m + a, m + b + 1) for m, a, b in zip(model.margin, low, high, strict=True))
            ez, ey, ex = (b - a + 1 for a, b in zip(low, high, strict=True))
            faces.append(Face((z, y, x), (low[0], low[1], low[2]), (ez, ey, ex)))
    return faces


def quantise(logits: Array) -> NDArray[np.uint8]:
    """Probability in 255ths, 1 to 255, of logits; 0 where they are NaN."""
    with np.errstate(over="ignore"):
        probability = 1.0 / (1.0 + np.exp(-logits))
    return np.where(np.isnan(logits), 0.0, np.clip(np.rint(255.0 * probability), 1, 255)).astype(np.uint8)


def not_finite() -> DivergedError:
    """What to raise where the network gave NaN; its own output is its input, so a badly trained one can run away."""
    return DivergedError("the network gave NaN: its training diverged or was too short, or the precision is too low")


class HostCanvas:
    """A canvas in NumPy arrays; one field of view a call of the network, whose result hangs on nothing beside it."""

    pipelined = False

    def __init__(
        self, model: ModelParameters, predict: Predict, thresholds: Thresholds, slots: int = 1, batch: int = 64
    ) -> None:
        """`predict` of (image, map), both [1, z, y, x] float32, gives new logits: `Network.predictor()`."""
        self.slots, self.batch = slots, batch
        self.model_seconds = 0.0
        self._predict, self._thresholds, self._held = predict, thresholds, logit(HELD)
        self._margin, self._faces = model.margin, faces_of(model)
        self._images: dict[int, Array] = {}
        self._maps: dict[int, Array] = {}
        self._done: deque[list[View]] = deque()

    def load(self, slot: int, image: Array) -> None:
        self._images[slot] = image
        self._maps[slot] = np.full(image.shape, np.nan, np.float32)

    def begin(self, slot: int, start: Triple) -> None:
        self._maps[slot][start] = self._thresholds.init

    def launch(self, looks: Sequence[Look]) -> None:
        self._done.append([self._look(look) for look in looks])

    def collect(self) -> list[View]:
        return self._done.popleft()

    def take(self, slot: int, box: Box, probability: bool) -> tuple[NDArray[np.bool_], NDArray[np.uint8] | None]:
        view = self._maps[slot][box.slices()]
        with np.errstate(invalid="ignore"):
            mask = view >= self._thresholds.segment
        quantised = quantise(view) if probability else None
        view[...] = np.nan
        return mask, quantised

    def _look(self, look: Look) -> View:
        slot, (z, y, x), start = look
        image, whole, limits = self._images[slot], self._maps[slot], self._thresholds
        if not whole[z, y, x] >= limits.move:
            return View(False, float(whole[start]), [])
        mz, my, mx = self._margin
        view = slice(z - mz, z + mz + 1), slice(y - my, y + my + 1), slice(x - mx, x + mx + 1)
        seed = whole[view]
        unknown = np.isnan(seed)
        shown = np.where(unknown, limits.pad, seed)
        begin = time.perf_counter()
        logits = self._predict(image[view][None], shown[None])[0]
        self.model_seconds += time.perf_counter() - begin
        deleted = int(np.count_nonzero((shown >= self._held) & (logits < 0) & ~unknown))
        if limits.disco is not None and np.count_nonzero(logits >= limits.move) > limits.disco * logits.size:
            # Once the object is found, what was judged to be outside may not come back: errs to splits, not mergers.
            with np.errstate(invalid="ignore"):
                logits = np.where((seed < 0) & (logits > seed), seed, logits)  # unknown, NaN, is neither
        seed[...] = logits
        moves = []
        for face in self._faces:
            values = logits[face.view]
            best = int(values.argmax())
            moves.append((values.item(best), face.offset(best)))
        if np.isnan([score for score, _ in moves]).any():
            raise not_finite()
        return View(True, float(whole[start]), moves, deleted)
