"""Flooding a pair of objects again around a decision point, and what that tells (google/ffn's resegmentation).

In a window around the point both objects are cleared, the others stay and may not be entered.  The network floods once
from the inside of each of the two.  Two halves of one neurite give the same object from both sides; two neurites give
each its own.  All positions, boxes and shapes are zyx.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import edt
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.volumes import VoxelSize
from apps.ffn.canvas import Array, Canvas, View
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.model import ModelParameters
from apps.ffn.segmenter import Outcome, Segmenter
from apps.ffn.settings import InferenceSettings

Labels = NDArray[Any]
Verdict = Literal["scored", "small", "no_seed", "weak", "stopped"]


@dataclass(frozen=True)
class Window:
    """What is looked at again: two objects around a decision point.

    Attributes:
        box: in voxels of the segmentation.
        labels: of the box.
        excluded: of the box, where a mask keeps objects out; None without masks.
        a, b: ids of the pair.
    """

    box: Box
    labels: Labels
    excluded: NDArray[np.bool_] | None
    a: int
    b: int


@dataclass(frozen=True)
class Side:
    """One flood.

    Attributes:
        seed: where it began, in voxels of the segmentation; None where the object has no place for a field of view.
        voxels: what it filled.
        recovers_a, recovers_b: share of the voxels of each object that it filled.
        deleted: voxels that were taken away again as it grew, as a share of what it filled (0 where that is none).
        steps: looks of the network.
    """

    seed: Triple | None
    voxels: int
    recovers_a: float
    recovers_b: float
    deleted: float
    steps: int


@dataclass(frozen=True)
class PairScore:
    """What the floods of a pair gave.

    Attributes:
        verdict: scored; small: one has too few voxels in the window; no_seed: one has no place for a field of view;
            weak: a flood ended with nothing; stopped: the first did not reach into both, so that there was no second.
        voxels_a, voxels_b: in the window.
        from_a, from_b: the floods; None where there was none.
        iou: voxels in both floods / voxels in either; None where there are not two.
    """

    verdict: Verdict
    voxels_a: int
    voxels_b: int
    from_a: Side | None
    from_b: Side | None
    iou: float | None


@dataclass(frozen=True)
class Rules:
    """How to flood again.

    Attributes:
        settings: of flood filling.
        voxel_size: zyx, for the inside of an object.
        min_voxels: an object with fewer in the window is not flooded.
        stop_below: no second flood where the first recovers less than this share of either object; 0: always two.
    """

    settings: InferenceSettings
    voxel_size: VoxelSize
    min_voxels: int
    stop_below: float


class _Reflood(Segmenter):
    """A segmenter with one seed that also counts what its network takes away."""

    deleted = 0

    def absorb(self, views: Sequence[View]) -> None:
        self.deleted += sum(view.deleted for view in views if view.valid)
        super().absorb(views)


@dataclass
class _Pair:
    """A pair in work.

    Attributes:
        voxels: of both objects in the window.
        seeds: where to flood from, in the window; None where there is no place.
        order: which side comes first.
        sides: the floods that have ended.
        filled: what they filled, as bits: many pairs wait for their second flood.
    """

    window: Window
    voxels: tuple[int, int]
    seeds: tuple[Triple | None, Triple | None]
    order: tuple[int, int]
    sides: list[Side | None]
    filled: list[NDArray[np.uint8] | None]


def window_box(point: Triple, radius: Triple, bounds: Box) -> Box:
    """The box of +-radius around a point, moved into the bounds where it leaves them, and cut to them if smaller."""
    low, high = [], []
    for p, r, first, last in zip(point, radius, bounds.offset, bounds.end, strict=True):
        begin = max(first, min(p - r, last - (2 * r + 1)))
        low.append(begin)
        high.append(min(last, begin + 2 * r + 1))
    return Box.between((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def inner_seed(mask: NDArray[np.bool_], voxel_size: VoxelSize, margin: Triple) -> Triple | None:
    """The voxel farthest from the object's surface (of equal ones the first) that a field of view fits around."""
    inside = edt.edt(np.ascontiguousarray(mask), anisotropy=voxel_size, black_border=False, parallel=1)
    inner = tuple(slice(m, n - m) for m, n in zip(margin, mask.shape, strict=True))
    view = np.where(mask[inner], inside[inner], 0)
    if not view.any():
        return None
    z, y, x = (int(n) for n in np.unravel_index(int(view.argmax()), view.shape))
    return z + margin[0], y + margin[1], x + margin[2]


