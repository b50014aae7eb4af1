"""From settings and examples to a model on disk: one that is there is kept, one in the making goes on."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from apps.core.errors import DataError, StateError
from apps.core.files import lock, write_atomically
from apps.core.parameters import Parameters
from apps.core.progress import Reporter
from apps.unet.storage import TrainedInfo, find_model, read_model, save_model
from apps.unet.trainer import Trainer

I = TypeVar("I", bound=TrainedInfo)  # noqa: E741

MODEL, CHECKPOINT, CURVE = "model", "checkpoint", "curve.csv"


@dataclass(frozen=True)
class OutputPaths:
    """Where things are in the output folder of a stage that trains; stages add what they make with the model."""

    output: Path

    @property
    def model(self) -> Path:
        return self.output / MODEL


@dataclass(frozen=True)
class Trained(Generic[I]):
    """A model that is there, and how fast it was trained: steps a second of those done now, None where it was there."""

    info: I
    steps_per_second: float | None


def train_once(
    output: Path,
    stamp: str,
    kind: type[I],
    what: str,
    make_trainer: Callable[[], Trainer],
    describe: Callable[[Trainer], I],
    report: Reporter,
) -> Trained[I]:
    """Have `output/model` be the model of the training `stamp`.

    Args:
        output: folder that gets model, curve.csv, and a checkpoint while it trains.
        stamp: hash of all that the weights follow from; `describe` puts it into provenance as `training`.
        kind, what: the model's type, and what it is of, in errors.
        make_trainer: called where there is something to train.
        describe: of the trainer when it has ended, what model.json says; here the model is judged.
        report: told of every step.

    Raises StateError where the folder holds another training's model, or another process trains in it; DivergedError.
    """
    checkpoint = output / CHECKPOINT
    with (output / ".train.lock").open("a") as held:
        lock(held, output)
        known = _known(output / MODEL, stamp, kind, what)
        if known is not None:
            shutil.rmtree(checkpoint, ignore_errors=True)
            return Trained(known, None)
        trainer = make_trainer()
        begin = time.perf_counter()
        trainer.train(checkpoint, stamp, report)
        speed = trainer.steps_done / (time.perf_counter() - begin)
        info = describe(trainer)
        write_atomically(output / CURVE, trainer.curve())
        save_model(output / MODEL, info, trainer.weights())
        shutil.rmtree(checkpoint, ignore_errors=True)
    return Trained(info, speed)


def what_matters(settings: Parameters) -> dict[str, Any]:
    """The settings without what the weights do not depend on, for a stamp."""
    return {key: value for key, value in settings.to_dict().items() if key != "checkpoint_every"}


def _known(folder: Path, stamp: str, kind: type[I], what: str) -> I | None:
    """The model of this training, where it is there whole.  Raises StateError where another's is."""
    if find_model(folder) is None:
        return None
    with contextlib.suppress(DataError):  # a damaged one is made again
        info, _ = read_model(folder, kind, what)
        if info.provenance.get("training") != stamp:
            raise StateError(
                f"{folder}: is a model of another training (data, settings or version); give another output folder, "
                "or remove it"
            )
        return info
    return None
