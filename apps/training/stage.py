"""Train one FFN variant on labelled volumes.  Killed and run again, it goes on from its last checkpoint.

One rank, or several that `mpiexec -n N` or `horovodrun -np N` has started: see apps/ffn/ranks.py.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apps.core.errors import ParameterError, StateError
from apps.core.files import lock, make_folder
from apps.core.parameters import json_hash
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.ffn.backend import start_tensorflow
from apps.ffn.checkpoint import (
    Checkpoint,
    find_own_checkpoint,
    load_checkpoint,
    read_info,
    read_weights,
    weights_digest,
)
from apps.ffn.cost import flop_per_fov, flop_per_voxel_gained, parameter_count, receptive_field
from apps.ffn.examples import ExampleSource
from apps.ffn.model import initial_weights
from apps.ffn.ranks import Ranks, start_ranks
from apps.ffn.tracker import metrics_of
from apps.ffn.trainer import Trainer, TrainerSettings
from apps.ffn.training_volumes import OpenTrainingVolume, open_training_volumes, voxel_size_of_volumes
from apps.training.evaluation import Evaluator
from apps.training.parameters import TrainingParameters, TrainingResult
from apps.training.session import CHECKPOINT, CURVES, EVALUATIONS, EVENTS, LOCK, Session

__all__ = ["STAGE", "TrainingParameters", "TrainingResult", "put_back_checkpoint", "run", "starting_point"]

# What may change between a run and the one that goes on from its checkpoint.  `steps` too: up to any of them a training
# is the same.  Where the rate depends on them, what its schedule is laid out over counts instead (`_training_hash`).
FREE = ("output", "checkpoint_every", "threads", "steps", "schedule_steps")


def run(parameters: TrainingParameters, report: Reporter) -> TrainingResult:
    """Train, or go on training, until `steps`.

    Raises DataError and ParameterError before any long work, StateError where `output` holds another training, and
    DivergedError where the loss becomes NaN or explodes.
    """
    ranks = start_ranks(parameters.threads)
    ranks.agree("parameters", parameters.hash())
    ranks.agree("code version", code_version())
    output = Path(parameters.output)
    put_back_checkpoint(parameters, ranks)
    start = starting_point(parameters)
    model, normalisation = start.model, start.normalisation(parameters.image_mean, parameters.image_std)
    volumes = open_training_volumes(parameters.volumes)
    source = ExampleSource(
        volumes, model, normalisation, parameters.unlabelled_weight, parameters.augmentation, parameters.policy
    )
    evaluator = _evaluator(parameters, volumes, start, normalisation)
    ranks.agree("coordinates", _coordinates_digest(volumes))
    ranks.agree("starting checkpoint", f"{start.model.hash()} {start.step} {weights_digest(start.weights)}")
    start_tensorflow(parameters.threads)
    make_folder(output)
    trainer = Trainer(model, start.weights, source, _settings(parameters, ranks.size), ranks)
    coordinates = _coordinates_digest(volumes)
    provenance = _provenance(parameters) | {"coordinates": coordinates}
    # Weights that are adopted as they are have not seen these volumes.
    trained_at = voxel_size_of_volumes(volumes) if parameters.steps else start.voxel_size_nm
    session = Session(parameters, trainer, evaluator, ranks, normalisation, trained_at, provenance)
    own = find_own_checkpoint(output / CHECKPOINT)
    with contextlib.ExitStack() as held:
        if ranks.rank == 0:
            lock(held.enter_context((output / LOCK).open("a")), output)
        if own:
            session.restore(own)
            _check_coordinates(own, coordinates)
            if trainer.step != start.step:
                raise StateError(f"{output}: another process has trained on while this one began; run it again")
        session.train(report)
    seconds = trainer.seconds
    return TrainingResult(
        checkpoint=str(output / CHECKPOINT),
        curves=str(output / CURVES),
        evaluations=str(output / EVALUATIONS) if evaluator else None,
        events=str(output / EVENTS),
        **metrics_of(trainer.recent()).to_dict(),
        evaluation=session.evaluations[-1] if session.evaluations else None,
        fovs_per_second=trainer.step * parameters.batch_size * ranks.size / seconds if trainer.step else None,
        ranks=ranks.size,
        skipped_steps=trainer.skipped,
        parameters=parameter_count(model),
        flop_per_fov=flop_per_fov(model),
        flop_per_voxel_gained=flop_per_voxel_gained(model),
        receptive_field=receptive_field(model),
        steps=trainer.step,
    )


def _settings(parameters: TrainingParameters, ranks: int) -> TrainerSettings:
    return TrainerSettings(
        optimizer=parameters.optimizer,
        schedule=parameters.learning_rates(ranks),
        clip=parameters.clip,
        ema=parameters.ema,
        precision=parameters.precision,
        policy=parameters.policy,
        batch_size=parameters.batch_size,
        seed=parameters.seed,
        threads=parameters.threads,
        curve_every=parameters.curve_every,
    )


def _evaluator(
    parameters: TrainingParameters,
    volumes: Sequence[OpenTrainingVolume],
    start: Checkpoint,
    normalisation: tuple[float, float],
) -> Evaluator | None:
    if parameters.evaluation is None:
        return None
    return Evaluator(
        parameters.evaluation,
        volumes,
        start.model,
        normalisation,
        policy=parameters.policy,
        seed=parameters.seed,
        unlabelled_weight=parameters.unlabelled_weight,
        batch=parameters.batch_size,
    )


def put_back_checkpoint(parameters: TrainingParameters, ranks: Ranks) -> None:
    """Put back the checkpoint that a kill has left put away: once, before all ranks look for it."""
    if ranks.rank == 0:
        find_own_checkpoint(Path(parameters.output) / CHECKPOINT)
    ranks.barrier()


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
            f"model: is of another architecture than init {parameters.init} ({_architecture(start.model.to_dict())}); "
            "leave model out to take the checkpoint's"
        )
    return start


def _architecture(model: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in model.items() if name not in ("fov", "deltas"))


def _own_start(folder: Path, parameters: TrainingParameters) -> Checkpoint:
    """The training's own checkpoint.  Raises StateError where it was made with other parameters."""
    info = read_info(folder)
    if info.provenance.get("training_hash") != _training_hash(parameters):
        raise StateError(
            f"{folder.parent}: holds a training with other parameters; give another output folder, or remove this one"
        )
    return Checkpoint.of(info, info.model, read_weights(folder, info.model))


