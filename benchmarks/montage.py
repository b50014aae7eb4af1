"""Montage: error on a phantom and on real sections, throughput, cost and memory as sections grow, and Feabas beside it.

Phantom: 3 x 3 tiles, 10 % overlap, jitter of up to 20 pixels, the phantom's noise, illumination and drift.  Real
sections are FIB-25's, mirrored to 1250 pixels (no overlap has a mirror line in it), and as they are; their tiles are
interpolated at random offsets and get noise of their own.  `--feabas-python` names the Python of an environment with
Feabas (`python -m venv feabas && feabas/bin/pip install feabas`): it gets the same tiles, its published defaults, the
same search and one core; times are those of finding the positions, without imports and drawing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from apps.core.progress import silent
from apps.montage.feabas_backend import PROGRAM
from apps.montage.illumination import Exposure, estimate_flat_field
from apps.montage.pairs import plan_pairs
from apps.montage.parameters import MontageParameters
from apps.montage.placement import place
from apps.montage.records import SectionRecord
from apps.montage.stage import run as montage
from apps.montage.survey import survey_section
from apps.montage.table import read_table
from apps.montage.workers import Workers
from benchmarks.harness import Figure, benchmark_with_options, median
from benchmarks.montage_tiles import (
    Points,
    Spoiling,
    Tiles,
    fib25,
    many_tiles,
    mirrored,
    phantom_tiles,
    real_tiles,
    spoilt_phantom_tiles,
)

SEARCH = 48
GOAL = 0.3  # pixels


def run(options: argparse.Namespace) -> list[Figure]:
    """All figures; with `quick` of small sections, whose times say nothing."""
    quick: bool = options.quick
    with tempfile.TemporaryDirectory(prefix="ensemble-montage-") as name:
        folder = Path(name)
        block = fib25()
        figures = _memory(folder / "memory", block[0], quick)
        figures += _throughput(folder / "throughput", block[0], quick)
        phantom = phantom_tiles(folder / "phantom", 2 if quick else 4, *((480, 6.0) if quick else (1280, 20.0)))
        planes = [block[number] for number in ((20,) if quick else (20, 90, 160, 230))]
        large = [mirrored(plane, 1250, 225) for plane in planes]
        sets = {
            "phantom": phantom,
            "real, 10 % overlap": real_tiles(folder / "large", large, 430, 43, 18.0, [12.0] * len(large)),
            "real, as they are": real_tiles(folder / "small", planes, 104, 38, 6.0, [12.0] * len(planes)),
        }
        for title, tiles in sets.items():
            figures += _errors(title, tiles, folder / "out" / title, options.feabas_python)
        figures += _scores(folder / "scores", block, quick)
    return figures


def _errors(title: str, tiles: Tiles, output: Path, feabas_python: str | None) -> list[Figure]:
    """Error of the stage's result over all tiles of all sections; beside it Feabas's."""
    parameters = MontageParameters(tiles=str(tiles.table), output=str(output), search=SEARCH)
    result = montage(parameters, silent)
    errors = []
    for section in result.sections:
        record = SectionRecord.load(section.record)
        errors.append(tiles.error(section.section, np.array([(tile.y, tile.x) for tile in record.tiles])))
    own = _rms(errors)
    connected = sum(section.connected for section in result.sections)
    count = sum(len(true) for true in tiles.true.values())
    size = f"{len(tiles.true)} sections of 3 x 3 tiles of {tiles.shape[0]} pixels"
    note = f"{size}; median section {median(errors):.3g}, worst {max(errors):.3g}"
    figures = [
        Figure(f"error, {title}", own, "px RMS", GOAL, note=note),
        Figure(f"tiles connected, {title}", 100 * connected / count, "%", 100.0, "higher"),
    ]
    if feabas_python is not None:
        peer = [_feabas(tiles, section, feabas_python) for section in tiles.true]
        middle = median([found.error for found in peer])
        other = _rms([found.error for found in peer])
        ours = median([_seconds_to_place(parameters, section) for section in tiles.true])
        theirs = median([found.seconds for found in peer])
        figures += [
            Figure(
                f"Feabas's error, {title}",
                other,
                "px RMS",
                note=f"the better of translation alone and elastic; median section {middle:.3g}",
            ),
            Figure(f"error to Feabas's, {title}", own / other, "x", 1.0),
            Figure(f"seconds a section, {title}", ours, "s", note="one core: reading, measuring, solving; median"),
            Figure(f"Feabas's seconds, {title}", theirs, "s", note="one core: matching, translation; median"),
            Figure(f"times faster than Feabas, {title}", theirs / ours, "x", 1.0, "higher"),
        ]
    return figures


def _rms(errors: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def _seconds_to_place(parameters: MontageParameters, section: int) -> float:
    """From the tile files to positions, by one worker."""
    rows = read_table(parameters.tiles)[section]
    begin = time.perf_counter()
    with Workers(1, "threads", parameters.cache_mib * 2**20) as workers:
        surveyed = survey_section(section, rows, workers)
        field = estimate_flat_field(list(surveyed.tiles), parameters.illumination_degree, 0.0)
        found, shape = [tile.row for tile in surveyed.tiles], surveyed.tiles[0].shape
        pairs = plan_pairs(found, shape, Exposure(None, field), parameters.search, parameters.min_overlap)
        place(found, pairs, parameters, workers)
    return time.perf_counter() - begin


@dataclass(frozen=True)
class _Peer:
    error: float
    seconds: float


def _feabas(tiles: Tiles, section: int, python: str) -> _Peer:
    height, width = tiles.shape
    request: dict[str, Any] = {
        "paths": [str(file) for file in tiles.files(section)],
        "boxes": [[x, y, x + width, y + height] for y, x in tiles.nominal[section]],
        "margin": SEARCH,
        "min_overlap": 12,
    }
    answers = []
    for elastic in (False, True):
        with tempfile.TemporaryDirectory(prefix="ensemble-feabas-") as name:
            asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
            asked.write_text(json.dumps({**request, "elastic": elastic}))
            command = [python, str(PROGRAM), str(asked), str(answered)]
            subprocess.run(command, cwd=name, check=True, capture_output=True, preexec_fn=_keep_to_one_core)
            answers.append(json.loads(answered.read_text()))
    positions: list[Points] = [np.array(answer["positions"]) for answer in answers]
    return _Peer(min(tiles.error(section, found) for found in positions), answers[0]["seconds"])


def _keep_to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _scores(folder: Path, block: np.ndarray, quick: bool) -> list[Figure]:
    """Whether the scores, which know no truth, order sections as their true errors do."""
    count, extent, jitter = (6, 240, 6) if quick else (24, 512, 16)
    noise = [float(level) for level in np.linspace(0.0, 110.0, count)]
    planes = [block[(7 * number) % len(block)] for number in range(count)]
    real = real_tiles(folder / "real", planes, 104, 38, 6.0, noise, seed=5)
    rng = np.random.default_rng(1)
    spoilt = [
        Spoiling(float(rng.uniform(0, 90)), float(rng.uniform(0, jitter)), float(rng.choice([1.0, 1.0, 0.6, 0.3])))
        for _ in range(count)
    ]
    phantom = spoilt_phantom_tiles(folder / "phantom", extent, spoilt)
    return [
        *_ranks("", real, 16, f"{count} real sections with noise of 0 to 110 grey levels", quick),
        *_ranks(
            "phantom: ",
            phantom,
            24,
            f"{count} sections with noise of 0 to 90 grey levels, jitter of 0 to {jitter} px, 0.3 to 1 of the contrast",
            quick,
        ),
    ]


def _ranks(title: str, tiles: Tiles, search: int, note: str, quick: bool) -> list[Figure]:
    parameters = MontageParameters(tiles=str(tiles.table), output=str(tiles.table.parent / "out"), search=search)
    errors, residuals, correlations, connected = [], [], [], []
    for section in montage(parameters, silent).sections:
        record = SectionRecord.load(section.record)
        errors.append(tiles.error(section.section, np.array([(tile.y, tile.x) for tile in record.tiles])))
        residuals.append(np.inf if record.scores.seam_residual is None else record.scores.seam_residual)
        correlations.append(record.scores.overlap_correlation or 0.0)
        connected.append(record.scores.tiles_connected or 0.0)
    return [
        Figure(
            f"{title}overlap correlation, rank correlation with the error, negated",
            -_rank(correlations, errors),
            "",
            None if quick else 0.7,
            "higher",
            note,
        ),
        Figure(
            f"{title}seam residual, the same",
            _rank(residuals, errors),
            "",
            None,
            "higher",
            note + "; it falls again where pairs are rejected",
        ),
        Figure(f"{title}tiles connected, the same, negated", -_rank(connected, errors), "", None, "higher", note),
    ]


def _rank(scores: list[float], errors: list[float]) -> float:
    return float(spearmanr(scores, errors).statistic)


def _throughput(folder: Path, plane: np.ndarray, quick: bool) -> list[Figure]:
    """Megapixels a second from tile files to section images, and what more tiles and sections cost."""
    extent = 256 if quick else 1024
    grids = (2, 4) if quick else (5, 10)
    sets = {grid: many_tiles(folder / f"grid{grid}", plane, grid, extent) for grid in grids}
    seconds = {grid: _timed(tiles, 1) for grid, tiles in sets.items()}
    pixels = {grid: grid**2 * extent**2 / 1e6 for grid in grids}
    small, large = grids
    two = _timed(sets[large], 2)
    sections = _timed(many_tiles(folder / "sections", plane, small, extent, 1 if quick else 3), 1)
    per_section = sections / (1 if quick else 3) / seconds[small]
    note = f"{large} x {large} tiles of {extent} pixels, one section"
    return [
        Figure("throughput, one process", pixels[large] / seconds[large], "MP/s", None, "higher", note),
        Figure(
            "throughput, two processes", pixels[large] / two, "MP/s", None, "higher", note + ", their start included"
        ),
        Figure("speed-up by the second", seconds[large] / two, "x", None if quick else 1.4, "higher"),
        Figure(
            "time of a pixel, 4 times the tiles",
            (seconds[large] / pixels[large]) / (seconds[small] / pixels[small]),
            "x",
            None if quick else 1.25,
        ),
        Figure("time of a section, 3 sections", per_section, "x", None if quick else 1.25),
    ]


def _timed(tiles: Tiles, workers: int) -> float:
    output = tiles.table.parent / f"out{workers}"
    parameters = MontageParameters(
        tiles=str(tiles.table), output=str(output), search=SEARCH, workers=workers, worker_kind="processes"
    )
    begin = time.perf_counter()
    montage(parameters, silent)
    return time.perf_counter() - begin


def _memory(folder: Path, plane: np.ndarray, quick: bool) -> list[Figure]:
    """Peak memory of a process that runs the stage, on a section and on one with four times the tiles."""
    extent = 256 if quick else 1024
    peaks = []
    grids = (2, 4) if quick else (5, 10)
    for grid in grids:
        tiles = many_tiles(folder / f"grid{grid}", plane, grid, extent)
        work = folder / f"work{grid}"
        work.mkdir()
        given = {"tiles": str(tiles.table), "output": str(work / "out"), "search": SEARCH, "cache_mib": 16}
        (work / "parameters.json").write_text(json.dumps(given))
        # A shell between the two: what this process holds would count as memory of one that it starts itself.
        command = [
            "sh",
            "-c",
            '"$@"; exit $?',
            "sh",
            sys.executable,
            "-m",
            "apps.montage",
            str(work / "parameters.json"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        peaks.append(json.loads((work / "result.json").read_text())["cost"]["peak_memory_bytes"] / 2**20)
    sizes = [f"{(grid * extent) ** 2 / 1e6:.0f} MP" for grid in grids]
    return [
        Figure(f"peak memory, section of {sizes[0]}", peaks[0], "MiB", note="whole process; 16 MiB of tiles cached"),
        Figure(f"peak memory, section of {sizes[1]}", peaks[1], "MiB", note="the same"),
        Figure("peak memory, 4 times the tiles", peaks[1] / peaks[0], "x", 1.2),
    ]


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--feabas-python", metavar="PATH", help="Python of an environment with Feabas; default: none")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.montage", __doc__, run, _add_options))
