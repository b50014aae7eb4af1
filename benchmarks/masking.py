"""Masking: Dice on phantoms that were not trained on, throughput, memory, and what the scores say about the error.

One phantom trains the network, others of other seeds test it; all of them both as blocks and as sections that a
microscope has taken (warped, with noise, drift of contrast and brightness, uneven illumination).  Rank correlation:
sections of the test phantoms, each with noise, contrast and blur of its own, masked by the stage; what its record says
of a section against 1 - mean Dice of the classes that the section holds.  Trainings and maskings whose time or memory
is a figure are processes of their own, with one thread each where two are compared with one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from apps.core.boxes import Box, Triple
from apps.core.parameters import write_json
from apps.core.progress import silent
from apps.core.stage import RESULT_FILE
from apps.core.volumes import open_volume, write_volume
from apps.ffn.backend import start_tensorflow
from apps.masking.classes import CLASSES, NOT_ANNOTATED, OUTSIDE, SOMA, VESSEL, Confusion
from apps.masking.model import Model, load_model
from apps.masking.sections import open_image
from apps.masking.stage import MaskingParameters
from apps.masking.stage import run as masking
from apps.masking.training import judge
from apps.phantom.acquisition import AcquisitionDesign, section_truth, true_section_image, true_section_labels
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as phantom
from benchmarks.harness import Figure, benchmark_main, load_report

GOAL = 0.9
VOXEL = (40.0, 10.0, 10.0)
THICKNESS = 4
RESIN = 14
THREADS = 2

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    train, test: shapes zyx of the phantoms.  seeds: of the first, and of the others.  steps: of the training.
    graded: sections of which the scores are compared with the error.  plane: extent of the section that is masked for
    time and memory; the second is four times as large.  steps_timed: of the trainings that are timed.
    """

    train: Triple
    test: Triple
    seeds: tuple[int, ...]
    vessels: tuple[int, int]
    steps: int
    graded: int
    plane: int
    steps_timed: int


FULL = Sizes((40, 576, 576), (24, 384, 384), (31, 11, 12), (10, 2), 900, 48, 2048, 40)
QUICK = Sizes((8, 160, 160), (6, 128, 128), (31, 11), (2, 2), 25, 8, 128, 25)