def _training_hash(parameters: TrainingParameters) -> str:
    fixed = {key: value for key, value in parameters.to_dict().items() if key not in FREE}
    laid_out = parameters.laid_out_steps if parameters.schedule == "cosine" else None
    return json_hash(fixed | {"laid_out_steps": laid_out})


def _coordinates_digest(volumes: Sequence[OpenTrainingVolume]) -> str:
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(volume.coordinates.zyx.tobytes())
    return digest.hexdigest()


def _check_coordinates(own: Path, digest: str) -> None:
    """Raise StateError where the training in `own` was of other examples than its coordinate files hold now."""
    if read_info(own).provenance.get("coordinates") != digest:
        raise StateError(
            f"{own.parent}: holds a training on other coordinates than the files hold now; give another output folder, "
            "or partition as before"
        )


def _provenance(parameters: TrainingParameters) -> dict[str, Any]:
    return {
        "code_version": code_version(),
        "training_hash": _training_hash(parameters),
        "parameters": parameters.to_dict(),
    }


STAGE = Stage(
    name="training",
    summary="Train one flood-filling network on labelled volumes; run again after a kill, it goes on.",
    parameters=TrainingParameters,
    result=TrainingResult,
    run=run,
    several_ranks=True,
    example={
        "volumes": [
            {
                "image": "volume/image.zarr",
                "labels": "volume/labels.zarr",
                "coordinates": "volume/coordinates.npz",
            }
        ],
        "output": "training",
        "model": {"depth": 4, "features": 16, "fov": [17, 17, 17], "deltas": [4, 4, 4]},
        "optimizer": "adam",
        "learning_rate": 0.002,
        "warmup_steps": 50,
        "schedule": "cosine",
        "batch_size": 8,
        "steps": 500,
        "image_mean": 128.0,
        "image_std": 33.0,
    },
)
