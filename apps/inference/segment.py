"""Segmenting boxes of a volume with a network: what the inference, training and trial stages share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.progress import Reporter
from apps.core.volumes import Volume
from apps.ffn.canvas import Canvas, HostCanvas, Thresholds
from apps.ffn.checkpoint import Checkpoint
from apps.ffn.flood_log import FloodLog
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.masks import MaskParameters, read_masks
from apps.ffn.model import ModelParameters
from apps.ffn.rounding import round_weights
from apps.ffn.seeds import find_seeds
from apps.ffn.segmenter import Segmentation, Segmenter, check_extent
from apps.ffn.settings import InferenceSettings

if TYPE_CHECKING:
    from apps.ffn.network import Network

CanvasKind = Literal["auto", "host", "device"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How to segment, besides the settings.

    Attributes:
        masks: what is left out of the segmentation.
        probability: whether to keep the quantised probability of every voxel of an object.
        canvas: where maps are kept; `auto` takes the device where it is a GPU.
        batch: looks a call of the network, on the device.
    """

    masks: tuple[MaskParameters, ...] = ()
    probability: bool = False
    canvas: CanvasKind = "auto"
    batch: int = 64


def check_image(image: Volume, box: Box, model: ModelParameters) -> None:
    """Raise DataError, before any long work, where the model cannot segment `box` of `image`."""
    if image.dtype != np.uint8:
        raise DataError(f"{image.name}: has dtype {image.dtype}; expected uint8 grey values")
    if not image.box.contains(box):
        raise DataError(f"{image.name}: box {box} leaves the volume, which is {image.box}")
    check_extent(box.shape, model, f"box {box} of {image.name}")


def normalise(image: NDArray[np.uint8], normalisation: tuple[float, float]) -> Array:
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
    """Segment `box` (volume coordinates) with a checkpoint; origins in the result are relative to the box."""
    check_image(image, box, checkpoint.model)
    network = inference_network(checkpoint, settings, threads)
    return segment_with(network, image, box, normalisation, settings, report)


def inference_network(checkpoint: Checkpoint, settings: InferenceSettings, threads: int) -> Network:
    """The network of a checkpoint in the precision of the settings."""
    from apps.ffn.network import Network

    precision = settings.network_precision
    return Network(checkpoint.model, round_weights(checkpoint.weights, precision), threads, precision)


def segment_with(
    network: Network,
    image: Volume,
    box: Box,
    normalisation: tuple[float, float],
    settings: InferenceSettings,
    report: Reporter,
    options: Options | None = None,
) -> Segmentation:
    """Segment `box` (volume coordinates) with a network that runs; its precision is the network's own."""
    found: list[Segmentation] = []
    segment_boxes(
        network, image, [box], normalisation, settings, options or Options(), lambda _, done: found.append(done), report
    )
    return found[0]


def segment_boxes(
    network: Network,
    image: Volume,
    boxes: Sequence[Box],
    normalisation: tuple[float, float],
    settings: InferenceSettings,
    options: Options,
    on_done: Callable[[int, Segmentation], None],
    report: Reporter,
    open_log: Callable[[int], FloodLog] | None = None,
) -> None:
    """Segment several boxes, on a device in common batches; `on_done(i, segmentation)` is called as each one ends.

    `open_log(i)` gives the log that lets a killed segmentation of box i go on.  Raises DataError before any long work
    where a box cannot work, DivergedError where the network gives NaN.
    """
    for box in boxes:
        check_image(image, box, network.model)
    canvas = make_canvas(network, settings, options, boxes)
    opened: list[Segmenter] = []
    done = 0

    def prepare(number: int) -> Subvolume:
        box, begin = boxes[number], time.perf_counter()
        excluded = read_masks(options.masks, box)
        voxels = normalise(image.read(box), normalisation)
        seeds = find_seeds(
            settings.seed_policy,
            voxels,
            image.voxel_size_nm or (1.0, 1.0, 1.0),
            network.model.margin,
            reverse=settings.reverse_seeds,
            excluded=excluded,
            grid_step=settings.grid_step,
            separation=settings.seed_separation,
            threads=network.threads,
        )
        seconds = time.perf_counter() - begin
        log = open_log(number) if open_log else None
        segmenter = Segmenter(
            box.shape,
            seeds,
            network.model,
            settings,
            excluded=excluded,
            probability=options.probability,
            on_outcome=log.append if log else lambda outcome: None,
        )
        for outcome in log.outcomes() if log else ():
            segmenter.restore(outcome)
        segmenter.spend(seed=seconds)
        return Subvolume(number, voxels, segmenter)

    def prepared() -> Iterator[Subvolume]:
        """Each box's image and seeds, made in a thread while the one before is flooded."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(prepare, 0)
            for number in range(len(boxes)):
                subvolume = ahead.result()
                if number + 1 < len(boxes):
                    ahead = pool.submit(prepare, number + 1)
                opened.append(subvolume.segmenter)
                yield subvolume

    def end(subvolume: Subvolume) -> None:
        nonlocal done
        done += 1
        opened.remove(subvolume.segmenter)
        on_done(subvolume.number, subvolume.segmenter.result())

    def tell() -> None:
        report(done + sum(segmenter.progress for segmenter in opened), len(boxes), "segmenting")

    flood(prepared(), canvas, end, tell)


def make_canvas(network: Network, settings: InferenceSettings, options: Options, boxes: Sequence[Box]) -> Canvas:
    """The canvas for these boxes.  On the device: as many slots as fill a batch, twice where batches can overlap."""
    from apps.ffn.tensorflow_canvas import TensorFlowCanvas, has_gpu

    thresholds = Thresholds.of(settings)
    if options.canvas == "host" or (options.canvas == "auto" and not has_gpu()):
        return HostCanvas(network.model, network.predictor(), thresholds)
    voxels = max(math.prod(box.shape) for box in boxes)
    batch = max(options.batch, settings.fovs_per_object)
    slots = min(len(boxes), (2 if has_gpu() else 1) * max(1, batch // settings.fovs_per_object))
    return TensorFlowCanvas(network, thresholds, slots, voxels, batch)
