"""Where the field of view goes next over one training canvas: google/ffn's two policies.

`fixed` looks at the centre and then once at each of the shifts by delta; `max_pred_moves` goes as inference does, to
the strongest voxel of each face of the box of deltas around the field of view that the network has just written.
Positions are zyx in the canvas, logits and soft labels are read where the field of view would be centred.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Triple

Array = NDArray[np.float32]
Integers = NDArray[np.int64]

Policy = Literal["fixed", "max_pred_moves"]

# Probabilities of google/ffn: an unknown voxel of the seed, its centre, what a move needs; labels are softened alike.
PAD, CENTRE, MOVE = 0.05, 0.95, 0.9

# Places in the counts of moves: wanted and made, wanted and not made, made and not wanted (google/ffn's EvalTracker).
CORRECT, MISSED, SPURIOUS = range(3)


def logit(probability: float) -> np.float32:
    """log(p / (1 - p)) as float32."""
    return np.float32(np.log(probability / (1.0 - probability)))


class Movement(Protocol):
    """The moves over one canvas.  To add a policy: a class of this kind and its line in `POLICIES`.

    Attributes:
        counts: correct, missed and spurious moves [3] so far.
    """

    counts: Integers

    def next(self, canvas: Array) -> Triple | None:
        """The next position, on the canvas that the network has written to since the last one; None: no more."""

    def state(self) -> Integers:
        """All that the next position depends on besides the canvas and the arguments of the constructor [n]."""

    def restore(self, state: Integers) -> None:
        """Go to a `state()`.  Raises ValueError where it cannot be one of this policy."""


@dataclass(frozen=True)
class Ground:
    """What a policy moves over.

    Attributes:
        labels: soft labels of the canvas, zyx.
        fov, deltas: of the network, zyx.
        rng: for policies with chance in them; only used while the policy is made.
    """

    labels: Array
    fov: Triple
    deltas: Triple
    rng: np.random.Generator

    @property
    def centre(self) -> Integers:
        return np.array(self.labels.shape, np.int64) // 2

    def look(self, canvas: Array, position: Triple, counts: Integers) -> tuple[bool, bool]:
        """Whether the network goes to `position`, and whether it should by the labels; counts the move."""
        valid, wanted = bool(canvas[position] >= _GATE), bool(self.labels[position] >= MOVE)
        if wanted:
            counts[CORRECT if valid else MISSED] += 1
        elif valid:
            counts[SPURIOUS] += 1
        return valid, wanted


_GATE = logit(MOVE)


def fixed_moves(deltas: Triple) -> Integers:
    """The distinct shifts [n, 3] zyx of policy `fixed` besides the centre: 26 where no delta is 0."""
    shifts = set(itertools.product(*({-step, 0, step} for step in deltas))) - {(0, 0, 0)}
    return np.array(sorted(shifts), np.int64)


class FixedMoves:
    """The centre, then the 26 shifts by delta in random order, where the logits reach the gate."""

    def __init__(self, ground: Ground) -> None:
        self.counts = np.zeros(3, np.int64)
        self._ground = ground
        shifts = ground.rng.permutation(fixed_moves(ground.deltas))
        self._positions = ground.centre + np.concatenate([np.zeros((1, 3), np.int64), shifts])
        self._looked_at = 0

    def next(self, canvas: Array) -> Triple | None:
        while self._looked_at < len(self._positions):
            position = cast(Triple, tuple(self._positions[self._looked_at].tolist()))
            self._looked_at += 1
            if self._ground.look(canvas, position, self.counts)[0]:
                return position
        return None

    def state(self) -> Integers:
        return np.array([self._looked_at, *self.counts], np.int64)

    def restore(self, state: Integers) -> None:
        if state.shape != (4,) or not 0 <= state[0] <= len(self._positions):
            raise ValueError(f"{state.tolist()} is no state of the movement policy fixed")
        self._looked_at, self.counts = int(state[0]), state[1:].copy()


class MaxPredMoves:
    """From the centre on, breadth first, to the strongest voxel of each of the six faces at +-delta.

    Within one field of view the strongest face comes first.  A position is dropped where the field of view would leave
    the canvas, where its cell of the delta grid was visited, where its logit is under the gate, and where it lies
    outside of the object (google/ffn trains on no spurious move of this policy, but counts it).
    """

    def __init__(self, ground: Ground) -> None:
        self.counts = np.zeros(3, np.int64)
        self._ground = ground
        self._limit = ground.centre - np.array(ground.fov) // 2
        self._queue: deque[Triple] = deque([(0, 0, 0)])
        self._done: set[Triple] = set()
        self._last: Triple | None = None

    def next(self, canvas: Array) -> Triple | None:
        if self._last is not None:
            self._queue.extend(face_moves(canvas, self._position(self._last), self._last, self._ground.deltas))
            self._last = None
        while self._queue:
            offset = self._queue.popleft()
            if (np.abs(offset) > self._limit).any():
                continue
            cell = self._cell(offset)
            if cell in self._done:
                continue
            position = self._position(offset)
            valid, wanted = self._ground.look(canvas, position, self.counts)
            if not valid or (not wanted and cell != (0, 0, 0)):
                continue
            self._done.add(cell)
            self._last = offset
            return position
        return None

    def _position(self, offset: Triple) -> Triple:
        return cast(Triple, tuple((self._ground.centre + offset).tolist()))

    def _cell(self, offset: Triple) -> Triple:
        """The cell of the delta grid; the centre lies in the middle of one."""
        deltas = self._ground.deltas
        return cast(Triple, tuple(int((o + d / 2) // max(d, 1)) for o, d in zip(offset, deltas, strict=True)))

    def state(self) -> Integers:
        last = [] if self._last is None else [self._last]
        head = [*self.counts.tolist(), len(self._queue), len(self._done), len(last)]
        triples = np.array([*self._queue, *sorted(self._done), *last], np.int64)
        return np.concatenate([np.array(head, np.int64), triples.ravel()])

    def restore(self, state: Integers) -> None:
        queued, done, last = state[3:6].tolist() if len(state) >= 6 else (-1, -1, -1)
        if min(queued, done, last) < 0 or last > 1 or state.shape != (6 + 3 * (queued + done + last),):
            raise ValueError(f"an array of shape {state.shape} is no state of the movement policy max_pred_moves")
        triples = [cast(Triple, tuple(triple)) for triple in state[6:].reshape(-1, 3).tolist()]
        self.counts = state[:3].copy()
        self._queue, self._done = deque(triples[:queued]), set(triples[queued : queued + done])
        self._last = triples[-1] if last else None


def face_moves(canvas: Array, position: Triple, offset: Triple, deltas: Triple) -> list[Triple]:
    """Offsets from the canvas's centre to the maxima of the six faces around `position`, the strongest first.

    `offset` is that of `position`.  Faces without a voxel at the gate are left out; of equal maxima in a face the first
    in zyx order counts, equal faces come in descending order of their offsets.
    """
    found = set()
    for axis in range(3):
        for step in {-deltas[axis], deltas[axis]} - {0}:
            view = [slice(p - d, p + d + 1) for p, d in zip(position, deltas, strict=True)]
            view[axis] = slice(position[axis] + step, position[axis] + step + 1)
            face = canvas[tuple(view)]
            place = [int(n) for n in np.unravel_index(int(face.argmax()), face.shape)]
            score = float(face[tuple(place)])
            if score < _GATE:
                continue
            move = [n - d for n, d in zip(place, deltas, strict=True)]
            move[axis] = step
            found.add((score, tuple(move)))
    ordered = sorted(found, reverse=True)
    return [cast(Triple, tuple(o + m for o, m in zip(offset, move, strict=True))) for _, move in ordered]


POLICIES: dict[Policy, Callable[[Ground], Movement]] = {"fixed": FixedMoves, "max_pred_moves": MaxPredMoves}


def training_canvas(fov: Triple, deltas: Triple, policy: Policy) -> Triple:
    """Extent zyx of a training canvas: one step to either side of the field of view, or two for `max_pred_moves`.

    google/ffn gives that policy a step more than the evaluated area so that it fills it better.
    """
    steps = 2 if policy == "max_pred_moves" else 1
    return cast(Triple, tuple(f + 2 * steps * d for f, d in zip(fov, deltas, strict=True)))
