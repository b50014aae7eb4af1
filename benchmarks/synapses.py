"""Synapses: precision, recall and F1 of clefts and of directed partners, on phantoms that were not trained on.

One phantom trains the network, with the stage's default settings; others of other seeds test it, with the default
parameters and the phantoms' own labels as segmentation, so that what is told is about synapses alone.  A found and a
true cleft are the same within 100 nm.  Each stage is a process of its own, with one thread.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.boxes import Triple
from apps.core.parameters import write_json
from apps.core.stage import RESULT_FILE
from apps.core.volumes import VoxelSize, open_volume
from apps.evaluation.synapses import Agreement, SynapseScores, score_synapses
from apps.synapses.table import read_synapses, sample_labels
from benchmarks.harness import Figure, benchmark_main, load_report

VOXEL: VoxelSize = (10.0, 10.0, 10.0)
DISTANCE_NM = 100.0
GOALS = {"clefts": 0.9, "partners": 0.8}


@dataclass(frozen=True)
class Sizes:
    """Shapes zyx of the phantom that trains and of those that test; seeds of the first and the others; the training."""

    train: Triple
    test: Triple
    seeds: tuple[int, ...]
    training: dict[str, Any]


FULL = Sizes((96, 192, 192), (96, 192, 192), (11, 12, 13), {})
QUICK = Sizes((48, 64, 80), (48, 64, 64), (11, 12), {"steps": 25, "patch": [16, 16, 16]})


def run(quick: bool) -> list[Figure]:
    """All figures; with `quick` the numbers say nothing, only that it works."""
    sizes = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="ensemble-synapses-") as name:
        folder = Path(name)
        shapes = (sizes.train, *(sizes.test for _ in sizes.seeds[1:]))
        phantoms = [_phantom(folder / f"seed{s}", shape, s) for s, shape in zip(sizes.seeds, shapes, strict=True)]
        known, *tests = phantoms
        trained = _stage(
            "synapses",
            folder / "trained",
            {
                "action": "train",
                "image": str(known / "image.zarr"),
                "clefts": str(known / "clefts.zarr"),
                "vesicles": str(known / "vesicles.zarr"),
                "training": sizes.training,
            },
        )
        found = [
            _find(folder / f"found{number}", test, trained["result"]["model"]) for number, test in enumerate(tests)
        ]
        scores = [_score(folder / f"found{number}", test) for number, test in enumerate(tests)]
    voxels = sum(_count(sizes.test) for _ in tests)
    seconds = sum(record["cost"]["end"] - record["cost"]["start"] for record in found)
    return [
        *(figure for what in ("clefts", "partners") for figure in _agreement(what, scores, sizes)),
        *_direction(scores),
        Figure("training: all of it", _seconds(trained), "s", note="start and judging included, one thread"),
        Figure("training: CPU", trained["cost"]["cpu_seconds"], "s"),
        Figure("training: memory", trained["cost"]["peak_memory_bytes"] / 2**20, "MiB"),
        Figure("detection to table: voxels", voxels / seconds / 1e6, "Mvoxel/s", note="start included, one thread"),
        Figure("detection to table: memory", found[0]["cost"]["peak_memory_bytes"] / 2**20, "MiB"),
    ]


def _agreement(what: str, scores: list[SynapseScores], sizes: Sizes) -> list[Figure]:
    """Of all test phantoms together."""
    parts: list[Agreement] = [getattr(score, what) for score in scores]
    whole = Agreement.of(*(sum(getattr(part, name) for part in parts) for name in ("matched", "found", "truth")))
    each = ", ".join(f"seed {seed}: {part.f1 or 0:.3f}" for seed, part in zip(sizes.seeds[1:], parts, strict=True))
    note = f"{whole.matched} of {whole.found} found and {whole.truth} true ones; F1 of {each}"
    return [
        Figure(f"{what}: precision", whole.precision or 0.0, "", better="higher"),
        Figure(f"{what}: recall", whole.recall or 0.0, "", better="higher"),
        Figure(f"{what}: F1", whole.f1 or 0.0, "", GOALS[what], "higher", note),
    ]


def _direction(scores: list[SynapseScores]) -> list[Figure]:
    told = [(score.direction, score.partners.matched) for score in scores if score.direction]
    if not told:
        return []
    right, either = sum(matched for _, matched in told), sum(matched / share for share, matched in told)
    return [Figure("direction", right / either, "", better="higher", note="of those with the right two partners")]


def _phantom(folder: Path, shape: Triple, seed: int) -> Path:
    _stage("phantom", folder, {"shape": shape, "seed": seed, "voxel_size_nm": VOXEL, "design": {"synapses": 100}})
    return folder


def _find(folder: Path, phantom: Path, model: str) -> dict[str, Any]:
    content = {"image": str(phantom / "image.zarr"), "segmentation": str(phantom / "labels.zarr"), "model": model}
    return _stage("synapses", folder, content)


def _score(folder: Path, phantom: Path) -> SynapseScores:
    found, truth = read_synapses(folder / "synapses.parquet"), read_synapses(phantom / "synapses.csv")
    partners = sample_labels(open_volume(str(phantom / "labels.zarr")), found.points)
    return score_synapses(found, truth, DISTANCE_NM, VOXEL, partners)


def _stage(name: str, output: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Run a stage with `output` as its output; the record that it writes (its job's folder is beside)."""
    job = output.with_name(f"{output.name}-job")
    job.mkdir(parents=True)
    write_json(job / "parameters.json", {**content, "output": str(output)})
    command = [sys.executable, "-m", f"apps.{name}", str(job / "parameters.json")]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace")[-2000:])
    return load_report(job / RESULT_FILE)


def _seconds(record: dict[str, Any]) -> float:
    return float(record["cost"]["end"] - record["cost"]["start"])


def _count(shape: Triple) -> int:
    return shape[0] * shape[1] * shape[2]


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.synapses", __doc__, run))
