"""One trial of a search, as one job: train a variant, segment the validation box with it, score that.

Killed and run again it goes on from the training's checkpoint; a finished training is not repeated.  Of several ranks
(see apps/ffn/ranks.py) all train, and rank 0 segments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, open_volume, write_volume
from apps.evaluation.contingency import Labels
from apps.evaluation.metrics import Scores, score
from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.ranks import Ranks, start_ranks
from apps.ffn.settings import InferenceSettings
from apps.inference.segment import check_image, segment_box
from apps.training.parameters import TrainingParameters, TrainingResult
from apps.training.stage import put_back_checkpoint
from apps.training.stage import run as run_training
from apps.training.stage import starting_point as training_start

SEGMENTATION = "validation.zarr"

# Share of the trial's progress that is the training.
_TRAINING_SHARE = 0.8


class TrialParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the trial stage."""

    training: Annotated[TrainingParameters, Meta(description="what to train; the trial writes to its output folder")]
    validation_box: Annotated[Box, Meta(description="box of the training's first volume to segment and score")]
    context: Annotated[Triple, Meta(description="voxels around that box, zyx, segmented but not scored")] = (8, 8, 8)
    inference: Annotated[InferenceSettings, Meta(description="settings of the segmentation")] = InferenceSettings()

    def check(self) -> None:
        if min(self.context) < 0:
            raise ParameterError(f"context {self.context}: expected no negative number of voxels")


class TrialResult(Result, frozen=True, kw_only=True):
    """Result of a trial.

    Attributes:
        training: metrics and cost of the training.
        scores: the validation segmentation against the labels.
        segmentation: uint32 OME-Zarr of the validation box.
        truncated: whether the bound on steps ended the segmentation; its scores are those of what there was.
        inference: the settings that the validation box was segmented with.
        inference_steps, rejected_seeds: fields of view looked at, seeds without an object.
        voxels_per_second: voxels segmented (validation box and context) per second of flood filling.
        flop_per_voxel: operations of the segmentation's network steps, per voxel segmented.
    """

    training: TrainingResult
    scores: Scores
    segmentation: str
    inference: InferenceSettings
    truncated: bool
    inference_steps: int
    rejected_seeds: int
    voxels_per_second: float
    flop_per_voxel: float


class _Measured(Result, frozen=True, kw_only=True):
    """What rank 0 measured of the segmentation, as numbers that it can tell the others."""

    truncated: float
    steps: float
    rejected: float
    seconds: float


def run(parameters: TrialParameters, report: Reporter) -> TrialResult:
    """Train, segment, score.

    Raises DataError and ParameterError before any long work, DivergedError where the training diverges.
    """
    settings, box = parameters.training, parameters.validation_box
    ranks = start_ranks(settings.threads)
    ranks.agree("parameters", parameters.hash())
    put_back_checkpoint(settings, ranks)
    volume = settings.volumes[0]
    image, labels = open_volume(volume.image), open_volume(volume.labels)
    # Deployed, a subvolume sees a margin around what it owns; so does the validation box, as far as the volume goes.
    segmented = box.grow(parameters.context).intersection(image.box)
    check_image(image, segmented, training_start(settings).model)
    truth = labels.read(box)
    if not truth.any():
        raise DataError(f"{labels.name}: is 0 everywhere in the validation box {box}; choose a labelled box")

    def report_training(done: float, total: float, what: str = "") -> None:
        report(_TRAINING_SHARE * done, total, what)

    def report_segmenting(done: float, total: float, what: str = "") -> None:
        report(_TRAINING_SHARE * total + (1 - _TRAINING_SHARE) * done, total, what)

    training = run_training(settings, report_training)
    found = None
    if ranks.rank == 0:
        found = _segment(parameters, training, image, truth, segmented, report_segmenting)
    scores, measured = _tell(found, ranks)
    return TrialResult(
        training=training,
        scores=scores,
        segmentation=str(Path(settings.output) / SEGMENTATION),
        inference=parameters.inference,
        truncated=bool(measured.truncated),
        inference_steps=int(measured.steps),
        rejected_seeds=int(measured.rejected),
        voxels_per_second=segmented.size / measured.seconds if measured.seconds else 0.0,
        flop_per_voxel=measured.steps * training.flop_per_fov / segmented.size,
    )


def _segment(
    parameters: TrialParameters,
    training: TrainingResult,
    image: Volume,
    truth: Labels,
    segmented: Box,
    report: Reporter,
) -> tuple[Scores, _Measured]:
    """Segment the box `segmented`, write the validation box within it, and score that against `truth`."""
    settings = parameters.training
    checkpoint = load_checkpoint(training.checkpoint)
    normalisation = checkpoint.normalisation(settings.volumes[0].image_mean, settings.volumes[0].image_std)
    found = segment_box(image, segmented, checkpoint, normalisation, parameters.inference, settings.threads, report)
    labelled = found.labels[parameters.validation_box.slices(segmented.offset)]
    write_volume(Path(settings.output) / SEGMENTATION, labelled, image.voxel_size_nm or UNKNOWN_VOXEL_SIZE)
    counters = found.counters
    measured = _Measured(
        truncated=float(found.truncated),
        steps=float(counters.steps),
        rejected=float(counters.weak + counters.small),
        seconds=counters.model_seconds + counters.other_seconds,
    )
    return score(truth, labelled), measured


def _tell(found: tuple[Scores, _Measured] | None, ranks: Ranks) -> tuple[Scores, _Measured]:
    """What rank 0 found, on all ranks; the others have None."""
    names, more = Scores.__struct_fields__, _Measured.__struct_fields__
    values = np.zeros(len(names) + len(more))
    if found is not None:
        values[:] = [getattr(part, name) for part in found for name in part.__struct_fields__]
    numbers = ranks.total(values).tolist()
    scores: dict[str, Any] = dict(zip(names, numbers, strict=False))
    scores["objects"] = int(scores["objects"])
    return Scores(**scores), _Measured(**dict(zip(more, numbers[len(names) :], strict=True)))


STAGE = Stage(
    name="trial",
    summary="One trial of a search: train a variant, segment the validation box, score it.",
    parameters=TrialParameters,
    result=TrialResult,
    run=run,
    several_ranks=True,
    example={
        "training": {
            "volumes": [
                {
                    "image": "volume/image.zarr",
                    "labels": "volume/labels.zarr",
                    "coordinates": "volume/coordinates.npz",
                }
            ],
            "output": "trial",
            "model": {"depth": 4, "features": 16},
            "learning_rate": 0.002,
            "steps": 500,
            "image_mean": 128.0,
            "image_std": 33.0,
        },
        "validation_box": {"offset": [0, 0, 0], "shape": [64, 64, 64]},
    },
)
