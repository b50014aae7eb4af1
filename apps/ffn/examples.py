"""Training examples: a stream of canvases around coordinates, and the moves of the field of view over each.

Every slot of a batch is a stream of its own.  What a stream shows next depends only on (seed, slot, number of the
example, number of the move) and on what the network has written on its canvas: those few numbers and the canvases are
all that a checkpoint needs to hold.  Policy `fixed` of google/ffn: the centre, then the 26 shifts by delta.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.volumes import Volume, VoxelSize
from apps.ffn.model import ModelParameters

Array = NDArray[np.float32]

# Probabilities of google/ffn: an unknown voxel of the seed, its centre, what a move needs; labels are softened alike.
PAD, CENTRE, MOVE = 0.05, 0.95, 0.9

# Volumes up to this many voxels around the coordinates are held in memory; larger ones are read canvas by canvas.
MEMORY_VOXELS = 512 * 2**20


def logit(probability: float) -> np.float32:
    """log(p / (1 - p)) as float32."""
    return np.float32(np.log(probability / (1.0 - probability)))


@dataclass(frozen=True)
class Example:
    """One canvas: normalised image, soft object mask, weight of the loss; each zyx float32."""

    image: Array
    labels: Array
    weights: Array


class ExampleSource:
    """Cuts training examples out of an image and a label volume."""

    def __init__(
        self,
        image: Volume,
        labels: Volume,
        coordinates: NDArray[np.int32],
        model: ModelParameters,
        normalisation: tuple[float, float],
        unlabelled_weight: float,
    ) -> None:
        """`coordinates` [n, 3] zyx are the canvases' centres; `normalisation` is (mean, standard deviation).

        `unlabelled_weight`: weight of the loss where the label is 0.
        Raises DataError where the volumes do not fit each other or a canvas leaves them.
        """
        self.coordinates = coordinates
        self.canvas = model.canvas
        self._mean, self._std = (np.float32(value) for value in normalisation)
        self._unlabelled_weight = np.float32(unlabelled_weight)
        self._radius = np.array(self.canvas) // 2
        check_training_volumes(image, labels)
        start, last = coordinates.min(axis=0) - self._radius, coordinates.max(axis=0) + self._radius
        outside = int(((coordinates < self._radius) | (coordinates + self._radius >= image.shape)).any(axis=1).sum())
        if outside:
            raise DataError(
                f"{outside} of {len(coordinates)} training coordinates lie so close to the border of {image.name} "
                f"{image.shape} that a canvas of {self.canvas} leaves it; partition with this field of view and deltas"
            )
        box = Box.of(tuple(start), tuple(last - start + 1))
        self._image, self._labels = image, labels
        self._held: tuple[NDArray[np.uint8], NDArray[np.integer]] | None = None
        self._origin = box.offset
        if box.size <= MEMORY_VOXELS:
            self._held = image.read(box), labels.read(box)
        self.axis_orders = _axis_orders(self.canvas, image.voxel_size_nm)

    def cut(self, index: int, flips: NDArray[np.bool_], axes: Triple) -> Example:
        """The canvas around coordinate `index`, its axes flipped where `flips`, then put into the order `axes`."""
        centre = self.coordinates[index]
        box = Box.of(tuple(centre - self._radius), self.canvas)
        if self._held is not None:
            image, labels = (volume[box.slices(self._origin)] for volume in self._held)
        else:
            image, labels = self._image.read(box), self._labels.read(box)
        view = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        image, labels = (np.ascontiguousarray(volume[view].transpose(axes)) for volume in (image, labels))
        of_centre = labels[tuple(self._radius)]
        mask = (labels == of_centre) & (labels > 0)
        weights = np.where(labels > 0, np.float32(1), self._unlabelled_weight)
        return Example(
            image=(image.astype(np.float32) - self._mean) / self._std,
            labels=np.where(mask, np.float32(CENTRE), np.float32(PAD)),
            weights=weights,
        )


def check_training_volumes(image: Volume, labels: Volume) -> None:
    """Raise DataError unless the image is uint8 and the labels are integers of the same shape."""
    if image.dtype != np.uint8:
        raise DataError(f"{image.name}: has dtype {image.dtype}; expected uint8 grey values")
    if labels.dtype.kind not in "ui":
        raise DataError(f"{labels.name}: has dtype {labels.dtype}; expected integer labels, 0 for no object")
    if image.shape != labels.shape:
        raise DataError(f"{labels.name}: has the shape {labels.shape}, but {image.name} has {image.shape}")


def _axis_orders(canvas: Triple, voxel_size: VoxelSize | None) -> list[Triple]:
    """Orders of the axes that map each one to another of the same extent and resolution (unknown: the same for all)."""
    kinds = list(zip(canvas, voxel_size or (1.0, 1.0, 1.0), strict=True))
    orders = itertools.permutations(range(3))
    return [cast(Triple, order) for order in orders if [kinds[axis] for axis in order] == kinds]


def fixed_moves(deltas: Triple) -> NDArray[np.int64]:
    """The distinct shifts [n, 3] zyx of policy `fixed` besides the centre: 26 where no delta is 0."""
    shifts = set(itertools.product(*({-step, 0, step} for step in deltas))) - {(0, 0, 0)}
    return np.array(sorted(shifts), np.int64)


@dataclass
class Patch:
    """A canvas that the network has left: soft labels, last logits and weights, for the metrics."""

    labels: Array
    logits: Array
    weights: Array


@dataclass
class Slot:
    """One stream of examples: the place of one field of view in the batch.

    Attributes:
        canvas: logits zyx of the example in progress, written by the trainer after every step.
        example: how many examples came before it.
        move: how many of its moves were looked at.
    """

    source: ExampleSource
    deltas: Triple
    seed: int
    slot: int
    slots: int
    canvas: Array
    example: int = 0
    move: int = 0
    finished: list[Patch] = field(default_factory=list)

    def __post_init__(self) -> None:
        count = len(self.source.coordinates)
        # Slots share no coordinate where there are enough of them.
        self._mine = np.arange(self.slot, count, self.slots) if count >= self.slots else np.arange(count)
        self._gate = logit(MOVE)
        self._centre = np.array(self.source.canvas) // 2
        self._shifts = fixed_moves(self.deltas)
        self._epoch = -1
        self._load()

    def restore(self, example: int, move: int) -> None:
        """Go to a place that a checkpoint holds; the canvas has been filled by the caller."""
        self.example, self.move = example, move
        self._load()

    def start(self) -> None:
        """Reset the canvas to the seed of a new object: unknown everywhere, the centre inside."""
        self.canvas[...] = logit(PAD)
        self.canvas[tuple(self._centre)] = logit(CENTRE)

    def next_position(self) -> Triple:
        """Centre zyx, in the canvas, of the next field of view; goes on to new examples where moves are used up."""
        while True:
            while self.move < len(self._moves):
                position = tuple(self._moves[self.move])
                self.move += 1
                if self.canvas[position] >= self._gate:
                    return cast(Triple, position)
            self.finished.append(Patch(self.current.labels, self.canvas.copy(), self.current.weights))
            self.example, self.move = self.example + 1, 0
            self._load()
            self.start()

    def _load(self) -> None:
        epoch, place = divmod(self.example, len(self._mine))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 1, self.slot, epoch]).permutation(self._mine)
            self._epoch = epoch
        rng = np.random.default_rng([self.seed, 2, self.slot, self.example])
        flips = rng.integers(0, 2, 3).astype(bool)
        axes = self.source.axis_orders[int(rng.integers(len(self.source.axis_orders)))]
        self.current = self.source.cut(int(self._order[place]), flips, axes)
        shifts = rng.permutation(self._shifts)
        self._moves = self._centre + np.concatenate([np.zeros((1, 3), np.int64), shifts])
