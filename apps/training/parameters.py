"""What a training is asked for, and what it answers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from apps.core.parameters import Parameters, Result
from apps.evaluation.metrics import Scores
from apps.ffn.examples import Augmentation
from apps.ffn.model import ModelParameters, Precision
from apps.ffn.movement import Policy
from apps.ffn.optimizers import OptimizerName
from apps.ffn.schedules import ScalingName, Schedule, ScheduleName
from apps.ffn.settings import InferenceSettings
from apps.ffn.tracker import Metrics
from apps.ffn.training_volumes import TrainingVolume

_Volumes = Annotated[tuple[TrainingVolume, ...], Meta(min_length=1, description="labelled volumes")]


class TrainingEvaluation(Parameters, frozen=True, kw_only=True):
    """How a training is judged as it goes, on data that it does not see."""

    volumes: Annotated[_Volumes, Meta(description="held out: no coordinate may be one that is trained on")]
    every: Annotated[int, Meta(ge=1, description="steps from one evaluation to the next; the last step always is one")]
    canvases: Annotated[
        int, Meta(ge=1, le=100_000, description="examples of these volumes that are judged, the same every time")
    ] = 64
    box: Annotated[Box | None, Meta(description="box of the first volume to segment and score; null: none is")] = None
    inference: Annotated[
        InferenceSettings, Meta(description="settings of that segmentation, in the training's own precision")
    ] = InferenceSettings()

    def check(self) -> None:
        if self.inference.precision is not None:
            raise ParameterError(
                f"evaluation.inference.precision {self.inference.precision}: the network is the one that is trained; "
                "leave it out"
            )


class TrainingParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the training stage."""

    volumes: Annotated[_Volumes, Meta(description="labelled volumes, with coordinates of the partition stage")]
    output: Annotated[str, Meta(min_length=1, description="folder for checkpoint, learning curve and events")]
    model: Annotated[ModelParameters | None, Meta(description="variant; null with init: that of the checkpoint")] = None
    init: Annotated[str | None, Meta(description="start from this checkpoint folder or google/ffn prefix")] = None
    init_fov: Annotated[Triple, Meta(description="field of view zyx of a google/ffn init")] = (33, 33, 33)
    init_deltas: Annotated[Triple, Meta(description="deltas zyx of a google/ffn init")] = (8, 8, 8)
    optimizer: Annotated[OptimizerName, Meta(description="optimiser, one of Keras")] = "adam"
    learning_rate: Annotated[
        float, Meta(gt=0, le=10, description="learning rate of one rank, at the start of its schedule")
    ] = 1e-3
    scaling: Annotated[
        ScalingName, Meta(description="the rate grows with the number of ranks: none, linear, sqrt (its root)")
    ] = "none"
    warmup_steps: Annotated[int, Meta(ge=0, description="steps over which the rate rises from 0, in a line")] = 0
    schedule: Annotated[
        ScheduleName,
        Meta(description="of the rate after that: constant, cosine (down to 0), step (see step_every, step_factor)"),
    ] = "constant"
    step_every: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="steps after which schedule step multiplies the rate")
    ] = None
    step_factor: Annotated[float, Meta(gt=0, lt=1, description="what schedule step multiplies the rate by")] = 0.1
    schedule_steps: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="steps that the schedule is laid out over, so that `steps` may be raised later; null: steps"),
    ] = None
    clip: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="bound on the magnitude of every entry of the gradient (google/ffn's is 0.7); null: none"),
    ] = 0.7
    ema: Annotated[
        Annotated[float, Meta(gt=0, lt=1)] | None,
        Meta(description="decay of a moving average of the weights, which is then what is used; null: none"),
    ] = None
    precision: Annotated[
        Precision, Meta(description="what the network computes in; weights stay float32, float16 scales the loss")
    ] = "float32"
    policy: Annotated[
        Policy, Meta(description="moves of the field of view: fixed, or max_pred_moves (as in inference)")
    ] = "fixed"
    augmentation: Annotated[Augmentation, Meta(description="how examples are turned")] = Augmentation()
    batch_size: Annotated[int, Meta(ge=1, le=4096, description="fields of view a step, on each rank")] = 8
    steps: Annotated[int, Meta(ge=0, description="optimiser updates; 0 with init: adopt the weights as they are")] = 500
    seed: Annotated[int, Meta(ge=0, description="of the initial weights, the examples' order and augmentation")] = 0
    checkpoint_every: Annotated[int, Meta(ge=1, description="steps from one checkpoint to the next")] = 100
    curve_every: Annotated[int, Meta(ge=1, description="steps in one row of the learning curve")] = 20
    evaluation: Annotated[TrainingEvaluation | None, Meta(description="on held-out data; null: none")] = None
    image_mean: Annotated[float | None, Meta(description="subtracted from the images; null: the init's")] = None
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="divides the images; null: the init's")
    ] = None
    unlabelled_weight: Annotated[
        float, Meta(ge=0, le=1, description="loss weight where the label is 0; 0 where that means unknown")
    ] = 1.0
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of TensorFlow, on each rank")] = 1

    def check(self) -> None:
        if self.model is None and self.init is None:
            raise ParameterError("model, init: one is needed, an architecture or a checkpoint to start from")
        if self.init is None and (self.image_mean is None or self.image_std is None):
            raise ParameterError("image_mean, image_std: needed, the ingest stage's result gives them")
        if self.init is None and self.steps == 0:
            raise ParameterError("steps = 0: expected at least 1 without init, there are no weights to adopt")
        if self.schedule_steps is not None and self.schedule_steps < self.steps:
            raise ParameterError(
                f"schedule_steps = {self.schedule_steps}: expected at least steps = {self.steps}; the schedule "
                "would end before the training does"
            )
        if self.warmup_steps and self.warmup_steps >= self.laid_out_steps:
            name = "steps" if self.schedule_steps is None else "schedule_steps"
            raise ParameterError(
                f"warmup_steps = {self.warmup_steps}: expected fewer than {name} = {self.laid_out_steps}"
            )
        if (self.schedule == "step") != (self.step_every is not None):
            raise ParameterError(
                f"step_every = {self.step_every}, schedule {self.schedule}: step needs it, the others have none"
            )

    @property
    def laid_out_steps(self) -> int:
        """Steps that the schedule of the rate is laid out over."""
        return self.steps if self.schedule_steps is None else self.schedule_steps

    def learning_rates(self, ranks: int) -> Schedule:
        """What decides the learning rate of every step on so many ranks."""
        return Schedule(
            learning_rate=self.learning_rate,
            name=self.schedule,
            steps=self.laid_out_steps,
            scaling=self.scaling,
            ranks=ranks,
            warmup_steps=self.warmup_steps,
            step_every=self.step_every or 1,
            step_factor=self.step_factor,
        )


