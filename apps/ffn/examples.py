"""Training examples: a stream of canvases around coordinates, and the moves of the field of view over each.

Every slot of a batch is a stream of its own.  What a stream shows next depends only on (seed, slot, number of the
example), on the state of its moves, and on what the network has written on its canvas: those and the canvases are all
that a checkpoint needs to hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, cast

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize
from apps.ffn.model import ModelParameters
from apps.ffn.movement import CENTRE, PAD, POLICIES, Ground, Integers, Movement, Policy, logit, training_canvas
from apps.ffn.training_volumes import OpenTrainingVolume

Array = NDArray[np.float32]
Axis = Literal["z", "y", "x"]

# Volumes of up to so many voxels in all around the coordinates are held in memory; others are read canvas by canvas.
MEMORY_VOXELS = 512 * 2**20


class Augmentation(Parameters, frozen=True, kw_only=True):
    """How an example may be turned.  Axes are only ever exchanged where canvas and voxels are equal on both."""

    permutable_axes: Annotated[tuple[Axis, ...], Meta(description="axes that may be exchanged with each other")] = (
        "z",
        "y",
        "x",
    )
    reflectable_axes: Annotated[tuple[Axis, ...], Meta(description="axes that may be reflected")] = ("z", "y", "x")


@dataclass(frozen=True)
class Example:
    """One canvas: normalised image, soft object mask, weight of the loss; each zyx float32."""

    image: Array
    labels: Array
    weights: Array


class ExampleSource:
    """Cuts training examples out of images and label volumes.

    Attributes:
        coordinates: centres of all examples, int32 [n, 3] zyx, volume after volume.
        volume_of: the volume's number of each, [n].
        axis_orders: for each volume the orders of the axes that an example may be put into.
        canvas: extent zyx of an example.
    """

    def __init__(
        self,
        volumes: Sequence[OpenTrainingVolume],
        model: ModelParameters,
        normalisation: tuple[float, float],
        unlabelled_weight: float,
        augmentation: Augmentation | None = None,
        policy: Policy = "fixed",
    ) -> None:
        """`normalisation`: (mean, standard deviation) of the images that have none of their own.

        `unlabelled_weight`: weight of the loss where the label is 0.  `policy` says how large a canvas is.
        Raises DataError where a canvas leaves its volume, or the box that its coordinates were drawn from.
        """
        augmentation = augmentation or Augmentation()
        self.fov = model.fov
        self.canvas = training_canvas(model.fov, model.deltas, policy)
        self._radius = np.array(self.canvas) // 2
        for volume in volumes:
            _check_canvases(volume, self.canvas)
        self.coordinates = np.concatenate([volume.coordinates.zyx for volume in volumes])
        counts = [len(volume.coordinates.zyx) for volume in volumes]
        self.volume_of = np.repeat(np.arange(len(volumes), dtype=np.int32), counts)
        self.axis_orders = [
            axis_orders(self.canvas, volume.voxel_size_nm, augmentation.permutable_axes) for volume in volumes
        ]
        self._reflectable = np.array([axis in augmentation.reflectable_axes for axis in "zyx"])
        boxes = [_read_box(volume.coordinates.zyx, self._radius) for volume in volumes]
        hold = sum(box.size for box in boxes) <= MEMORY_VOXELS
        self._cutters = [
            _Cutter(volume, box if hold else None, volume.normalisation or normalisation, unlabelled_weight)
            for volume, box in zip(volumes, boxes, strict=True)
        ]

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """The canvas around coordinate `index`, reflected and turned by chance."""
        flips = rng.integers(0, 2, 3).astype(bool) & self._reflectable
        orders = self.axis_orders[self.volume_of[index]]
        return self.cut(index, flips, orders[int(rng.integers(len(orders)))])

    def cut(self, index: int, flips: NDArray[np.bool_], axes: Triple) -> Example:
        """The canvas around coordinate `index`, its axes flipped where `flips`, then put into the order `axes`."""
        box = Box.of(tuple(self.coordinates[index] - self._radius), self.canvas)
        return self._cutters[self.volume_of[index]].cut(box, flips, axes)


class _Cutter:
    """Examples of one volume; `held` is what is kept in memory of it."""

    def __init__(
        self, volume: OpenTrainingVolume, held: Box | None, normalisation: tuple[float, float], unlabelled_weight: float
    ) -> None:
        self._volumes = [volume.image, volume.labels, *([volume.mask] if volume.mask else [])]
        self._held = None if held is None else [one.read(held) for one in self._volumes]
        self._origin = (0, 0, 0) if held is None else held.offset
        self._mean, self._std = (np.float32(value) for value in normalisation)
        self._unlabelled_weight = np.float32(unlabelled_weight)

    def cut(self, box: Box, flips: NDArray[np.bool_], axes: Triple) -> Example:
        if self._held is not None:
            found = [array[box.slices(self._origin)] for array in self._held]
        else:
            found = [one.read(box) for one in self._volumes]
        view = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        image, labels, *mask = (np.ascontiguousarray(array[view].transpose(axes)) for array in found)
        of_centre = labels[tuple(n // 2 for n in labels.shape)]
        own = (labels == of_centre) & (labels > 0)
        weights = np.where(labels > 0, np.float32(1), self._unlabelled_weight)
        for excluded in mask:
            weights[excluded != 0] = 0
        return Example(
            image=(image.astype(np.float32) - self._mean) / self._std,
            labels=np.where(own, np.float32(CENTRE), np.float32(PAD)),
            weights=weights,
        )


def _read_box(zyx: NDArray[np.int32], radius: NDArray[np.int64]) -> Box:
    """The box of all voxels that canvases around `zyx` read."""
    start, last = zyx.min(axis=0) - radius, zyx.max(axis=0) + radius
    return Box.of(tuple(start), tuple(last - start + 1))


def _check_canvases(volume: OpenTrainingVolume, canvas: Triple) -> None:
    zyx, radius, image = volume.coordinates.zyx, np.array(canvas) // 2, volume.image
    bounds = [(image.box, f"the border of {image.name} {image.shape}")]
    if volume.coordinates.box is not None:
        bounds.append((volume.coordinates.box, f"the border of the box {volume.coordinates.box} they were drawn from"))
    for box, words in bounds:
        outside = int(((zyx - radius < box.offset) | (zyx + radius >= box.end)).any(axis=1).sum())
        if outside:
            raise DataError(
                f"{outside} of {len(zyx)} training coordinates lie so close to {words} that a canvas of {canvas} "
                f"leaves it ({image.name}); partition with this field of view and deltas, or a larger margin"
            )


def axis_orders(canvas: Triple, voxel_size: VoxelSize | None, permutable: Sequence[Axis]) -> list[Triple]:
    """Orders of the axes that map each one to itself, or to another of the same extent and resolution.

    `voxel_size` None: the same on all axes.  Axes that are not in `permutable` stay where they are.
    """
    kinds = list(zip(canvas, voxel_size or (1.0, 1.0, 1.0), strict=True))
    fixed = [number for number, axis in enumerate("zyx") if axis not in permutable]
    orders = (cast(Triple, order) for order in itertools.permutations(range(3)))
    return [
        order
        for order in orders
        if [kinds[axis] for axis in order] == kinds and all(order[number] == number for number in fixed)
    ]


@dataclass
class Patch:
    """A canvas that the network has left, for the metrics.

    Attributes:
        labels, logits, weights: soft labels, last logits and weights of the loss zyx; the field of view and one step to
            either side (google/ffn evaluates that much of the larger canvas of `max_pred_moves`).
        correct_moves, missed_moves, spurious_moves: of the field of view: wanted by the labels and made, wanted and not
            made, made and not wanted.
    """

    labels: Array
    logits: Array
    weights: Array
    correct_moves: int = 0
    missed_moves: int = 0
    spurious_moves: int = 0


@dataclass
class Slot:
    """One stream of examples: the place of one field of view in the batch.

    `slot` of `slots` counts over the batches of all ranks (rank * batch + place): streams share no coordinate of an
    epoch, and together show each one, where there are at least `slots` coordinates.

    Attributes:
        canvas: logits zyx of the example in progress, of the source's canvas; written by the trainer after every step.
        example: how many examples came before it.
        current: the example in progress.
        finished: canvases that were left; the trainer takes them out after every `next_position`.
    """

    source: ExampleSource
    deltas: Triple
    policy: Policy
    seed: int
    slot: int
    slots: int
    canvas: Array
    example: int = 0
    finished: list[Patch] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.source.coordinates)
        # With fewer coordinates than slots every slot shows them all, each in an order of its own.
        self._mine = np.arange(self.slot, count, self.slots) if count >= self.slots else np.arange(count)
        self._centre = tuple(n // 2 for n in self.source.canvas)
        self._evaluated = _inner(self.source.canvas, training_canvas(self.source.fov, self.deltas, "fixed"))
        self._epoch = -1
        self._load()

    def start(self) -> None:
        """Reset the canvas to the seed of a new object: unknown everywhere, the centre inside."""
        self.canvas[...] = logit(PAD)
        self.canvas[self._centre] = logit(CENTRE)

    def next_position(self) -> Triple:
        """Centre zyx, in the canvas, of the next field of view; goes on to new examples where moves are used up."""
        while (position := self._moves.next(self.canvas)) is None:
            self.finished.append(self._patch())
            self.example += 1
            self._load()
            self.start()
        return position

    def state(self) -> Integers:
        """Where the stream is, besides the canvas: int64 [n], n >= 1, of a length that the policy chooses."""
        return np.concatenate([np.array([self.example], np.int64), self._moves.state()])

    def restore(self, state: Integers) -> None:
        """Go to a `state()`; the caller fills the canvas.  Raises ValueError where it is none of this policy's."""
        if state.ndim != 1 or len(state) < 1 or state[0] < 0 or state.dtype.kind != "i":
            raise ValueError(f"a {state.dtype} array of shape {state.shape} is no state of a stream of examples")
        self.example = int(state[0])
        self._load()
        self._moves.restore(state[1:])

    def _patch(self) -> Patch:
        labels, logits, weights = (
            array[self._evaluated] for array in (self.current.labels, self.canvas.copy(), self.current.weights)
        )
        return Patch(labels, logits, weights, *self._moves.counts.tolist())

    def _load(self) -> None:
        epoch, place = divmod(self.example, len(self._mine))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 1, self.slot, epoch]).permutation(self._mine)
            self._epoch = epoch
        rng = np.random.default_rng([self.seed, 2, self.slot, self.example])
        self.current = self.source.draw(int(self._order[place]), rng)
        ground = Ground(self.current.labels, self.source.fov, self.deltas, rng)
        self._moves: Movement = POLICIES[self.policy](ground)


def _inner(outer: Triple, inner: Triple) -> tuple[slice, ...]:
    """Slices that cut the middle of extent `inner` out of an array of extent `outer`."""
    starts = ((o - i) // 2 for o, i in zip(outer, inner, strict=True))
    return tuple(slice(start, start + extent) for start, extent in zip(starts, inner, strict=True))
