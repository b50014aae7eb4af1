"""Whole-engine inference with the object maps on TensorFlow's device: many subvolumes in common batches, a batch sweep.

    python -m benchmarks.ffn_device --image FILE.h5:raw --checkpoint PREFIX --subvolume 128,128,128 --batches 16 64 256

The subvolumes are tiles of the image, as many as there are, over and over until --count.  The peer is the same engine
with one look a call.  The goal, 10,000 Mvoxel an hour, is for one H200: without a GPU the figures only show that it
works, and have no goal.  Without --image a small phantom and a small network are made.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

from apps.core.boxes import Box, Triple, tiles
from apps.core.progress import silent
from apps.ffn.segmenter import Segmentation
from apps.ffn.settings import InferenceSettings
from apps.inference.segment import NetworkSource, Options, inference_network, segment_boxes
from benchmarks.ffn_inference import Case, given, synthetic
from benchmarks.harness import Figure, benchmark_with_options

GOAL_MVOXEL_PER_HOUR = 10_000


def triple(text: str) -> Triple:
    z, y, x = map(int, text.split(","))
    return z, y, x


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", metavar="FILE", help="image: FILE.h5:DATASET or NAME.zarr")
    parser.add_argument("--checkpoint", metavar="PATH", help="google/ffn prefix, or checkpoint folder")
    parser.add_argument("--subvolume", type=triple, default=(64, 128, 128), help="zyx (default: 64,128,128)")
    parser.add_argument("--count", type=int, default=64, help="subvolumes (default: 64)")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256], help="batch sizes of the sweep")
    parser.add_argument("--fovs", type=int, default=1, help="fields of view of one object at once (default: 1)")
    parser.add_argument("--image-mean", type=float, help="of a google/ffn checkpoint (FIB-25: 128)")
    parser.add_argument("--image-std", type=float, help="of a google/ffn checkpoint (FIB-25: 33)")
    parser.add_argument("--threads", type=int, default=2, help="of TensorFlow on the host (default: 2)")
    parser.set_defaults(labels=None, settings=None)


def run(options: argparse.Namespace) -> list[Figure]:
    if options.image is not None:
        options.labels = options.image  # of a case; nothing is scored here
        return sweep(given(options), options.subvolume, options.count, options.batches, options.fovs)
    with tempfile.TemporaryDirectory() as folder:
        case = synthetic(Path(folder), options.threads, options.quick)
        if options.quick:
            return sweep(case, (32, 32, 32), 4, [2, 4], options.fovs)
        return sweep(case, (40, 40, 40), 8, [2, 8], options.fovs)


def sweep(case: Case, shape: Triple, count: int, batches: list[int], fovs: int) -> list[Figure]:
    """The same subvolumes at every batch size, a sixteenth of them with one look a call."""
    from apps.ffn.tensorflow_canvas import has_gpu

    settings = InferenceSettings.from_json(case.settings["fast"].to_dict() | {"fovs_per_object": fovs})
    source = NetworkSource.running(inference_network(case.checkpoint, settings, case.threads))
    whole = [box for box in tiles(case.image.box, shape) if box.shape == shape]
    if not whole:
        raise SystemExit(f"--subvolume {shape}: the image has the shape {case.image.shape} and holds none of that size")
    boxes = list(itertools.islice(itertools.cycle(whole), count))
    figures, rates = [], {}
    for batch in [1, *batches]:
        chosen = boxes[: max(1, count // 16)] if batch == 1 else boxes
        found: list[Segmentation] = []

        def segment(part: list[Box], batch: int = batch, found: list[Segmentation] = found) -> None:
            found.clear()
            segment_boxes(
                source,
                case.image,
                part,
                case.normalisation,
                settings,
                Options(canvas="device", batch=max(batch, fovs)),
                lambda _, segmentation: found.append(segmentation),
                silent,
            )

        segment(chosen[:1])  # what TensorFlow does once; each canvas compiles its step, and that counts
        begin = time.perf_counter()
        segment(chosen)
        seconds = time.perf_counter() - begin
        voxels = sum(box.size for box in chosen)
        steps = sum(item.counters.steps for item in found)
        rates[batch] = voxels / 1e6 / seconds * 3600
        model = sum(item.counters.model_seconds for item in found)
        note = f"{len(chosen)} subvolumes, {steps} looks, {100 * (1 - model / seconds):.1f} % of the time on the host"
        figures.append(Figure(f"batch {batch}: throughput", rates[batch], "Mvoxel/h", note=note))
        figures.append(Figure(f"batch {batch}: looks", steps / seconds, "1/s"))
    best = max(batches, key=lambda batch: rates[batch])
    goal = GOAL_MVOXEL_PER_HOUR if has_gpu() else None
    where = "GPU" if has_gpu() else "no GPU: TensorFlow on the CPU"
    figures.append(Figure("best of the sweep", rates[best], "Mvoxel/h", goal, "higher", f"batch {best}, {where}"))
    figures.append(Figure("times batch 1", rates[best] / rates[1], "x"))
    return figures


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.ffn_device", __doc__, run, add_options))
