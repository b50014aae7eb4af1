"""Segmenting a box of a volume with a checkpoint: what the inference and trial stages share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.progress import Reporter
from apps.core.volumes import Volume
from apps.ffn.checkpoint import Checkpoint
from apps.ffn.seeds import find_seeds
from apps.ffn.segmenter import Segmentation, Segmenter, check_extent
from apps.ffn.settings import InferenceSettings


def check_image(image: Volume, box: Box, checkpoint: Checkpoint) -> None:
    """Raise DataError, before any long work, where the model cannot segment `box` of `image`."""
    if image.dtype != np.uint8:
        raise DataError(f"{image.name}: has dtype {image.dtype}; expected uint8 grey values")
    if not image.box.contains(box):
        raise DataError(f"{image.name}: box {box} leaves the volume, which is {image.box}")
    check_extent(box.shape, checkpoint.model, f"box {box} of {image.name}")


def normalise(image: NDArray[np.uint8], normalisation: tuple[float, float]) -> NDArray[np.float32]:
    """(image - mean) / standard deviation, float32."""
    mean, std = normalisation
    return (image.astype(np.float32) - np.float32(mean)) / np.float32(std)


def segment_box(
    image: Volume,
    box: Box,
    checkpoint: Checkpoint,
    normalisation: tuple[float, float],
    settings: InferenceSettings,
    threads: int,
    report: Reporter,
) -> Segmentation:
    """Segment `box` (volume coordinates); origins in the result are relative to it."""
    check_image(image, box, checkpoint)
    from apps.ffn.network import Network

    voxels = normalise(image.read(box), normalisation)
    seeds = find_seeds(settings.seed_policy, voxels, image.voxel_size_nm or (1.0, 1.0, 1.0), checkpoint.model.margin)
    predict = Network(checkpoint.model, checkpoint.weights, threads).predictor()
    segmenter = Segmenter(voxels, checkpoint.model, predict, settings)
    return segmenter.segment(seeds, lambda done: report(done, len(seeds), "segmenting"))