class EvaluationResult(Result, frozen=True, kw_only=True):
    """One evaluation; `scores` are null where no box is segmented."""

    step: Annotated[int, Meta(description="training steps done")]
    metrics: Annotated[Metrics, Meta(description="over the held-out examples")]
    scores: Annotated[Scores | None, Meta(description="of the segmented box against its labels")]
    seconds: Annotated[float, Meta(description="what the evaluation took")]


class TrainingResult(Result, frozen=True, kw_only=True):
    """Result of the training stage.

    The metrics are those of the training's own examples over the last quarter of the steps; null where there were none.
    """

    checkpoint: Annotated[str, Meta(description="folder of the checkpoint")]
    curves: Annotated[str, Meta(description="CSV of the learning curve")]
    evaluations: Annotated[str | None, Meta(description="CSV of the evaluations; null where there are none")]
    events: Annotated[str, Meta(description="folder to point TensorBoard at")]
    loss: float | None
    masked_fraction: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    move_precision: float | None
    move_recall: float | None
    evaluation: Annotated[EvaluationResult | None, Meta(description="the last one")]
    fovs_per_second: Annotated[float | None, Meta(description="fields of view trained on a second, of all ranks")]
    ranks: Annotated[int, Meta(description="number of data-parallel processes")]
    skipped_steps: Annotated[int, Meta(description="steps without an update, as a gradient overflowed in float16")]
    parameters: Annotated[int, Meta(description="trainable numbers of the network")]
    flop_per_fov: Annotated[float, Meta(description="operations of one forward pass over one field of view")]
    flop_per_voxel_gained: Annotated[float, Meta(description="operations per voxel that a step gains at most")]
    receptive_field: Annotated[Triple, Meta(description="voxels zyx that the centre of the output depends on")]
    steps: Annotated[int, Meta(description="steps done, skipped ones counted")]
