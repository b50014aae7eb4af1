"""The FIB-25 sample from image to agglomerated segmentation, with the network that google/ffn published.

    python -m benchmarks.fib25 --out ../fib25-run --json benchmarks/results/fib25.json

Each step is the stage that a deployment runs, with its overlap and its rules for links, as jobs of their own that share
it by parts: inference in overlapping subvolumes (with --consensus once more with the seeds in reverse order, and the
split consensus of both), reconciliation, agglomeration.  Then every segmentation is scored against the proofread
labels, beside the one that google/ffn published for this volume, in the same voxels.  At last every object is cut where
a subvolume ends, as if there were no reconciliation: what agglomeration then joins shows what it mends and what it gets
wrong.  Run again with the same --out, it goes on where it was ended, and jobs that are done are not done again; their
seconds are those they took.

--quick takes a box of 64 x 128 x 128 voxels.  The sample is looked for in $ENSEMBLE_FIB25, or ../shared/data/fib25.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.core.files import write_atomically
from apps.core.parts import Phase
from apps.core.stage import RESULT_FILE, load_stage
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import open_volume, write_volume
from apps.evaluation.contingency import count_pairs
from apps.evaluation.metrics import Scores, score
from benchmarks.harness import Figure, benchmark_with_options
from ensemble.deployment.sizes import plan_overlap

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = Path(os.environ.get("ENSEMBLE_FIB25", ROOT.parent / "shared/data/fib25"))
VOLUME = "training_sample2_z000-170.h5"
CHECKPOINT = "google_ffn_checkpoint/model.ckpt-27465036"
VOXEL_SIZE = (10.0, 10.0, 10.0)
WHOLE = Box.of((0, 0, 0), (170, 250, 250))
SMALL = Box.between((40, 60, 60), (104, 188, 188))
SHAPE: Triple = (96, 128, 128)
SMALL_SHAPE: Triple = (64, 128, 64)
CHUNKS: Triple = (32, 64, 64)
# Off the faces no field of view is centred, so that the shell is mostly unfilled.
BORDER = 16
INNER = f"{BORDER} voxels off the faces"
FOV: Triple = (33, 33, 33)
DELTAS: Triple = (8, 8, 8)
NETWORK = {"fov": list(FOV), "deltas": list(DELTAS), "image_mean": 128.0, "image_std": 33.0}
OVERLAP = plan_overlap(FOV, DELTAS)
# More voxels than any two objects share.
NO_LINKS = {"min_overlap_voxels": 1 << 31}
Labels = NDArray[Any]


@dataclass
class Runner:
    """Runs stages as processes of their own, so many at a time; a job that has its result is not run again.

    Attributes:
        folder: of the jobs' parameters and results.
        jobs: parts that a shared phase is cut into.
        seconds: wall time of the processes, summed by step.
    """

    folder: Path
    jobs: int
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, step: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """All phases of a stage; the result of its last job, which is told to do all of it."""
        phases = load_stage(stage).phases
        for number, phase in enumerate(phases[:-1]):
            self._phase(stage, f"{step}-{number}", step, parameters, phase)
        (result,) = self._together(stage, [(f"{step}-all", parameters)], step)
        return result

    def _phase(self, stage: str, name: str, step: str, parameters: dict[str, Any], phase: Phase) -> None:
        action = {"action": phase.action} if phase.action else {}
        parts: list[dict[str, Any]] = [{}]
        if phase.shared:
            parts = [{"part": {"index": index, "of": self.jobs}} for index in range(self.jobs)]
        named = [(f"{name}-{index}", {**parameters, **action, **part}) for index, part in enumerate(parts)]
        self._together(stage, named, step)

    def _together(self, stage: str, jobs: list[tuple[str, dict[str, Any]]], step: str) -> list[dict[str, Any]]:
        started = [self._start(stage, name, parameters) for name, parameters in jobs]
        results = [finish() for finish in started]
        self.seconds[step] = self.seconds.get(step, 0.0) + max(
            result["cost"]["end"] - result["cost"]["start"] for result in results
        )
        return [result["result"] for result in results]

    def _start(self, stage: str, name: str, parameters: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = load_stage(stage).parameters.from_json(json.dumps(parameters))
        file, result = folder / "parameters.json", folder / RESULT_FILE
        if result.is_file() and json.loads(result.read_text())["configuration_hash"] == chosen.hash():
            return lambda: json.loads(result.read_text())
        chosen.save(file)
        log = (folder / "log.txt").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", f"apps.{stage}", str(file)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
        )

        def finish() -> dict[str, Any]:
            code = process.wait()
            log.close()
            if code != 0:
                raise SystemExit(f"{name}: exit code {code}; see {folder / 'log.txt'}")
            return json.loads(result.read_text())

        return finish


@dataclass(frozen=True)
class Case:
    """What to reconstruct: the image cut to its box, so that the box is all there is, as for google/ffn."""

    box: Box
    grid: SubvolumeGrid
    folder: Path
    options: argparse.Namespace

    @property
    def image(self) -> Path:
        return self.folder / "image.zarr"

    def network(self) -> dict[str, Any]:
        """Parameters of stages that run the network."""
        checkpoint = self.options.checkpoint or str(SAMPLE / CHECKPOINT)
        return {
            "image": str(self.image),
            "model": checkpoint,
            "threads": self.options.threads,
            **NETWORK,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep what is made there, and go on from it")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="of the network in each (default: 1)")
    parser.add_argument("--mode", choices=["faithful", "fast"], default="fast", help="of flood filling (default: fast)")
    parser.add_argument("--consensus", action="store_true", help="also reverse the seeds, and take the split consensus")
    parser.add_argument(
        "--no-seams", action="store_true", help="leave out what is cut at the seams: as long as all the rest together"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="another network than the published one")


def run(options: argparse.Namespace) -> list[Figure]:
    if not (SAMPLE / VOLUME).is_file():
        raise SystemExit(f"{SAMPLE}: the FIB-25 sample is not there; name its folder in ENSEMBLE_FIB25")
    with _folder(options.out) as folder:
        case = prepare(options, folder)
        runner = Runner(folder / "jobs", options.jobs, options.threads)
        steps = reconstruct(case, runner)
        return figures(case, runner, steps)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out.absolute()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def prepare(options: argparse.Namespace, folder: Path) -> Case:
    """Cut the image to the box, and plan the subvolumes."""
    box, shape = (SMALL, SMALL_SHAPE) if options.quick else (WHOLE, SHAPE)
    local = Box.of((0, 0, 0), box.shape)
    grid = SubvolumeGrid(box=local, shape=shape, overlap=OVERLAP)
    case = Case(box, grid, folder, options)
    made_for = folder / "box.json"
    if made_for.is_file() and json.loads(made_for.read_text()) != str(box):
        raise SystemExit(f"{folder}: holds a run on the box {json.loads(made_for.read_text())}; give another --out")
    if not case.image.is_dir():
        write_volume(case.image, open_volume(f"{SAMPLE / VOLUME}:raw").read(box), VOXEL_SIZE)
        write_atomically(made_for, json.dumps(str(box)).encode())
    return case


@dataclass(frozen=True)
class Steps:
    """What the steps gave: segmentations by name, in order, and the results of the stages.

    Of the objects that are cut at the seams it is known that the cuts are none, so that they show what agglomeration
    mends; `agglomerated` is what it makes of the segmentation as it should be.
    """

    segmentations: dict[str, Path]
    inference: list[dict[str, Any]]
    agglomerations: dict[str, dict[str, Any]]


def reconstruct(case: Case, runner: Runner) -> Steps:
    grid, folder, settings = case.grid.to_dict(), case.folder, {"mode": case.options.mode}
    base = {"grid": grid, **case.network()}
    pieces = folder / "forward"
    inference = [
        runner.run("inference", "inference", {**base, "settings": settings, "output": str(pieces)}),
    ]
    segmentations = {}
    if case.options.consensus:
        segmentations["reconciled, without consensus"] = reconcile(case, runner, pieces, "forward")
        backward = {**settings, "reverse_seeds": True}
        other = folder / "reverse"
        inference.append(
            runner.run("inference", "inference-reverse", {**base, "settings": backward, "output": str(other)})
        )
        agreed = {"first": str(pieces), "second": str(other), "output": str(folder / "consensus")}
        runner.run("consensus", "consensus", {"grid": grid, **agreed})
        pieces = folder / "consensus"
    segmentations["reconciled"] = reconcile(case, runner, pieces, "reconciled")
    agglomerations = {"agglomerated": agglomerate(case, runner, segmentations["reconciled"], "agglomerated")}
    segmentations["agglomerated"] = case.folder / "agglomerated.zarr"
    if case.options.no_seams:
        return Steps(segmentations, inference, agglomerations)
    segmentations["cut at the seams"] = reconcile(case, runner, pieces, "cut", links=False)
    agglomerations["agglomerated, cut"] = agglomerate(case, runner, segmentations["cut at the seams"], "rejoined")
    segmentations["agglomerated, cut"] = case.folder / "rejoined.zarr"
    return Steps(segmentations, inference, agglomerations)


def reconcile(case: Case, runner: Runner, pieces: Path, name: str, links: bool = True) -> Path:
    """The pieces as one volume; without links every object is cut where a subvolume ends."""
    output = case.folder / f"{name}.zarr"
    parameters = {
        "grid": case.grid.to_dict(),
        "pieces": str(pieces),
        "output": str(output),
        "chunks": list(CHUNKS),
        **({} if links else NO_LINKS),
    }
    runner.run("reconciliation", f"reconciliation-{name}", parameters)
    return output


def agglomerate(case: Case, runner: Runner, segmentation: Path, name: str) -> dict[str, Any]:
    parameters = {
        "segmentation": str(segmentation),
        "output": str(case.folder / f"{name}.zarr"),
        "settings": {"mode": case.options.mode},
        "block": list(case.grid.shape),
    }
    return runner.run("agglomeration", f"agglomeration-{name}", {**case.network(), **parameters})


def figures(case: Case, runner: Runner, steps: Steps) -> list[Figure]:
    """Cost, accuracy of every segmentation in the same voxels, and what became of the decision points."""
    truth, published = (
        open_volume(f"{SAMPLE / VOLUME}:{name}").read(case.box) for name in ("labels", "google_ffn_segmentation")
    )
    found: list[Figure] = []
    for step, seconds in runner.seconds.items():
        found.append(Figure(f"{step}: wall time", seconds, "s", note=f"{case.options.jobs} processes at a time"))
    looks = sum(result["steps"] for result in steps.inference)
    found.append(Figure("inference: looks of the network", looks, "steps"))
    read = sum(item.read_box.size for item in case.grid)
    found.append(
        Figure("inference: subvolumes", len(case.grid), "", note=f"{read / case.box.size:.2f} x the voxels of the box")
    )
    volumes = {name: open_volume(str(path)).read() for name, path in steps.segmentations.items()}
    for name, labels in {**volumes, "published": published}.items():
        found += score_figures(name, truth, labels)
    befores = {"agglomerated": "reconciled", "agglomerated, cut": "cut at the seams"}
    scores = {name: scores_of(truth, labels) for name, labels in {**volumes, "published": published}.items()}
    for name, before in befores.items():
        if name not in steps.agglomerations:
            continue
        for where, after in scores[name].items():
            change = after.vi - scores[before][where].vi
            found.append(Figure(f"{name}: change of VI, {where}", change, "bit", 0.0))
        found += decision_figures(name, truth, volumes[before], steps.agglomerations[name])
    for where, after in scores["agglomerated"].items():
        # google/ffn had the slices beyond the box, too; its shell is filled where ours cannot be.
        goal = 0.1 if where == INNER and not case.options.quick else None
        more = after.vi - scores["published"][where].vi
        found.append(Figure(f"agglomerated - published: VI, {where}", more, "bit", goal))
    return found


def scores_of(truth: Labels, labels: Labels) -> dict[str, Scores]:
    """Against the labels: all voxels, those off the faces, and those that the segmentation fills."""
    inside = tuple(slice(BORDER, -BORDER) for _ in range(3))
    return {
        "all voxels": score(truth, labels),
        INNER: score(truth[inside], labels[inside]),
        "filled voxels": score(np.where(labels > 0, truth, 0), labels),
    }


def score_figures(name: str, truth: Labels, labels: Labels) -> list[Figure]:
    found = []
    for where, scores in scores_of(truth, labels).items():
        note = f"split {scores.vi_split:.3f} + merge {scores.vi_merge:.3f}"
        found.append(Figure(f"{name}: VI, {where}", scores.vi, "bit", note=note))
        found.append(Figure(f"{name}: adapted Rand error, {where}", scores.adapted_rand_error, ""))
    whole = score(truth, labels)
    found.append(Figure(f"{name}: labelled voxels filled", 100 * whole.filled_fraction, "%"))
    found.append(Figure(f"{name}: objects", whole.objects, ""))
    return found


def decision_figures(name: str, truth: Labels, base: Labels, result: dict[str, Any]) -> list[Figure]:
    """What the decision points are worth: of each base object the body that most of it lies in is taken for true."""
    import pandas as pd

    edges = pd.read_parquet(result["edges"])
    bodies = majority(base, truth)
    known = edges[edges["a"].isin(list(bodies)) & edges["b"].isin(list(bodies))]
    same = known["a"].map(bodies) == known["b"].map(bodies)
    merged = known["refused"] == ""
    right = int((same & merged).sum())
    decision = result["decision"]
    refused = ", ".join(f"{why} {count}" for why, count in sorted(decision["refused"].items()))
    found = [
        Figure(f"{name}: decision points", decision["points"], "", note=f"not merged: {refused}"),
        Figure(f"{name}: looks of the network", decision["steps"], "steps"),
        Figure(f"{name}: mergers", decision["merges"], ""),
        Figure(f"{name}: objects", decision["objects"], "", note=f"of {decision['base_objects']}"),
    ]
    if merged.any():
        note = f"{right} of {int(merged.sum())} within one proofread body"
        share = 100 * right / int(merged.sum())
        found.append(Figure(f"{name}: mergers that are right", share, "%", 90.0, "higher", note))
    if same.any():
        share = 100 * right / int(same.sum())
        note = f"{right} of {int(same.sum())}"
        found.append(Figure(f"{name}: decision points within a body that merged", share, "%", note=note))
    return found


def majority(labels: Labels, truth: Labels) -> dict[int, int]:
    """Object -> the body that holds most of its labelled voxels; objects outside of all bodies are left out."""
    inside = (labels > 0) & (truth > 0)
    pairs = count_pairs(labels[inside], truth[inside])
    order = np.lexsort((pairs.second, pairs.voxels))
    return dict(zip(pairs.first[order].tolist(), pairs.second[order].tolist(), strict=True))


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.fib25", __doc__, run, add_options))
