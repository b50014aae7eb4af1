"""Meshes, skeletons and pyramids of one volume: seconds and voxels per second, beside igneous.

The volume is a phantom, cut into the same units for both; meshes and skeletons are made with the same settings (zmesh
and kimimaro do the tracing in either), pyramids have three levels, each halved along all axes, of the phantom mirrored
to eight times its size.  Runs take turns, and what counts is the median.  Both are single processes on files of their
own format: ours reads and writes OME-Zarr (zstd), igneous reads what the stage `precomputed` made of the same volume,
and writes its pyramids compressed with gzip, as it does by default; its meshes, like ours, are not compressed.
Seconds are from the start of the work to the last file, imports left out.

Igneous has to be in an environment of its own, as it and this project want different packages:

    python3.11 -m venv igneous-venv && igneous-venv/bin/pip install igneous-pipeline zfpy==1.0.1
    python -m benchmarks.morphology --igneous-python igneous-venv/bin/python [--quick] [--json FILE]

Without it the figures are ours alone, and have no goal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.core.boxes import Triple
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.meshes.stage import MeshesParameters
from apps.meshes.stage import run as make_meshes
from apps.multiscale.stage import MultiscaleParameters
from apps.multiscale.stage import run as add_levels
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as make_phantom
from apps.precomputed.stage import PrecomputedParameters
from apps.precomputed.stage import run as write_precomputed
from apps.skeletons.stage import SkeletonsParameters
from apps.skeletons.stage import run as make_skeletons
from benchmarks.harness import Figure, benchmark_with_options, median

IGNEOUS = Path(__file__).with_name("morphology_igneous.py")
SIZE = (8.0, 8.0, 8.0)
LEVELS = 3
# Two runs of one program differ by a few percent: what is nearer than this is not slower.
SPREAD = 1.05

Kind = Literal["image", "labels"]


@dataclass(frozen=True)
class Scale:
    """How large the benchmark is: shape of the phantom and of the units zyx, and runs of each."""

    shape: Triple
    unit: Triple
    runs: int


FULL = Scale(shape=(128, 256, 256), unit=(128, 128, 128), runs=5)
QUICK = Scale(shape=(32, 64, 64), unit=(32, 32, 32), runs=1)


@dataclass(frozen=True)
class Spent:
    """What one run took."""

    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Race:
    """One kind of work: what it is called, how many voxels it reads, ours, and the task that igneous is given."""

    name: str
    voxels: int
    ours: Callable[[], object]
    prepare: Callable[[], object]
    source: Path
    task: dict[str, Any]


def run(options: argparse.Namespace) -> list[Figure]:
    scale = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volumes, figures = prepared(folder, scale)
        for race in races(folder, volumes, scale):
            own, other = [], []
            race.prepare()
            race.ours()  # imports
            for _ in range(scale.runs):
                race.prepare()
                own.append(measured(race.ours))
                if options.igneous_python:
                    other.append(by_igneous(options.igneous_python, folder, race))
            figures += compared(race, own, other, goal=not options.quick)
    return figures


def prepared(folder: Path, scale: Scale) -> tuple[dict[str, Path], list[Figure]]:
    """The volumes by name, and what writing them as precomputed took."""
    made = make_phantom(
        PhantomParameters(output=str(folder / "phantom"), shape=scale.shape, seed=1, voxel_size_nm=SIZE), silent
    )
    volumes, figures = {"labels": Path(made.labels)}, []
    for kind, source in (("image", made.image), ("labels", made.labels)):
        data = open_volume(source).read()
        for axis in range(3):
            data = np.concatenate([data, np.flip(data, axis)], axis)
        volumes[f"large {kind}"] = folder / f"large-{kind}.zarr"
        write_volume(volumes[f"large {kind}"], data, SIZE)
    kinds: dict[str, Kind] = {"labels": "labels", "large labels": "labels", "large image": "image"}
    for number, (name, kind) in enumerate(kinds.items()):
        output = folder / f"precomputed-{number}"
        parameters = PrecomputedParameters(volume=str(volumes[name]), output=str(output), kind=kind)
        spent = measured(partial(write_precomputed, parameters, silent))
        volumes[f"precomputed {name}"] = output
        speed = np.prod(open_volume(str(volumes[name])).shape) / spent.seconds / 1e6
        if name != "labels":
            figures.append(Figure(f"precomputed export, {name}", speed, "Mvoxel/s", better="higher", note="one run"))
    return volumes, figures


def races(folder: Path, volumes: dict[str, Path], scale: Scale) -> list[Race]:
    labels, unit = volumes["labels"], scale.unit
    voxels = int(np.prod(scale.shape))
    mesh = MeshesParameters(segmentation=str(labels), output=str(folder / "meshes"), shape=unit, min_voxels=0)
    trace = SkeletonsParameters(
        segmentation=str(labels), output=str(folder / "skeletons"), shape=unit, min_voxels=0, min_length_nm=500.0
    )
    teasar = {
        "scale": trace.scale,
        "const": trace.constant_nm,
        "soma_detection_threshold": trace.soma_detection_nm,
        "soma_acceptance_threshold": trace.soma_acceptance_nm,
        "soma_invalidation_scale": 2.0,
        "soma_invalidation_const": 300.0,
    }
    shared = {"shape": list(unit[::-1])}
    cleaning = {name: getattr(trace, name) for name in ("dust_voxels", "min_length_nm", "tick_nm")}
    found = [
        Race(
            "meshes",
            voxels,
            lambda: make_meshes(mesh, silent),
            lambda: shutil.rmtree(mesh.output, ignore_errors=True),
            volumes["precomputed labels"],
            {"kind": "meshes", "max_error_nm": mesh.max_error_nm, **shared},
        ),
        Race(
            "skeletons",
            voxels,
            lambda: make_skeletons(trace, silent),
            lambda: shutil.rmtree(trace.output, ignore_errors=True),
            volumes["precomputed labels"],
            {"kind": "skeletons", "teasar": teasar, **cleaning, **shared},
        ),
    ]
    kinds: tuple[Kind, ...] = ("image", "labels")
    return found + [pyramid(folder, volumes, kind, 8 * voxels) for kind in kinds]


def pyramid(folder: Path, volumes: dict[str, Path], kind: Kind, voxels: int) -> Race:
    copy = folder / f"pyramid-{kind}.zarr"
    parameters = MultiscaleParameters(volume=str(copy), kind=kind, factors=((2, 2, 2),) * LEVELS)
    task = {"kind": kind, "levels": LEVELS, "compress": "gzip"}
    source = volumes[f"precomputed large {kind}"]

    def prepare() -> None:
        fresh(volumes[f"large {kind}"], copy)

    return Race(f"pyramid, {kind}", voxels, lambda: add_levels(parameters, silent), prepare, source, task)


def fresh(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)


def measured(work: Callable[[], object]) -> Spent:
    begin, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - begin, time.process_time() - cpu)


def by_igneous(python: Path, folder: Path, race: Race) -> Spent:
    """Igneous's run, on a copy, as it writes into the volume's folder."""
    layer, task, answer = folder / "igneous", folder / "task.json", folder / "answer.json"
    fresh(race.source, layer)
    task.write_text(json.dumps({**race.task, "layer": str(layer)}))
    subprocess.run([python, IGNEOUS, task, answer], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return Spent(**json.loads(answer.read_text()))


def compared(race: Race, own: list[Spent], other: list[Spent], goal: bool) -> list[Figure]:
    """Speeds, and how they compare."""
    seconds = [spent.seconds for spent in own]
    note = f"{race.voxels / 1e6:.3g} million voxels in {', '.join(f'{s:.3g}' for s in sorted(seconds))} s"
    speed = race.voxels / median(seconds) / 1e6
    figures = [Figure(race.name, speed, "Mvoxel/s", better="higher", note=note)]
    if other:
        theirs = [spent.seconds for spent in other]
        note = f"in {', '.join(f'{s:.3g}' for s in sorted(theirs))} s"
        speed = race.voxels / median(theirs) / 1e6
        figures.append(Figure(f"{race.name}, igneous", speed, "Mvoxel/s", better="higher", note=note))
        ratio = median(seconds) / median(theirs)
        note = f"medians of {len(own)} runs in turn; of CPU seconds " + format(
            median([spent.cpu_seconds for spent in own]) / median([spent.cpu_seconds for spent in other]), ".3g"
        )
        target = SPREAD if goal else None
        figures.append(Figure(f"{race.name}: seconds of ours to igneous's", ratio, "", goal=target, note=note))
    return figures


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--igneous-python", type=Path, metavar="PYTHON", help="Python of an environment with igneous")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.morphology", __doc__, run, add_options))
