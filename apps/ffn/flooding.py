"""Flooding many subvolumes at once: their looks go to the network in common batches.

What becomes of a subvolume hangs on that subvolume alone.  Which others share a batch with it changes when it is done,
not what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from apps.ffn.canvas import Array, Canvas, Look
from apps.ffn.segmenter import Segmenter


@dataclass(frozen=True)
class Subvolume:
    """`number` for the caller's use; `image` normalised, zyx float32, of the segmenter's shape."""

    number: int
    image: Array
    segmenter: Segmenter


@dataclass
class _Group:
    """Slots whose looks travel together: what is in them, and (slot, looks) of what is on its way."""

    slots: range
    held: dict[int, Subvolume] = field(default_factory=dict)
    in_flight: list[tuple[int, int]] = field(default_factory=list)


def flood(
    subvolumes: Iterator[Subvolume],
    canvas: Canvas,
    on_done: Callable[[Subvolume], None],
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Segment them all, as many at once as the canvas has slots; `on_done` is called with each as it ends, `on_batch`
    after every batch.

    A pipelined canvas gets two batches in turn: while it works on one, this process decides on the other.
    """
    half = (canvas.slots + 1) // 2 if canvas.pipelined else canvas.slots
    groups = [_Group(slots) for slots in (range(half), range(half, canvas.slots)) if slots]
    clock = _Clock(canvas)
    while True:
        for group in groups:
            if group.in_flight:
                _absorb(group, canvas)
                clock.share(group)
                group.in_flight = []
                on_batch()
            if looks := _propose(group, canvas, lambda: clock.wait(subvolumes), on_done):
                canvas.launch(looks)
        if not any(group.in_flight for group in groups):
            return


class _Clock:
    """Shares out the time since it was last asked, but for what went by in waiting for a subvolume."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._model, self._wall = canvas.model_seconds, time.perf_counter()

    def wait(self, subvolumes: Iterator[Subvolume]) -> Subvolume | None:
        """The next subvolume, whose preparation counts for itself."""
        begin = time.perf_counter()
        subvolume = next(subvolumes, None)
        self._wall += time.perf_counter() - begin
        return subvolume

    def share(self, group: _Group) -> None:
        model, wall = self._canvas.model_seconds, time.perf_counter()
        in_model, in_all = model - self._model, wall - self._wall
        self._model, self._wall = model, wall
        looks = sum(count for _, count in group.in_flight)
        for slot, count in group.in_flight:
            part = count / looks
            group.held[slot].segmenter.spend(model=part * in_model, other=part * (in_all - in_model))


def _absorb(group: _Group, canvas: Canvas) -> None:
    views, first = canvas.collect(), 0
    for slot, count in group.in_flight:
        group.held[slot].segmenter.absorb(views[first : first + count])
        first += count


def _propose(
    group: _Group,
    canvas: Canvas,
    next_subvolume: Callable[[], Subvolume | None],
    on_done: Callable[[Subvolume], None],
) -> list[Look]:
    looks: list[Look] = []
    for slot in group.slots:
        while True:
            if slot not in group.held:
                subvolume = next_subvolume()
                if subvolume is None:
                    break
                canvas.load(slot, subvolume.image)
                group.held[slot] = subvolume
            if proposed := group.held[slot].segmenter.propose(canvas, slot):
                looks += proposed
                group.in_flight.append((slot, len(proposed)))
                break
            on_done(group.held.pop(slot))
    return looks
