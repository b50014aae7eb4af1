"""The action `train`: from annotated sections to a model, judged on sections it has not seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.files import make_folder
from apps.core.parameters import json_hash
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume, open_labels
from apps.ffn.backend import start_tensorflow
from apps.ffn.checkpoint import weights_digest
from apps.masking.classes import Confusion, check_classes
from apps.masking.examples import Examples
from apps.masking.loss import loss
from apps.masking.model import ModelInfo
from apps.masking.network import NetworkParameters, build
from apps.masking.records import Paths
from apps.masking.sections import open_image, read_statistics
from apps.masking.segmenter import Segmenter
from apps.masking.settings import TrainSettings
from apps.unet.trainer import Trainer
from apps.unet.training import train_once, what_matters
from apps.unet.weights import Weights


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
    image = open_image(image_name)
    labels = open_labels(labels_name, image, "classes")
    training, validation = settings.divide(image.box)
    make_folder(paths.output)
    start_tensorflow(threads)
    examples = Examples(image, labels, training, settings, report)
    for _, classes in _annotated(labels, validation):
        check_classes(classes, labels.name)
    stamp = json_hash([what_matters(settings), validation.to_dict(), examples.digest, code_version()])

    def describe(trainer: Trainer) -> ModelInfo:
        report(settings.steps, settings.steps, "judging")
        weights = trainer.weights()
        confusion = judge(image, labels, validation, settings.network, weights, tile)
        return ModelInfo(
            network=settings.network,
            checksum=weights_digest(weights),
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

    def make_trainer() -> Trainer:
        return Trainer(build(settings.network), settings, examples, loss)

    trained = train_once(paths.output, stamp, ModelInfo, "masks", make_trainer, describe, report)
    speed = trained.steps_per_second
    return Trained(trained.info, None if speed is None else speed * examples.pixels)


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