def run(quick: bool) -> list[Figure]:
    """All figures; with `quick` the numbers say nothing, only that it works."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="ensemble-masking-") as name:
        folder = Path(name)
        train = _phantom(folder / "train", sizes.train, sizes.seeds[0], sizes.vessels[0])
        tests = [_phantom(folder / f"test{seed}", sizes.test, seed, sizes.vessels[1]) for seed in sizes.seeds[1:]]
        both = _join(folder / "both", (train, _acquire(folder / "taken", train)))
        record = _process(folder / "model", both, sizes.steps, THREADS)
        model = load_model(folder / "model" / "model")
        figures = _training(record, sizes)
        figures += _throughput(folder / "throughput", train, tests[0], folder / "model" / "model", sizes)
        start_tensorflow(THREADS)
        figures += _dice("block", tests, model)
        figures += _dice("acquired", [_acquire(folder / f"acquired{n}", test) for n, test in enumerate(tests)], model)
        figures += _scores(folder / "graded", tests, folder / "model" / "model", sizes.graded)
    return figures


def _phantom(folder: Path, shape: Triple, seed: int, vessels: int) -> Path:
    design = {"somata": 1.2, "vessels": vessels, "resin": RESIN}
    content = {
        "output": str(folder),
        "shape": shape,
        "seed": seed,
        "design": design,
        "section_thickness": THICKNESS,
        "voxel_size_nm": VOXEL,
    }
    phantom(PhantomParameters.from_json(content), silent)
    return folder


def _start(folder: Path, content: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "parameters.json", content)
    command = [sys.executable, "-m", "apps.masking", str(folder / "parameters.json")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _finish(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The record that a stage's process has written."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(errors.decode(errors="replace")[-2000:])
    return load_report(folder / RESULT_FILE)


def _train_content(output: Path, source: Path, steps: int, threads: int, seed: int = 1) -> dict[str, Any]:
    return {
        "image": str(source / "image.zarr"),
        "labels": str(source / "masks.zarr"),
        "output": str(output),
        "action": "train",
        "training": {"steps": steps, "warmup_steps": min(20, steps - 1), "seed": seed},
        "threads": threads,
    }


def _process(output: Path, source: Path, steps: int, threads: int) -> dict[str, Any]:
    return _finish(output, _start(output, _train_content(output, source, steps, threads)))


def _training(record: dict[str, Any], sizes: Sizes) -> list[Figure]:
    result, cost = record["result"], record["cost"]
    seconds = cost["end"] - cost["start"]
    note = f"{sizes.steps} steps, {result['parameters']} weights, seed {sizes.seeds[0]}, {THREADS} threads"
    return [
        Figure("training: all of it, start and judging included", seconds, "s", note=note),
        Figure("training: memory", cost["peak_memory_bytes"] / 2**20, "MiB", note=note),
        Figure("network: operations a pixel", result["flop_per_pixel"], "flop"),
        *(
            Figure(f"validation columns: Dice of {name}", score, "", note="of the phantom that was trained on")
            for name, score in result["validation"].items()
            if score is not None
        ),
    ]


def _dice(what: str, tests: Sequence[Path], model: Model) -> list[Figure]:
    """Dice over all sections of all test phantoms together, and the worst of them."""
    whole, alone = Confusion(), []
    for folder in tests:
        image, labels = open_image(str(folder / "image.zarr")), open_volume(str(folder / "masks.zarr"))
        confusion = judge(image, labels, image.box, model.info.network, model.weights, 1024)
        alone.append(confusion.dice())
        whole.counts += confusion.counts
    figures = []
    for name, score in whole.dice().items():
        goal = GOAL if name in ("vessel", "soma") else None
        each = ", ".join("none" if dice[name] is None else f"{dice[name]:.3f}" for dice in alone)
        if score is not None:
            note = f"{len(tests)} phantoms of other seeds; each: {each}"
            figures.append(Figure(f"{what}: Dice of {name}", score, "", goal, "higher", note))
    return figures


def _acquire(folder: Path, source: Path) -> Path:
    """The sections of a phantom as a microscope takes them, and their true masks."""
    image, masks = (open_volume(str(source / f"{name}.zarr")).read() for name in ("image", "masks"))
    design, rng = AcquisitionDesign(margin=0), np.random.default_rng(5)
    taken, truths = np.empty_like(image), np.empty_like(masks)
    for section, plane in enumerate(image):
        truth = section_truth((plane.shape[0], plane.shape[1]), design, 5, section)
        grey = true_section_image(plane, design, 5, section).astype(np.float32)
        y, x = np.meshgrid(*(np.linspace(-1, 1, extent) for extent in plane.shape), indexing="ij")
        shade = 1 - design.illumination * np.clip(y**2 + x**2, 0, 2) / 2
        contrast, brightness = np.exp(0.1 * rng.standard_normal()), 10 * rng.standard_normal()
        taken[section] = np.clip(((grey - 128) * contrast + 128 + brightness) * shade, 1, 255)
        truths[section] = true_section_labels(masks[section], truth, beyond=OUTSIDE)
    write_volume(folder / "image.zarr", taken, VOXEL)
    write_volume(folder / "masks.zarr", truths, VOXEL)
    return folder


def _join(folder: Path, sources: Sequence[Path]) -> Path:
    """The sections of several volumes, one after the other."""
    for name in ("image", "masks"):
        parts = [open_volume(str(source / f"{name}.zarr")).read() for source in sources]
        write_volume(folder / f"{name}.zarr", np.concatenate(parts), VOXEL)
    return folder


def _scores(folder: Path, tests: Sequence[Path], model: Path, count: int) -> list[Figure]:
    """Rank correlation of what a record says with the true error, over sections of varied quality."""
    images, masks = (
        np.concatenate([open_volume(str(test / f"{name}.zarr")).read() for test in tests])
        for name in ("image", "masks")
    )
    rng = np.random.default_rng(8)
    held = [np.isin((VESSEL, SOMA), plane).all() for plane in masks]
    chosen = np.resize(np.flatnonzero(held) if any(held) else np.arange(len(masks)), count)
    spoilt = np.empty((count, *images.shape[1:]), np.uint8)
    for place, plane in enumerate(chosen):
        grey = ndimage.gaussian_filter(images[plane].astype(np.float32), rng.uniform(0, 2))
        grey = (grey - 128) * rng.uniform(0.3, 1.1) + 128 + rng.uniform(0, 60) * rng.standard_normal(grey.shape)
        spoilt[place] = np.clip(grey, 1, 255)
    write_volume(folder / "image.zarr", spoilt, VOXEL)
    content = {"image": str(folder / "image.zarr"), "output": str(folder / "out"), "model": str(model)}
    result = masking(MaskingParameters.from_json({**content, "threads": THREADS}), silent)
    found, errors = open_volume(str(folder / "out" / "masks.zarr")), []
    for place, plane in enumerate(chosen):
        confusion = Confusion()
        confusion.add(masks[plane], found.read(Box.of((place, 0, 0), (1, *found.shape[1:])))[0])
        dice = [
            confusion.dice()[CLASSES[number]] or 0.0 for number in np.unique(masks[plane]) if number != NOT_ANNOTATED
        ]
        errors.append(1 - float(np.mean(dice)))
    note = f"{count} sections; error {min(errors):.2f} to {max(errors):.2f}"
    figures = []
    for name, sign in (("expected_dice", -1), ("entropy", 1), ("boundary_sharpness", -1)):
        values = [getattr(record, name) for record in result.sections]
        told = [(value, error) for value, error in zip(values, errors, strict=True) if value is not None]
        correlation = float(spearmanr(*zip(*told, strict=True)).statistic) * sign
        spread = f"{min(value for value, _ in told):.2f} to {max(value for value, _ in told):.2f}"
        figures.append(
            Figure(f"rank correlation of {name} with the error", correlation, "", None, "higher", f"{note}; {spread}")
        )
    return figures


def _throughput(folder: Path, train: Path, test: Path, model: Path, sizes: Sizes) -> list[Figure]:
    """Megapixels a second, of one process and of two side by side; memory for two sizes of a section."""
    outputs = [folder / name for name in ("train1", "train2a", "train2b")]
    content = [_train_content(output, train, sizes.steps_timed, 1, seed) for seed, output in enumerate(outputs)]
    alone = _finish(outputs[0], _start(outputs[0], content[0]))["result"]["megapixels_per_second"]
    both = _together(outputs[1:], content[1:])
    figures = [
        Figure("training: one process", alone, "MP/s", note=f"one thread, {sizes.steps_timed} steps"),
        Figure("training: two processes", sum(r["result"]["megapixels_per_second"] for r in both), "MP/s"),
    ]
    plane = open_volume(str(test / "image.zarr")).read()[0]
    for factor in (1, 2):
        extent = factor * sizes.plane
        repeats = [-(-extent // count) for count in plane.shape]
        large = np.tile(plane, repeats)[:extent, :extent]
        write_volume(
            folder / f"image{factor}.zarr", np.stack([large] * (4 if factor == 1 else 1)), VOXEL, (1, 1024, 1024)
        )

    def segment(name: str, factor: int, sections: Sequence[int] | None = None) -> dict[str, Any]:
        given = {"image": str(folder / f"image{factor}.zarr"), "output": str(folder / name), "model": str(model)}
        return {**given, "action": "all" if sections is None else "segment", "sections": sections}

    small = _finish(folder / "job1", _start(folder / "job1", segment("one", 1)))
    large_record = _finish(folder / "job2", _start(folder / "job2", segment("large", 2)))
    masking(MaskingParameters.from_json(segment("two", 1) | {"action": "prepare", "model": None}), silent)
    both = _together([folder / "job3", folder / "job4"], [segment("two", 1, [0, 1]), segment("two", 1, [2, 3])])
    memory = [record["cost"]["peak_memory_bytes"] / 2**20 for record in (small, large_record)]
    one = small["result"]["megapixels_per_second"]
    return [
        *figures,
        Figure("masking: one process", one, "MP/s", note=f"one thread, sections of {sizes.plane} x {sizes.plane}"),
        Figure("masking: two processes", sum(r["result"]["megapixels_per_second"] for r in both), "MP/s"),
        Figure(
            "masking: one process, sections four times as large",
            large_record["result"]["megapixels_per_second"],
            "MP/s",
        ),
        Figure(f"masking: memory, {sizes.plane} x {sizes.plane}", memory[0], "MiB"),
        Figure(f"masking: memory, {2 * sizes.plane} x {2 * sizes.plane}", memory[1], "MiB"),
        Figure("masking: memory of the large one over the small one", memory[1] / memory[0], "", 1.2),
    ]


def _together(folders: Sequence[Path], contents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    processes = [_start(folder, content) for folder, content in zip(folders, contents, strict=True)]
    return [_finish(folder, process) for folder, process in zip(folders, processes, strict=True)]


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.masking", __doc__, run))