def score_pairs(
    windows: Sequence[Window],
    read_image: Callable[[Box], Array],
    canvas: Canvas,
    model: ModelParameters,
    rules: Rules,
    on_progress: Callable[[float], None] = lambda done: None,
) -> list[PairScore]:
    """Flood every pair from the smaller object, then, where that says it may be worth it, from the larger.

    read_image(box): the normalised image of a box of the segmentation.  What a pair gets hangs on it alone, not on
    which others share a batch of the network with it.
    """
    pairs = [_prepare(window, model, rules) for window in windows]
    verdicts: list[Verdict] = [_before(pair, rules) for pair in pairs]
    for turn in (0, 1):
        todo = [number for number, verdict in enumerate(verdicts) if verdict == "scored"]
        done = 0

        def subvolumes(turn: int = turn, todo: list[int] = todo) -> Iterator[Subvolume]:
            for number in todo:
                pair = pairs[number]
                segmenter = _segmenter(pair, pair.order[turn], model, rules)
                yield Subvolume(number, read_image(pair.window.box), segmenter)

        def ended(item: Subvolume, turn: int = turn, todo: list[int] = todo) -> None:
            nonlocal done
            done += 1
            on_progress((turn + done / len(todo)) / 2)
            pair = pairs[item.number]
            verdicts[item.number] = _after(pair, pair.order[turn], rules, turn == 1)

        flood(subvolumes(), canvas, ended)
    return [_score(pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]


def _masks(window: Window) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return window.labels == window.a, window.labels == window.b


def _prepare(window: Window, model: ModelParameters, rules: Rules) -> _Pair:
    masks = _masks(window)
    voxels = int(np.count_nonzero(masks[0])), int(np.count_nonzero(masks[1]))
    seeds: list[Triple | None] = [None, None]
    if min(voxels) >= rules.min_voxels and all(n >= f for n, f in zip(window.box.shape, model.fov, strict=True)):
        allowed = [mask if window.excluded is None else mask & ~window.excluded for mask in masks]
        seeds = [inner_seed(mask, rules.voxel_size, model.margin) for mask in allowed]
    order = (0, 1) if voxels[0] <= voxels[1] else (1, 0)
    return _Pair(window, voxels, (seeds[0], seeds[1]), order, [None, None], [None, None])


def _before(pair: _Pair, rules: Rules) -> Verdict:
    if min(pair.voxels) < rules.min_voxels:
        return "small"
    return "no_seed" if None in pair.seeds else "scored"


def _segmenter(pair: _Pair, side: int, model: ModelParameters, rules: Rules) -> Segmenter:
    """The flood from one side; it leaves its figures and what it filled with the pair when it ends."""
    labels, window, masks = pair.window.labels, pair.window, _masks(pair.window)
    others = (labels != 0) & ~masks[0] & ~masks[1]
    if window.excluded is not None:
        others |= window.excluded
    shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    seed = pair.seeds[side]
    assert seed is not None

    def keep(outcome: Outcome) -> None:
        if outcome.mask is None:
            pair.sides[side] = Side(_moved(seed, window.box), 0, 0.0, 0.0, 0.0, outcome.steps)
            return
        filled = np.zeros(labels.shape, bool)
        filled[outcome.box.slices()] = outcome.mask
        shares = [
            float(np.count_nonzero(filled & mask) / n) for mask, n in zip(_masks(window), pair.voxels, strict=True)
        ]
        deleted = segmenter.deleted / outcome.voxels
        pair.sides[side] = Side(_moved(seed, window.box), outcome.voxels, shares[0], shares[1], deleted, outcome.steps)
        pair.filled[side] = np.packbits(filled)

    settings = replace(rules.settings, min_size=1, boundary_distance=(0, 0, 0))
    segmenter = _Reflood(shape, np.array([seed]), model, settings, excluded=others, on_outcome=keep)
    return segmenter


def _moved(point: Triple, box: Box) -> Triple:
    """A point of a box, in the coordinates of the box."""
    (z, y, x), (oz, oy, ox) = point, box.offset
    return z + oz, y + oy, x + ox


def _after(pair: _Pair, side: int, rules: Rules, last: bool) -> Verdict:
    """What is to become of the pair after the flood of a side."""
    found = pair.sides[side]
    if found is None or found.voxels == 0:
        return "weak"
    if not last and min(found.recovers_a, found.recovers_b) < rules.stop_below:
        return "stopped"
    return "scored"


def _score(pair: _Pair, verdict: Verdict) -> PairScore:
    iou = None
    if pair.filled[0] is not None and pair.filled[1] is not None:
        both = int(np.bitwise_count(pair.filled[0] & pair.filled[1]).sum())
        iou = both / int(np.bitwise_count(pair.filled[0] | pair.filled[1]).sum())
    return PairScore(verdict, *pair.voxels, pair.sides[0], pair.sides[1], iou)
