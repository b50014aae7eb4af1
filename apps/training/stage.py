"""Train one FFN variant on a labelled volume.  Killed and run again, it goes on from its last checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import Parameters, Result, json_hash
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.core.volumes import open_volume
from apps.ffn.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    find_own_checkpoint,
    load_checkpoint,
    read_info,
    read_state,
    read_weights,
    save_checkpoint,
)
from apps.ffn.coordinates import read_coordinates
from apps.ffn.cost import flop_per_fov, parameter_count
from apps.ffn.examples import ExampleSource
from apps.ffn.model import ModelParameters, initial_weights
from apps.ffn.optimizers import OptimizerName, ScheduleName
from apps.ffn.tracker import CurveFile

CHECKPOINT, CURVES = "checkpoint", "curves.csv"

# What may change between a run and the one that goes on from its checkpoint; `steps` where no schedule depends on it.
FREE = ("output", "checkpoint_every", "threads")


class TrainingParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the training stage."""

    image: Annotated[str, Meta(description="image volume, uint8: NAME.zarr or FILE.h5:DATASET")]
    labels: Annotated[str, Meta(description="label volume of the same shape, integers, 0 = no object")]
    coordinates: Annotated[str, Meta(description="npz of training coordinates (from the partition stage)")]
    output: Annotated[str, Meta(min_length=1, description="folder for checkpoint and learning curve")]
    model: Annotated[ModelParameters | None, Meta(description="variant; null with init: that of the checkpoint")] = None
    init: Annotated[str | None, Meta(description="start from this checkpoint folder or google/ffn prefix")] = None
    init_fov: Annotated[Triple, Meta(description="field of view zyx of a google/ffn init")] = (
        33,
        33,
        33,
    )
    init_deltas: Annotated[Triple, Meta(description="deltas zyx of a google/ffn init")] = (8, 8, 8)
    optimizer: Annotated[OptimizerName, Meta(description="optimiser; gradients are clipped by value at 0.7")] = "adam"
    learning_rate: Annotated[float, Meta(gt=0, le=10, description="learning rate, at the start of its schedule")] = 1e-3
    schedule: Annotated[
        ScheduleName, Meta(description="of the learning rate over the steps: constant, or cosine (down to 0)")
    ] = "constant"
    batch_size: Annotated[int, Meta(ge=1, le=4096, description="fields of view a step")] = 8
    steps: Annotated[int, Meta(ge=0, description="optimiser updates; 0 with init: adopt the weights as they are")] = 500
    seed: Annotated[int, Meta(ge=0, description="of the initial weights, the examples' order and augmentation")] = 0
    checkpoint_every: Annotated[int, Meta(ge=1, description="steps from one checkpoint to the next")] = 100
    curve_every: Annotated[int, Meta(ge=1, description="steps in one row of the learning curve")] = 20
    image_mean: Annotated[float | None, Meta(description="subtracted from the image; null: the init's")] = None
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="divides the image; null: the init's")
    ] = None
    unlabelled_weight: Annotated[
        float, Meta(ge=0, le=1, description="loss weight where the label is 0; 0 where that means unknown")
    ] = 1.0
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of TensorFlow")] = 1

    def check(self) -> None:
        if self.model is None and self.init is None:
            raise ParameterError("model, init: one is needed, an architecture or a checkpoint to start from")
        if self.init is None and (self.image_mean is None or self.image_std is None):
            raise ParameterError("image_mean, image_std: needed, the ingest stage's result gives them")
        if self.init is None and self.steps == 0:
            raise ParameterError("steps = 0: expected at least 1 without init, there are no weights to adopt")


class TrainingResult(Result, frozen=True, kw_only=True):
    """Result of the training stage.  Metrics are over the last quarter of the steps; null where there were none."""

    checkpoint: str
    curves: str
    loss: float | None
    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    fovs_per_second: float | None
    parameters: int
    flop_per_fov: float
    steps: int


