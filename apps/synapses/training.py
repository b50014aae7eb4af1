"""The action `train`: from annotated boxes to a model, judged on a box that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.core.boxes import Box, tiles
from apps.core.files import make_folder
from apps.core.parameters import json_hash
from apps.core.progress import Reporter
from apps.core.stage import code_version
from apps.core.volumes import Volume, open_labels
from apps.ffn.backend import start_tensorflow
from apps.ffn.checkpoint import weights_digest
from apps.synapses.detector import FULL, Detector, read_window
from apps.synapses.examples import Examples
from apps.synapses.images import Statistics, measure, open_image
from apps.synapses.model import ModelInfo, Output
from apps.synapses.network import build, loss
from apps.synapses.settings import TrainSettings
from apps.unet.trainer import Trainer
from apps.unet.training import train_once, what_matters
from apps.unet.weights import Weights

_TILE = 96  # voxels a side that are judged at once


@dataclass(frozen=True)
class Trained:
    """A model that is there, and how fast it was trained: voxels a second, None where it was there before."""

    info: ModelInfo
    voxels_per_second: float | None


def train(
    image_name: str,
    clefts_name: str,
    vesicles_name: str | None,
    settings: TrainSettings,
    output: Path,
    threads: int,
    report: Reporter,
) -> Trained:
    """Train the model of these settings into `output/model`, or take it where it is there.

    Raises DataError for what is wrong with the volumes, before any long work; StateError where the folder holds another
    model or another process trains in it; DivergedError.
    """
    image = open_image(image_name)
    names = [clefts_name] if vesicles_name is None else [clefts_name, vesicles_name]
    targets = tuple(open_labels(name, image, "labels (0: none)") for name in names)
    outputs: tuple[Output, ...] = ("cleft",) if vesicles_name is None else ("cleft", "vesicles")
    boxes, judged = settings.divide(image.box)
    statistics = measure(image)
    make_folder(output)
    start_tensorflow(threads)
    examples = Examples(image, targets, boxes, statistics, settings, report)
    stamp = json_hash([what_matters(settings), judged.to_dict(), list(outputs), examples.digest, code_version()])

    def make_trainer() -> Trainer:
        return Trainer(build(settings.network, len(outputs)), settings, examples, loss)

    def describe(trainer: Trainer) -> ModelInfo:
        report(settings.steps, settings.steps, "judging")
        weights = trainer.weights()
        dice = judge(image, targets, judged, settings, weights, statistics)
        return ModelInfo(
            network=settings.network,
            outputs=outputs,
            voxel_size_nm=image.voxel_size_nm,
            checksum=weights_digest(weights),
            steps=settings.steps,
            loss=trainer.loss,
            validation=dict(zip(outputs, dice, strict=True)),
            provenance={
                "code_version": code_version(),
                "training": stamp,
                "settings": settings.to_dict(),
                "image": image.name,
                "clefts": clefts_name,
                "vesicles": vesicles_name,
                "data": examples.digest,
                "shares": dict(zip(outputs, examples.shares, strict=True)),
            },
        )

    trained = train_once(output, stamp, ModelInfo, "synapses", make_trainer, describe, report)
    speed = trained.steps_per_second
    return Trained(trained.info, None if speed is None else speed * examples.voxels)


def judge(
    image: Volume,
    targets: tuple[Volume, ...],
    box: Box,
    settings: TrainSettings,
    weights: Weights,
    statistics: Statistics,
) -> list[float | None]:
    """Dice of each output in a box, 2 |truth and found| / (|truth| + |found|); None where neither has a voxel."""
    network = settings.network
    detector = Detector(network, len(targets), weights, network.margin)
    common, sizes = np.zeros(len(targets)), np.zeros(len(targets))
    for tile in tiles(box, (_TILE,) * 3):
        found = detector.detect(read_window(image, tile, network.unit, network.margin), tile, statistics) > FULL // 2
        for number, volume in enumerate(targets):
            truth = volume.read(tile) != 0
            common[number] += (truth & found[number]).sum()
            sizes[number] += truth.sum() + found[number].sum()
    return [float(2 * c / s) if s else None for c, s in zip(common, sizes, strict=True)]
