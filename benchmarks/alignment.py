"""Alignment: error on a phantom and on real sections, throughput, memory as sections grow, and Feabas beside it.

Phantom: sections of a block of the phantom, imaged through its shifts, rotations, smooth deformations and noise.  Real
sections are FIB-25's, warped by the same kind of fields.  Its tissue slants by a third of a pixel a section, which no
alignment of images can tell from a shift; so the warped sections' alignment is compared with the alignment of the same
sections without warps, and the distance to the block itself is given too.  All errors are root mean squares over the
tissue of all sections, after removing one rigid motion of the whole stack.

`--block` names a phantom's image (at least as many sections as are aligned) instead of making one.
`--feabas-python` names the Python of an environment with Feabas (`python -m venv feabas && feabas/bin/pip install
feabas`): it gets some of the same sections, the same spacing and neighbours, and one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from apps.alignment.scoring import AlignmentReport
from apps.alignment.stage import AlignmentParameters
from apps.alignment.stage import run as align
from apps.alignment.transforms import fit_rigid
from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.phantom.acquisition import AcquisitionDesign
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as make_phantom
from benchmarks.alignment_data import (
    Acquired,
    acquire,
    enlarge,
    error,
    error_beside_neighbours,
    read_planes,
    rms,
    save_section,
    tissue_points,
)
from benchmarks.harness import Figure, benchmark_with_options

SECTIONS, QUICK_SECTIONS = 64, 8
EXTENT, QUICK_EXTENT = 576, 160
FINE = {"spacing": 16, "finest": 1}  # for sections of 250 pixels
GOAL = 1.0  # pixels
SCORE_GOAL = 0.7  # rank correlation
LINEAR_GOAL = 1.25  # time of a section, four times the sections
PEER_SECTIONS = 12
ROOT = Path(__file__).resolve().parents[1]


def run(options: argparse.Namespace) -> list[Figure]:
    """All figures; with `quick` of a small stack, whose times say nothing."""
    quick: bool = options.quick
    with tempfile.TemporaryDirectory(prefix="ensemble-alignment-") as name:
        folder = Path(name)
        real = read_planes(str(_fib25()), 6 if quick else 60)
        # First, while this process is small: what it holds counts as memory of the processes that it starts.
        figures = _memory(folder / "memory", real, quick)
        figures += _throughput(folder / "throughput", real, quick)
        block = _phantom(folder / "phantom", options.block, quick)
        stack = acquire(block, folder / "sections", [AcquisitionDesign()] * len(block), seed=3)
        figures += _phantom_error(stack, folder / "aligned", quick)
        figures += _cost_of_sections(stack, folder / "cost", quick)
        figures += _scores(block[: 8 if quick else 32], folder / "scores")
        figures += _real_error(real, folder / "real", quick)
        if options.feabas_python:
            figures += _peer(stack, folder / "peer", options.feabas_python, quick)
    return figures


def _fib25() -> Path:
    folder = Path(os.environ.get("ENSEMBLE_FIB25", ROOT.parent / "shared" / "data" / "fib25"))
    return folder / "training_sample1_raw.h5:raw"


def _phantom(folder: Path, given: str | None, quick: bool) -> NDArray[np.uint8]:
    count, extent = (QUICK_SECTIONS, QUICK_EXTENT) if quick else (SECTIONS, EXTENT)
    if given is None:
        parameters = {"output": str(folder), "shape": [max(count, 16), extent, extent], "seed": 4}
        given = make_phantom(PhantomParameters.from_json(json.dumps(parameters)), silent).image
    return read_planes(given, count)


def _align(montage: Path, output: Path, **given: Any) -> float:
    """Align; returns the seconds it took."""
    content = {"montage": str(montage), "output": str(output), **given}
    begin = time.perf_counter()
    align(AlignmentParameters.from_json(json.dumps(content)), silent)
    return time.perf_counter() - begin


def _phantom_error(stack: Acquired, output: Path, quick: bool) -> list[Figure]:
    count = len(stack.block)
    _align(stack.montage, output)
    errors = error(stack, output, range(count))
    shorter = [count // 4, count // 2]
    goal = None if quick else GOAL  # a small section has too few blocks
    found = []
    for last in shorter:
        part = output.parent / f"first-{last}"
        for name in ("pairs", "digests"):
            shutil.copytree(output / name, part / name)
        _align(stack.montage, part, action="solve", last=last - 1)
        found.append(rms(error(stack, part, range(last))))
    unaligned = error_unaligned(stack)
    report = AlignmentReport.load(output / "alignment.json")
    likeness = [section.correlation_previous or 0.0 for section in report.sections]
    what = f"{count} sections of {stack.shape[0]} x {stack.shape[1]} pixels"
    return [
        Figure("phantom: error before alignment", unaligned, "px", note=what),
        Figure("phantom: error", rms(errors), "px", goal, note=what),
        *(
            Figure(f"phantom: error of the first {last} sections alone", value, "px", goal)
            for last, value in zip(shorter, found, strict=True)
        ),
        Figure(
            "phantom: growth of the error from a quarter of the stack to all of it",
            rms(errors) - found[0],
            "px",
            None if quick else 0.15,
        ),
        Figure("phantom: largest error of a section", float(errors.max()), "px"),
        Figure(
            "phantom: median correlation of neighbouring planes", float(np.median(likeness[1:])), "", None, "higher"
        ),
        Figure("phantom: folds", float(sum(section.folds or 0 for section in report.sections)), "", 0.0),
    ]


def _scores(block: NDArray[np.uint8], folder: Path) -> list[Figure]:
    """How well scores tell which sections are wrong, where some are bent much more than others."""
    bends = np.random.default_rng(1).uniform(0.5, 8.0, len(block))
    designs = [AcquisitionDesign(deformation=float(bend), deformation_length=64.0) for bend in bends]
    stack = acquire(block, folder / "sections", designs, seed=5)
    _align(stack.montage, folder / "aligned")
    sections = AlignmentReport.load(folder / "aligned" / "alignment.json").sections
    scores = {
        "misfit": [section.misfit or 0.0 for section in sections],
        "residual": [section.residual or 0.0 for section in sections],
        "mesh strain": [section.strain or 0.0 for section in sections],
        "lower correlation with a neighbour, negative": [
            -min(c for c in (section.correlation_previous, section.correlation_next) if c is not None)
            for section in sections
        ],
    }
    errors = error(stack, folder / "aligned", range(len(block)))
    beside = error_beside_neighbours(stack, folder / "aligned", range(len(block)))
    what = f"{len(block)} sections, deformation of 0.5 to 8 px over 64 px"
    notes = [f"{what}; their errors {e.min():.2f} to {e.max():.2f} px" for e in (errors, beside)]
    found = []
    for name, values in scores.items():
        goal = SCORE_GOAL if name == "misfit" and len(block) >= 32 else None
        title = "scores: rank correlation with the"
        found += [
            Figure(f"{title} true error, {name}", _rank(values, errors), "", goal, "higher", notes[0]),
            Figure(f"{title} error beside its neighbours, {name}", _rank(values, beside), "", None, "higher", notes[1]),
        ]
    return found


def _rank(values: list[float], errors: NDArray[np.float64]) -> float:
    return float(spearmanr(values, errors).statistic)


def error_unaligned(stack: Acquired) -> float:
    """The error where every section stays where it was imaged."""
    points = [tissue_points(stack, section) for section in range(len(stack.block))]
    truth = [stack.on_block(section, there) for section, there in enumerate(points)]
    a, b = np.concatenate(points), np.concatenate(truth)
    return float(np.sqrt(np.mean(np.sum((fit_rigid(a, b, np.ones(len(a)))(a) - b) ** 2, axis=1))))


def _real_error(block: NDArray[np.uint8], folder: Path, quick: bool) -> list[Figure]:
    warped = acquire(block, folder / "warped", [AcquisitionDesign(noise=4.0)] * len(block), seed=3)
    plain = acquire(block, folder / "plain", None)
    for montage in (warped, plain):
        for action in ("match", "solve"):
            _align(montage.montage, montage.montage / "aligned", action=action, matching=FINE)
    outputs = [stack.montage / "aligned" for stack in (warped, plain)]
    sections = range(len(block))
    quarter = range(len(block) // 4)
    what = f"{len(block)} sections of FIB-25, 250 x 250 pixels; against the alignment of the same without warps"
    return [
        Figure("real sections: error before alignment", error_unaligned(warped), "px"),
        Figure(
            "real sections: error of recovering the fields",
            rms(error(warped, outputs[0], sections, outputs[1])),
            "px",
            GOAL,
            note=what,
        ),
        Figure(
            "real sections: the same, of the first quarter",
            rms(error(warped, outputs[0], quarter, outputs[1])),
            "px",
            GOAL,
        ),
        Figure(
            "real sections: distance to the block as imaged",
            rms(error(warped, outputs[0], sections)),
            "px",
            note="the tissue's own slant, which aligning straightens, is in it",
        ),
    ]


def _throughput(folder: Path, planes: NDArray[np.uint8], quick: bool) -> list[Figure]:
    count, extent = (2, 256) if quick else (10, 2048)
    for number in range(count):
        save_section(folder / "in", number, enlarge(planes[number], extent))
    pixels = count * extent * extent / 1e6
    figures = []
    _align(folder / "in", folder / "warm", action="match", last=1)  # imports and page cache
    for workers in (1, 2):
        output = folder / f"out{workers}"
        seconds = {a: _align(folder / "in", output, action=a, workers=workers) for a in ("match", "solve", "render")}
        for action in ("match", "render"):
            figures.append(
                Figure(
                    f"{action}, {workers} process{'es' * (workers > 1)}",
                    pixels / seconds[action],
                    "MP/s",
                    None,
                    "higher",
                )
            )
    return figures


def _cost_of_sections(stack: Acquired, folder: Path, quick: bool) -> list[Figure]:
    """Seconds that a section takes in all actions together, of a stack, half of it and a quarter."""
    count = len(stack.block)
    lengths = (count // 4, count // 2, count)
    seconds = {n: _align(stack.montage, folder / str(n), last=n - 1) / n for n in lengths}
    few, _, many = lengths
    note = f"match, solve, render and score of {stack.shape[0]} x {stack.shape[1]} pixels, one process"
    return [
        *(Figure(f"seconds a section, {n} sections", seconds[n], "s", note=note) for n in lengths),
        Figure(
            "time of a section, 4 times the sections", seconds[many] / seconds[few], "x", None if quick else LINEAR_GOAL
        ),
    ]


def _memory(folder: Path, planes: NDArray[np.uint8], quick: bool) -> list[Figure]:
    peaks = []
    for extent in (256, 512) if quick else (1536, 3072):
        work = folder / str(extent)
        for number in range(2):
            save_section(work / "in", number, enlarge(planes[number], extent))
        given = {"montage": str(work / "in"), "output": str(work / "out")}
        (work / "parameters.json").write_text(json.dumps(given))
        subprocess.run(
            [sys.executable, "-m", "apps.alignment", str(work / "parameters.json")],
            check=True,
            capture_output=True,
            cwd=ROOT,
        )
        peaks.append(json.loads((work / "result.json").read_text())["cost"]["peak_memory_bytes"] / 2**20)
    sizes = "256 and 512" if quick else "1536 and 3072"
    return [
        Figure("peak memory of the stage, small sections", peaks[0], "MiB", note=f"{sizes} pixels a side; all actions"),
        Figure("peak memory for four times the pixels", peaks[1] / peaks[0], "x", 1.5),
    ]


def _peer(stack: Acquired, folder: Path, python: str, quick: bool) -> list[Figure]:
    count = min(PEER_SECTIONS, len(stack.block))
    folder.mkdir()
    points = [tissue_points(stack, section) for section in range(count)]
    table = np.full((count, max(map(len, points)), 2), np.nan)
    for section, there in enumerate(points):
        table[section, : len(there)] = there
    names = [stack.montage / "sections" / f"{section:05d}.zarr" for section in range(count)]
    images = np.concatenate([open_volume(str(name)).read() for name in names])
    np.savez(folder / "task.npz", images=images, spacing=np.array(32.0), points=table)
    one_core = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": os.environ.get("PATH", "")}
    subprocess.run(
        [python, str(Path(__file__).with_name("alignment_feabas.py")), folder / "task.npz", folder / "answer.npz"],
        check=True,
        env=one_core,
        timeout=600,
    )
    answer = np.load(folder / "answer.npz")
    placed = np.concatenate([answer["placed"][section, : len(there)] for section, there in enumerate(points)])
    truth = np.concatenate([stack.on_block(section, there) for section, there in enumerate(points)])
    rigid = fit_rigid(placed, truth, np.ones(len(placed)))
    theirs = float(np.sqrt(np.mean(np.sum((rigid(placed) - truth) ** 2, axis=1))))
    seconds = sum(_align(stack.montage, folder / "own", action=action, last=count - 1) for action in ("match", "solve"))
    own = rms(error(stack, folder / "own", range(count)))
    what = f"{count} sections of the phantom, matching and solving, one core"
    return [
        Figure("beside Feabas: error", own, "px", theirs, note=what),
        Figure("beside Feabas: its error", theirs, "px", note=f"{int(answer['matched'])} pairs matched"),
        Figure("beside Feabas: seconds", seconds, "s", None if quick else float(answer["seconds"])),
        Figure("beside Feabas: its seconds", float(answer["seconds"]), "s"),
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--block", metavar="VOLUME", help="image of a phantom; default: make one")
    parser.add_argument("--feabas-python", metavar="PYTHON", help="Python of an environment with Feabas, to compare")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.alignment", __doc__, run, _add_options))