def run(parameters: TrainingParameters, report: Reporter) -> TrainingResult:
    """Train, or go on training, until `steps`.

    Raises DataError and ParameterError before any long work, StateError where `output` holds another training, and
    DivergedError where the loss becomes NaN or explodes.
    """
    output = Path(parameters.output)
    start = starting_point(parameters)
    own = find_own_checkpoint(output / CHECKPOINT)
    model = start.model
    mean, std = start.normalisation(parameters.image_mean, parameters.image_std)
    source = ExampleSource(
        open_volume(parameters.image),
        open_volume(parameters.labels),
        read_coordinates(parameters.coordinates),
        model,
        (mean, std),
        parameters.unlabelled_weight,
    )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror or error}); give a writable place") from error

    from apps.ffn.trainer import Trainer, TrainerSettings

    settings = TrainerSettings(
        optimizer=parameters.optimizer,
        learning_rate=parameters.learning_rate,
        schedule=parameters.schedule,
        steps=parameters.steps,
        batch_size=parameters.batch_size,
        seed=parameters.seed,
        threads=parameters.threads,
        curve_every=parameters.curve_every,
    )
    trainer = Trainer(model, start.weights, source, settings)
    if own:
        trainer.restore(read_state(own), str(own))
    if trainer.step > parameters.steps:
        raise StateError(
            f"steps = {parameters.steps}: {output} holds a training of {trainer.step} steps; give another output folder"
        )
    curves = CurveFile(output / CURVES, trainer.tracker.rows)

    def save() -> None:
        info = CheckpointInfo(
            model=model, image_mean=mean, image_std=std, step=trainer.step, provenance=_provenance(parameters)
        )
        save_checkpoint(output / CHECKPOINT, info, trainer.network.weights(), trainer.state())

    while trainer.step < parameters.steps:
        line = trainer.train_step()
        if line is not None:
            curves.append(line)
        if trainer.step == parameters.steps or trainer.step % parameters.checkpoint_every == 0:
            save()
        report(trainer.step, parameters.steps, f"training, loss {trainer.loss:.3f}")
    if parameters.steps == 0 and own is None:
        save()
    metrics = trainer.tracker.recent(trainer.step)
    return TrainingResult(
        checkpoint=str(output / CHECKPOINT),
        curves=str(output / CURVES),
        **metrics.to_dict(),
        fovs_per_second=trainer.step * parameters.batch_size / trainer.seconds if trainer.step else None,
        parameters=parameter_count(model),
        flop_per_fov=flop_per_fov(model),
        steps=trainer.step,
    )


def starting_point(parameters: TrainingParameters) -> Checkpoint:
    """Model and weights that `run` starts with: its own checkpoint, else `init`, else initial weights.

    Raises DataError, ParameterError and StateError as `run` does.
    """
    own = find_own_checkpoint(Path(parameters.output) / CHECKPOINT)
    return _own_start(own, parameters) if own else _fresh_start(parameters)


def _fresh_start(parameters: TrainingParameters) -> Checkpoint:
    """Initial weights, or those of `init`."""
    if parameters.init is None:
        assert parameters.model is not None  # TrainingParameters.check
        weights = initial_weights(parameters.model, parameters.seed)
        return Checkpoint(model=parameters.model, weights=weights, image_mean=None, image_std=None, step=0)
    fov, deltas = None, None
    if parameters.model is not None:
        fov, deltas = parameters.model.fov, parameters.model.deltas
    elif not Path(parameters.init).is_dir():
        fov, deltas = parameters.init_fov, parameters.init_deltas
    start = load_checkpoint(parameters.init, fov, deltas)
    if parameters.model is not None and parameters.model != start.model:
        raise ParameterError(
            f"model: is of another architecture than init {parameters.init} (depth {start.model.depth}, "
            f"{start.model.features} features); leave model out to take the checkpoint's"
        )
    return start


def _own_start(folder: Path, parameters: TrainingParameters) -> Checkpoint:
    """The training's own checkpoint.  Raises StateError where it was made with other parameters."""
    info = read_info(folder)
    if info.provenance.get("training_hash") != _training_hash(parameters):
        raise StateError(
            f"{folder.parent}: holds a training with other parameters; give another output folder, or remove this one"
        )
    return Checkpoint(
        model=info.model,
        weights=read_weights(folder, info.model),
        image_mean=info.image_mean,
        image_std=info.image_std,
        step=info.step,
    )


def _training_hash(parameters: TrainingParameters) -> str:
    free = (*FREE, "steps") if parameters.schedule == "constant" else FREE
    return json_hash({key: value for key, value in parameters.to_dict().items() if key not in free})


def _provenance(parameters: TrainingParameters) -> dict[str, Any]:
    return {
        "code_version": code_version(),
        "training_hash": _training_hash(parameters),
        "parameters": parameters.to_dict(),
    }


STAGE = Stage(
    name="training",
    summary="Train one flood-filling network on a labelled volume; run again after a kill, it goes on.",
    parameters=TrainingParameters,
    result=TrainingResult,
    run=run,
    example={
        "image": "volume/image.zarr",
        "labels": "volume/labels.zarr",
        "coordinates": "volume/coordinates.npz",
        "output": "training",
        "model": {"depth": 4, "features": 16, "fov": [17, 17, 17], "deltas": [4, 4, 4]},
        "optimizer": "adam",
        "learning_rate": 0.002,
        "batch_size": 8,
        "steps": 500,
        "image_mean": 128.0,
        "image_std": 33.0,
    },
)
