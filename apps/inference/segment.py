"""Segmenting boxes of a volume with a network: what the inference, training and trial stages share."""

from __future__ import annotations

import itertools
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
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume
from apps.ffn.canvas import Canvas, HostCanvas, Thresholds
from apps.ffn.checkpoint import Checkpoint
from apps.ffn.flood_log import FloodLog
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.masks import MaskParameters, read_masks
from apps.ffn.model import ModelParameters
from apps.ffn.processor import warn_of_slow
from apps.ffn.rounding import round_weights
from apps.ffn.seeds import find_seeds
from apps.ffn.segmenter import Segmentation, Segmenter, check_extent
from apps.ffn.settings import InferenceSettings

if TYPE_CHECKING:
    from apps.ffn.network import Network

CanvasKind = Literal["auto", "host", "device"]
Array = NDArray[np.float32]


@dataclass(frozen=True)
class NetworkSource:
    """A network that may not run yet: it starts when there is something to look at.

    Attributes:
        model: its description.
        threads: of its backend, and of the seed policies.
        start: gives the network that runs.
    """

    model: ModelParameters
    threads: int
    start: Callable[[], Network]

    @classmethod
    def of(cls, checkpoint: Checkpoint, settings: InferenceSettings, threads: int) -> NetworkSource:
        """The network of a checkpoint in the precision of the settings."""
        return cls(checkpoint.model, threads, lambda: inference_network(checkpoint, settings, threads))

    @classmethod
    def running(cls, network: Network) -> NetworkSource:
        """One that was started before."""
        return cls(network.model, network.threads, lambda: network)


@dataclass(frozen=True)
class _Prepared:
    """A box about to be flooded; `image` (normalised) is None where there is nothing to look at."""

    number: int
    segmenter: Segmenter
    image: Array | None


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
    return _segment_one(NetworkSource.of(checkpoint, settings, threads), image, box, normalisation, settings, report)


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
    return _segment_one(NetworkSource.running(network), image, box, normalisation, settings, report, options)


def _segment_one(
    source: NetworkSource,
    image: Volume,
    box: Box,
    normalisation: tuple[float, float],
    settings: InferenceSettings,
    report: Reporter,
    options: Options | None = None,
) -> Segmentation:
    found: list[Segmentation] = []
    segment_boxes(
        source, image, [box], normalisation, settings, options or Options(), lambda _, done: found.append(done), report
    )
    return found[0]


def segment_boxes(
    source: NetworkSource,
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

    The network is started with the first box that has something to look at; one that masks exclude ends at once.
    `open_log(i)` gives the log that lets a killed segmentation of box i go on.  Raises DataError before any long work
    where a box cannot work, DivergedError where the network gives NaN.
    """
    for box in boxes:
        check_image(image, box, source.model)
    opened: list[Segmenter] = []
    done = 0

    def prepare(number: int) -> _Prepared:
        box, begin = boxes[number], time.perf_counter()
        excluded = read_masks(options.masks, box)
        voxels, seeds = None, np.zeros((0, 3), np.int64)
        if excluded is None or leaves_room(excluded, source.model):
            voxels = normalise(image.read(box), normalisation)
            seeds = find_seeds(
                settings.seed_policy,
                voxels,
                image.voxel_size_nm or UNKNOWN_VOXEL_SIZE,
                source.model.margin,
                reverse=settings.reverse_seeds,
                excluded=excluded,
                grid_step=settings.grid_step,
                separation=settings.seed_separation,
                threads=source.threads,
            )
        seconds = time.perf_counter() - begin
        log = open_log(number) if open_log else None
        segmenter = Segmenter(
            box.shape,
            seeds,
            source.model,
            settings,
            excluded=excluded,
            probability=options.probability,
            on_outcome=log.append if log else lambda outcome: None,
        )
        for outcome in log.outcomes() if log else ():
            segmenter.restore(outcome)
        segmenter.spend(seed=seconds)
        return _Prepared(number, segmenter, None if segmenter.finished else voxels)

    def prepared() -> Iterator[Subvolume]:
        """Each box's image and seeds, made in a thread while the one before is flooded."""
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(prepare, 0)
            for number in range(len(boxes)):
                item = ahead.result()
                if number + 1 < len(boxes):
                    ahead = pool.submit(prepare, number + 1)
                if item.image is None:
                    end(number, item.segmenter)
                    continue
                opened.append(item.segmenter)
                yield Subvolume(number, item.image, item.segmenter)

    def end(number: int, segmenter: Segmenter) -> None:
        nonlocal done
        done += 1
        on_done(number, segmenter.result())
        tell()

    def flooded(subvolume: Subvolume) -> None:
        opened.remove(subvolume.segmenter)
        end(subvolume.number, subvolume.segmenter)

    def tell() -> None:
        report(done + sum(segmenter.progress for segmenter in opened), len(boxes), "segmenting")

    subvolumes = prepared()
    first = next(subvolumes, None)
    if first is not None:
        canvas = make_canvas(source.start(), settings, options, boxes)
        flood(itertools.chain([first], subvolumes), canvas, flooded, tell)


def leaves_room(excluded: NDArray[np.bool_], model: ModelParameters) -> bool:
    """Whether a field of view fits into the box around some voxel that no mask excludes; `excluded` zyx, of the box."""
    inner = tuple(slice(m, n - m) for m, n in zip(model.margin, excluded.shape, strict=True))
    return not excluded[inner].all()


def make_canvas(network: Network, settings: InferenceSettings, options: Options, boxes: Sequence[Box]) -> Canvas:
    """The canvas for these boxes.  On the device: as many slots as fill a batch, twice where batches can overlap."""
    from apps.ffn.tensorflow_canvas import TensorFlowCanvas, has_gpu

    thresholds = Thresholds.of(settings)
    if options.canvas == "host" or (options.canvas == "auto" and not has_gpu()):
        warn_of_slow(network.precision)
        return HostCanvas(network.model, network.predictor(), thresholds)
    voxels = max(math.prod(box.shape) for box in boxes)
    batch = max(options.batch, settings.fovs_per_object)
    slots = min(len(boxes), (2 if has_gpu() else 1) * max(1, batch // settings.fovs_per_object))
    return TensorFlowCanvas(network, thresholds, slots, voxels, batch)
