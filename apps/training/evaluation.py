"""Judging a training as it goes: the paper's metrics over held-out examples, and a segmentation of a small box.

The weights are frozen, and the examples are the same every time, whatever the number of ranks, which share them.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.core.volumes import Volume, absolute_volume
from apps.evaluation.metrics import Scores, score
from apps.ffn.backend import Predict
from apps.ffn.coordinates import TrainingCoordinates
from apps.ffn.examples import Augmentation, ExampleSource, Slot
from apps.ffn.model import ModelParameters
from apps.ffn.movement import Policy
from apps.ffn.network import Network
from apps.ffn.ranks import Ranks
from apps.ffn.tracker import COUNTED, FIELDS, FOVS, LOSS_SUM, METRICS, Metrics, Row, count_patch, metrics_of
from apps.ffn.training_volumes import OpenTrainingVolume, open_training_volumes
from apps.inference.segment import check_image, segment_with
from apps.training.parameters import EvaluationResult, TrainingEvaluation

Array = NDArray[np.float32]
Look = tuple[Slot, tuple[slice, ...]]

SCORES = ("vi_split", "vi_merge", "vi", "adapted_rand_error", "filled_fraction", "objects")
EVALUATION_COLUMNS = ("step", *METRICS, *SCORES, "seconds")


class Evaluator:
    """Judges networks of one description; opened and checked before any long work."""

    def __init__(
        self,
        parameters: TrainingEvaluation,
        training: Sequence[OpenTrainingVolume],
        model: ModelParameters,
        normalisation: tuple[float, float],
        *,
        policy: Policy,
        seed: int,
        unlabelled_weight: float,
        batch: int,
    ) -> None:
        """`training`: what is trained on, and so may not be judged on.

        `seed` chooses the examples; `batch` of them are looked at together.  Raises DataError where a volume cannot be
        used, or the box leaves it, has no label or is under the field of view.
        """
        self._parameters, self._policy, self._deltas = parameters, policy, model.deltas
        self._seed, self._batch = seed, batch
        volumes = open_training_volumes(parameters.volumes)
        chosen = _choose(volumes, parameters.canvases, seed)
        # Seen as they lie in the volume, however the training turns its own.
        as_they_are = Augmentation(permutable_axes=(), reflectable_axes=())
        self._source = ExampleSource(chosen, model, normalisation, unlabelled_weight, as_they_are, policy)
        check_held_out(training, volumes)
        self._image, self._normalisation = volumes[0].image, volumes[0].normalisation or normalisation
        if parameters.box is not None:
            check_image(self._image, parameters.box, model)
            self._truth = volumes[0].labels.read(parameters.box)
            if not self._truth.any():
                raise DataError(
                    f"{volumes[0].labels.name}: is 0 everywhere in the evaluation's box {parameters.box}; choose a "
                    "labelled box"
                )
        self._predict: Predict | None = None

    def evaluate(self, network: Network, step: int, ranks: Ranks) -> EvaluationResult:
        """Judge the network's present weights; called by all ranks, the same result on all."""
        begin = time.perf_counter()
        row = np.zeros(len(FIELDS))
        self._examples(network, row, ranks)
        row[: len(COUNTED)] = ranks.total(row[: len(COUNTED)])
        scores = self._segment(network, ranks)
        return EvaluationResult(step=step, metrics=metrics_of(row), scores=scores, seconds=time.perf_counter() - begin)

    def _examples(self, network: Network, row: Row, ranks: Ranks) -> None:
        """Go over this rank's examples in batches, an example in each place until it has no more moves."""
        self._predict = self._predict or network.predictor(self._batch)
        canvases = np.zeros((self._batch, *self._source.canvas), np.float32)
        inputs = np.zeros((2, self._batch, *self._source.fov), np.float32)
        waiting = deque(range(ranks.rank, len(self._source.coordinates), ranks.size))
        looks: dict[int, Look] = {}
        while True:
            for place, canvas in enumerate(canvases):
                slot = looks.pop(place)[0] if place in looks else None
                look = self._next_look(slot, waiting, canvas, row)
                if look is not None:
                    looks[place] = look
            if not looks:
                return
            for place, (slot, window) in looks.items():
                inputs[0, place], inputs[1, place] = slot.current.image[window], slot.canvas[window]
            logits = self._predict(inputs[0], inputs[1])
            for place, (slot, window) in looks.items():
                row[LOSS_SUM] += _loss(logits[place], slot.current.labels[window], slot.current.weights[window])
                row[FOVS] += 1
                slot.canvas[window] = logits[place]

    def _next_look(self, slot: Slot | None, waiting: deque[int], canvas: Array, row: Row) -> Look | None:
        """The next field of view of the example in progress, or of one that waits; None: there is no more.

        Examples without another field of view are counted in `row`.
        """
        while slot is not None or waiting:
            if slot is None:
                # Of as many streams as examples, each begins with one of its own.
                count = len(self._source.coordinates)
                slot = Slot(self._source, self._deltas, self._policy, self._seed, waiting.popleft(), count, canvas)
                slot.start()
            position = slot.next_position()
            if not slot.finished:
                starts = [p - f // 2 for p, f in zip(position, self._source.fov, strict=True)]
                window = (slice(start, start + f) for start, f in zip(starts, self._source.fov, strict=True))
                return slot, tuple(window)
            count_patch(row, slot.finished[0])
            slot = None
        return None

    def _segment(self, network: Network, ranks: Ranks) -> Scores | None:
        """Rank 0 segments the box, the others learn its scores."""
        parameters, names = self._parameters, Scores.__struct_fields__
        if parameters.box is None:
            return None
        values = np.zeros(len(names))
        if ranks.rank == 0:
            found = segment_with(
                network, self._image, parameters.box, self._normalisation, parameters.inference, silent
            )
            scores = score(self._truth, found.labels)
            values[:] = [getattr(scores, name) for name in names]
        shared: dict[str, Any] = dict(zip(names, ranks.total(values).tolist(), strict=True))
        return Scores(**shared | {"objects": int(shared["objects"])})


def check_held_out(training: Sequence[OpenTrainingVolume], held: Sequence[OpenTrainingVolume]) -> None:
    """Raise DataError where an evaluation would be on coordinates that are trained on."""
    for one, other in itertools.product(held, training):
        if _place(one.image) != _place(other.image):
            continue
        both = int(np.isin(_indices(one), _indices(other)).sum())
        if both:
            raise DataError(
                f"evaluation.volumes: {both} of its {len(one.coordinates.zyx)} coordinates in {one.image.name} are "
                "trained on too; partition a box of its own for the evaluation"
            )


def _place(volume: Volume) -> str:
    """The same for two names of one volume."""
    return str(Path(absolute_volume(volume.name)).resolve())


def _indices(volume: OpenTrainingVolume) -> NDArray[np.int64]:
    """Flat indices of those of the coordinates that are in the image; the others cannot be trained on."""
    zyx, shape = volume.coordinates.zyx, volume.image.shape
    return np.ravel_multi_index(tuple(zyx[((zyx >= 0) & (zyx < shape)).all(axis=1)].T), shape)


def _choose(volumes: Sequence[OpenTrainingVolume], canvases: int, seed: int) -> list[OpenTrainingVolume]:
    """The volumes with so many of their coordinates, drawn from all of them together."""
    counts = [len(volume.coordinates.zyx) for volume in volumes]
    order = np.random.default_rng([seed, 3]).permutation(sum(counts))[:canvases]
    chosen, first = [], 0
    for volume, count in zip(volumes, counts, strict=True):
        own = np.sort(order[(order >= first) & (order < first + count)]) - first
        first += count
        if len(own):
            coordinates = TrainingCoordinates(volume.coordinates.zyx[own], volume.coordinates.box)
            chosen.append(dataclasses.replace(volume, coordinates=coordinates))
    return chosen


def _loss(logits: Array, labels: Array, weights: Array) -> float:
    """Mean weighted sigmoid cross-entropy, as the training has it."""
    per_voxel = np.maximum(logits, 0) - logits * labels + np.log1p(np.exp(-np.abs(logits)))
    return float(np.mean(weights * per_voxel))


def table_values(result: EvaluationResult) -> list[float | None]:
    """What the CSV shows of an evaluation, in the order of EVALUATION_COLUMNS."""
    metrics = [getattr(result.metrics, name) for name in METRICS]
    scores = [getattr(result.scores, name) if result.scores else None for name in SCORES]
    return [result.step, *metrics, *scores, result.seconds]


_NUMBERS = (*METRICS, *Scores.__struct_fields__)


def to_row(result: EvaluationResult) -> NDArray[np.float64]:
    """One evaluation as numbers, for the checkpoint: step, metrics, scores, seconds; NaN for what there is not."""
    parts: dict[str, Any] = {**result.metrics.to_dict(), **(result.scores.to_dict() if result.scores else {})}
    values = [parts.get(name) for name in _NUMBERS]
    numbers = [np.nan if value is None else value for value in values]
    return np.array([result.step, *numbers, result.seconds], np.float64)


def from_row(row: NDArray[np.float64]) -> EvaluationResult:
    """The inverse of `to_row`.  Raises ValueError where the row cannot be one."""
    if row.shape != (2 + len(_NUMBERS),):
        raise ValueError(f"an evaluation of shape {row.shape}, expected {2 + len(_NUMBERS)} numbers")
    step, *numbers, seconds = row.tolist()
    values: dict[str, Any] = {
        name: None if np.isnan(value) else value for name, value in zip(_NUMBERS, numbers, strict=True)
    }
    scores = {name: values[name] for name in Scores.__struct_fields__}
    return EvaluationResult(
        step=int(step),
        metrics=Metrics(**{name: values[name] for name in METRICS}),
        scores=None if scores["vi"] is None else Scores(**scores | {"objects": int(scores["objects"])}),
        seconds=seconds,
    )
