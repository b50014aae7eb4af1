"""What exclusion masks save in flood filling, and what they do to its accuracy.

One network, with and without the true masks of blood vessels and cell bodies, on one phantom.  The network is trained
for a few minutes on another phantom of the same design (another seed), whose cell bodies are labelled and trained
on like all other tissue, so that without masks it meets nothing that is new to it.  Both ways run in turn, several
times; what is saved is the difference of what was measured, never an estimate.

Accuracy is over neuropil alone, which is what both ways segment: voxels that the true masks keep out are not scored.
A neurite that a cell body joins is one object in the phantom, and in pieces once the cell body is kept out; scored are
both the objects as they are and these pieces.

Seconds are from image and masks on disk to the finished labels, seeds included, the start of TensorFlow not.  The last
figures are whole processes: the stage on a subvolume with a single seed, and on the same one, excluded by a mask.

    python -m benchmarks.masked_inference [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.progress import silent
from apps.core.volumes import Volume, open_volume
from apps.evaluation.metrics import score
from apps.ffn.checkpoint import load_checkpoint
from apps.ffn.masks import MaskParameters
from apps.ffn.model import ModelParameters
from apps.ffn.network import Network
from apps.ffn.segmenter import Segmentation
from apps.ffn.settings import InferenceSettings
from apps.ffn.training_volumes import TrainingVolume
from apps.inference.outputs import MaskedVoxels
from apps.inference.segment import Options, inference_network, segment_with
from apps.inference.stage import InferenceParameters, SubvolumeTarget
from apps.partition.stage import PartitionParameters
from apps.partition.stage import run as partition
from apps.phantom.design import PhantomDesign
from apps.phantom.stage import PhantomParameters, PhantomResult
from apps.phantom.stage import run as make_phantom
from apps.training.stage import TrainingParameters
from apps.training.stage import run as train
from benchmarks.harness import Figure, benchmark_with_options, median, timed

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = 128.0, 33.0
TRAINING_SEED, TEST_SEED = 1, 2
WAYS = ("without masks", "with masks")


@dataclass(frozen=True)
class Size:
    """How large the benchmark is.

    Attributes:
        training, test: shapes of the phantoms, zyx.
        design: of both.
        model: the network.
        steps: of training, each of 8 fields of view.
        runs: of each way.
    """

    training: Triple
    test: Triple
    design: PhantomDesign
    model: ModelParameters
    steps: int
    runs: int


FULL = Size(
    training=(96, 160, 192),
    test=(96, 160, 192),
    design=PhantomDesign(somata=1.0, vessels=1),
    model=ModelParameters(depth=4, features=16, fov=(13, 13, 13), deltas=(3, 3, 3)),
    steps=4200,
    runs=3,
)
QUICK = Size(
    training=(40, 64, 64),
    test=(40, 64, 64),
    design=PhantomDesign(calibre=14.0, somata=6.0, soma_diameter=(20.0, 26.0), vessels=1, vessel_diameter=(16.0, 20.0)),
    model=ModelParameters(depth=2, features=8, fov=(9, 9, 9), deltas=(2, 2, 2)),
    steps=150,
    runs=1,
)


@dataclass(frozen=True)
class Run:
    """One segmentation: wall time and CPU time of this process in seconds."""

    found: Segmentation
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Case:
    """What to segment and with what; `truth` is 0 where the masks exclude."""

    image: Volume
    truth: NDArray[Any]
    masks: tuple[MaskParameters, ...]
    checkpoint: str
    settings: InferenceSettings
    threads: int


def run(options: argparse.Namespace) -> list[Figure]:
    size = QUICK if options.quick else FULL
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training, test = (phantom(folder, size, seed) for seed in (TRAINING_SEED, TEST_SEED))
        begin = time.perf_counter()
        checkpoint = trained(folder, training, size, options.threads)
        trained_in = time.perf_counter() - begin
        loads.append(os.getloadavg()[0])
        case = case_of(test, checkpoint, options.threads)
        runs = segmented(case, size.runs, lambda: loads.append(os.getloadavg()[0]))
        figures = [
            *data_figures(case, runs["with masks"][0], size, trained_in),
            *(figure for way in WAYS for figure in way_figures(way, runs[way], case)),
            *saving_figures(runs, case),
            *process_figures(folder, case, 1 if options.quick else 3),
        ]
    note = "taken before training and after every step from there; over the number of cores other work took its share"
    figures.append(Figure("largest 1-minute load", max(loads), "", note=note))
    # The quick form's network is hardly trained: what it reaches says nothing.
    return [replace(figure, goal=None) for figure in figures] if options.quick else figures


def phantom(folder: Path, size: Size, seed: int) -> PhantomResult:
    shape = size.training if seed == TRAINING_SEED else size.test
    return make_phantom(
        PhantomParameters(output=str(folder / f"phantom-{seed}"), shape=shape, seed=seed, design=size.design), silent
    )


def trained(folder: Path, data: PhantomResult, size: Size, threads: int) -> str:
    """A checkpoint of a network that learned all objects of a phantom, cell bodies included."""
    model, coordinates = size.model, folder / "coordinates.npz"
    partition(
        PartitionParameters(
            labels=data.labels, output=str(coordinates), fov=model.fov, deltas=model.deltas, min_size=500, seed=0
        ),
        silent,
    )
    volume = TrainingVolume(image=data.image, labels=data.labels, coordinates=str(coordinates))
    parameters = TrainingParameters(
        volumes=(volume,),
        output=str(folder / "training"),
        model=model,
        optimizer="rmsprop",
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=20,
        steps=size.steps,
        checkpoint_every=size.steps,
        image_mean=MEAN,
        image_std=STD,
        threads=threads,
    )
    return train(parameters, silent).checkpoint


def case_of(data: PhantomResult, checkpoint: str, threads: int) -> Case:
    assert data.masks is not None
    labels, masks = open_volume(data.labels).read(), open_volume(data.masks).read()
    truth = np.where(masks == 0, labels, 0).astype(np.uint32)
    settings = InferenceSettings(min_size=200)
    return Case(open_volume(data.image), truth, (MaskParameters(volume=data.masks),), checkpoint, settings, threads)


def segmented(case: Case, runs: int, after_each: Callable[[], object]) -> dict[str, list[Run]]:
    """Both ways in turn, with one network that runs."""
    network = inference_network(load_checkpoint(case.checkpoint), case.settings, case.threads)
    blank = np.zeros((1, *network.model.fov), np.float32)
    network.predictor()(blank, blank)
    done: dict[str, list[Run]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way in WAYS:
            done[way].append(segment(network, case, case.masks if way == "with masks" else ()))
            after_each()
    return done


def segment(network: Network, case: Case, masks: tuple[MaskParameters, ...]) -> Run:
    begin, cpu = time.perf_counter(), time.process_time()
    found = segment_with(network, case.image, case.image.box, (MEAN, STD), case.settings, silent, Options(masks=masks))
    return Run(found, time.perf_counter() - begin, time.process_time() - cpu)


def data_figures(case: Case, masked: Run, size: Size, trained_in: float) -> list[Figure]:
    kept_out = MaskedVoxels.count(masked.found.excluded, case.image.box, case.image.box)
    note = f"{kept_out.excluded} of {kept_out.voxels} voxels, {'x'.join(map(str, case.image.shape))}"
    steps = f"{size.steps} steps of 8 fields of view of {'x'.join(map(str, size.model.fov))}"
    trivial = score(case.truth, np.ones_like(case.truth))
    return [
        Figure("excluded by the masks", 100 * kept_out.share, "%", note=note),
        Figure("training", trained_in, "s", note=steps),
        Figure("everything one object: VI over neuropil", trivial.vi, "bit", note="the answer that needs no network"),
    ]


def way_figures(way: str, runs: list[Run], case: Case) -> list[Figure]:
    found = runs[0].found
    counters, different = found.counters, sum(not np.array_equal(found.labels, run.found.labels) for run in runs[1:])
    note = f"{counters.wasted_steps} for no object; {counters.seeds} seeds, {len(found.objects)} objects"
    figures = [
        Figure(f"{way}: looks of the network", counters.steps, "steps", note=note),
        Figure(f"{way}: wall time", median([run.seconds for run in runs]), "s", note=f"of {len(runs)} runs in turn"),
        Figure(f"{way}: CPU time", median([run.cpu_seconds for run in runs]), "s"),
        Figure(f"{way}: runs that gave other labels than the first", different, "runs", 0),
    ]
    for what, truth in truths(case).items():
        scores = score(truth, found.labels)
        note = f"split {scores.vi_split:.3f} + merge {scores.vi_merge:.3f}, filled {100 * scores.filled_fraction:.1f} %"
        figures.append(Figure(f"{way}: VI over neuropil, {what}", scores.vi, "bit", note=note))
    return figures


def truths(case: Case) -> dict[str, NDArray[Any]]:
    """The labels over neuropil as they are, and each 6-connected piece of them by itself."""
    import cc3d

    pieces: NDArray[Any] = cc3d.connected_components(case.truth, connectivity=6)
    return {"whole objects": case.truth, "pieces": pieces}


def saving_figures(runs: dict[str, list[Run]], case: Case) -> list[Figure]:
    """What the masks changed; positive: saved, or for VI better."""
    before, after = (runs[way] for way in WAYS)

    def saved(name: str, unit: str, of: Callable[[Run], float], goal: float | None = None) -> Figure:
        first, second = (median([of(run) for run in done]) for done in (before, after))
        note = f"{first:.4g} to {second:.4g} {unit}"
        return Figure(f"masks save: {name}", 100 * (1 - second / first), "%", goal, "higher", note)

    figures = [
        saved("looks of the network", "steps", lambda run: run.found.counters.steps, 0.0),
        saved("wall time", "s", lambda run: run.seconds),
        saved("CPU time", "s", lambda run: run.cpu_seconds, 0.0),
        filled_figure(before[0].found, case),
    ]
    for what, truth in truths(case).items():
        first, second = (score(truth, done[0].found.labels).vi for done in (before, after))
        note, better = f"{first:.3f} to {second:.3f} bit", first - second
        figures.append(Figure(f"masks gain: VI over neuropil, {what}", better, "bit", -0.05, "higher", note))
    return figures


def filled_figure(unmasked: Segmentation, case: Case) -> Figure:
    """What became of the excluded voxels without masks."""
    excluded = open_volume(case.masks[0].volume).read() != 0
    filled = np.count_nonzero(unmasked.labels[excluded])
    note = f"{filled} voxels of objects that masks would have kept out"
    name = "without masks: share of the excluded voxels that got an object"
    return Figure(name, 100 * filled / np.count_nonzero(excluded), "%", note=note)


def process_figures(folder: Path, case: Case, runs: int) -> list[Figure]:
    """Seconds of the stage's process on one field of view: looked at, and excluded."""
    box = Box.of((0, 0, 0), load_checkpoint(case.checkpoint).model.fov)
    everything = MaskParameters(volume=case.masks[0].volume, values=(0, 1, 2, 3))
    seconds: dict[str, list[float]] = {"looked at": [], "excluded": []}
    for number in range(runs):
        for place, (name, masks) in enumerate(zip(seconds, ((), (everything,)), strict=True)):
            output = folder / f"process-{number}-{place}"
            parameters = InferenceParameters(
                image=case.image.name,
                model=case.checkpoint,
                subvolumes=(SubvolumeTarget(box=box, output=str(output / "box.zarr")),),
                settings=InferenceSettings(seed_policy="maximum"),
                masks=masks,
                threads=case.threads,
            )
            parameters.save(output.with_suffix(".json"))
            command = [sys.executable, "-m", "apps.inference", str(output.with_suffix(".json"))]
            seconds[name] += timed(partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True), 1)
    return [
        Figure(f"process of a subvolume with one seed: {name}", median(taken), "s", note=f"of {runs} runs in turn")
        for name, taken in seconds.items()
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="of the network (default: 1)")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.masked_inference", __doc__, run, add_options))
