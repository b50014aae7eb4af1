"""The action `train`: from annotated sections to a model, judged on sections it has not seen."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, StateError
from apps.core.files import lock, write_atomically
from apps.core.parameters import json_hash
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume, open_volume
from apps.ffn.backend import start_tensorflow
from apps.masking.classes import Confusion, check_classes
from apps.masking.examples import Examples
from apps.masking.model import ModelInfo, Weights, checksum, find_model, load_model, save_model
from apps.masking.network import NetworkParameters
from apps.masking.records import Paths, make_folder
from apps.masking.sections import open_image, read_statistics
from apps.masking.segmenter import Segmenter
from apps.masking.settings import TrainSettings
from apps.masking.trainer import Trainer

_CURVE_ROW = 20  # steps that a row of the learning curve is the mean of


@dataclass(frozen=True)
class Trained:
    """A model that is there, and how fast it was trained (None where it was there before).

    `pixels_per_second`: of the examples of the steps done now, while they were done.
    """

    info: ModelInfo
    pixels_per_second: float | None


def train(
    image_name: str, labels_name: str, settings: TrainSettings, paths: Paths, tile: int, threads: int, report: Reporter
) -> Trained:
    """Train the model of these settings, or take it where it is there.

    Raises DataError for what is wrong with the volumes, before any long work; StateError where the folder holds another
    model or another process trains in it; DivergedError.
    """
    image, labels = open_image(image_name), _open_labels(labels_name, image_name)
    training, validation = settings.divide(image.box)
    make_folder(paths.output)
    start_tensorflow(threads)
    examples = Examples(image, labels, training, settings, report)
    for _, classes in _annotated(labels, validation):
        check_classes(classes, labels.name)
    stamp = json_hash([_what_matters(settings), validation.to_dict(), examples.digest, code_version()])
    with (paths.output / ".train.lock").open("a") as held:
        lock(held, paths.output)
        known = _known(paths.model, stamp)
        if known is not None:
            shutil.rmtree(paths.checkpoint, ignore_errors=True)
            return Trained(known, None)
        trainer = Trainer(settings, examples)
        begin = time.perf_counter()
        trainer.train(paths.checkpoint, stamp, report)
        speed = trainer.steps_done * examples.pixels / (time.perf_counter() - begin)
        weights = trainer.weights()
        report(settings.steps, settings.steps, "judging")
        confusion = judge(image, labels, validation, settings.network, weights, tile)
        info = ModelInfo(
            network=settings.network,
            checksum=checksum(weights),
            steps=settings.steps,
            loss=trainer.loss,
            validation=confusion.dice(),
            provenance={
                "code_version": code_version(),
                "training": stamp,
                "settings": settings.to_dict(),
                "image": image.name,
                "labels": labels.name,
                "data": examples.digest,
                "shares": examples.shares,
            },
        )
        write_atomically(paths.curve, _curve(trainer.losses))
        save_model(paths.model, info, weights)
        shutil.rmtree(paths.checkpoint, ignore_errors=True)
    return Trained(info, speed)


def judge(
    image: Volume, labels: Volume, box: Box, network: NetworkParameters, weights: Weights, tile: int
) -> Confusion:
    """How well a network masks an annotated box, each section normalised by all of itself."""
    segmenter, confusion = Segmenter(network, weights, tile), Confusion()
    for region, classes in _annotated(labels, box):
        truth = check_classes(classes, labels.name)
        for part in segmenter.segment(image, region, read_statistics(image, region.offset[0])):
            _, rows, columns = part.box.slices(region.offset)
            confusion.add(truth[rows, columns], part.classes)
    return confusion


def _annotated(labels: Volume, box: Box) -> Iterator[tuple[Box, NDArray[Any]]]:
    for plane in range(box.offset[0], box.end[0]):
        region = Box.of((plane, *box.offset[1:]), (1, *box.shape[1:]))
        yield region, labels.read(region)[0]


def _open_labels(name: str, image: str) -> Volume:
    labels, shape = open_volume(name), open_volume(image).shape
    if labels.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {labels.dtype}; expected classes of an integer type")
    if labels.shape != shape:
        raise DataError(f"{name}: has shape {labels.shape}; expected that of the image {image}, {shape}")
    return labels


def _what_matters(settings: TrainSettings) -> dict[str, object]:
    return {key: value for key, value in settings.to_dict().items() if key != "checkpoint_every"}


def _known(folder: Path, stamp: str) -> ModelInfo | None:
    """The model of this training, where it is there whole.  Raises StateError where another's is."""
    if find_model(folder) is None:
        return None
    with contextlib.suppress(DataError):  # a damaged one is made again
        info = load_model(folder).info
        if info.provenance.get("training") != stamp:
            raise StateError(
                f"{folder}: is a model of another training (data, settings or version); give another output folder, "
                "or remove it"
            )
        return info
    return None


def _curve(losses: list[float]) -> bytes:
    """CSV: step, mean loss of the steps up to it."""
    rows = ["step,loss"]
    for start in range(0, len(losses), _CURVE_ROW):
        part = losses[start : start + _CURVE_ROW]
        rows.append(f"{start + len(part)},{sum(part) / len(part):.6f}")
    return ("\n".join(rows) + "\n").encode()
