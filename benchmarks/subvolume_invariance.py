"""Whether a segmentation depends on how it is divided, on how many work at it, in which order, and on who is killed.

A box is segmented in 1, 8 and 27 subvolumes and put together, by the driver of `ensemble deploy` and the stages' own
processes; Balsam is left out.  For one plan the output has to be the same, byte for byte: with 1, 2 and 4 workers, in
any order of the jobs, and where jobs are killed (-9) at 20 random moments and begun again.  That is tried on a phantom
with a network whose weights are set by hand, so that it takes minutes.

Between plans the accuracy has to be the same: variation of information against the truth over the whole FIB-25 sample,
with the published network and a deployment's own overlap, an hour on two cores.  It is also told off the faces of the
sample, where no field of view fits around a voxel however it is divided.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError
from apps.core.parameters import write_json
from apps.core.progress import silent
from apps.core.volumes import VoxelSize, open_volume, write_volume
from apps.evaluation.metrics import Scores, score
from apps.ffn.checkpoint import CheckpointInfo, load_checkpoint, save_checkpoint
from apps.ffn.hand_set import bright_is_object
from apps.ffn.model import ModelParameters
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as make_phantom
from benchmarks.harness import Figure, benchmark_with_options
from ensemble.deployment import Deployment, DeploymentPlan, Resources, plan_deployment, run_plan
from ensemble.display import Display
from ensemble.jobs import Outcome, Task
from ensemble.search.runners.stage_run import PARAMETERS_FILE, read_ending

ROOT = Path(__file__).resolve().parents[1]
FIB25 = Path(os.environ.get("ENSEMBLE_FIB25", ROOT.parent / "shared" / "data" / "fib25"))
SAMPLE, CHECKPOINT = "training_sample2_z000-170.h5", "google_ffn_checkpoint/model.ckpt-27465036"
VOXEL_NM: VoxelSize = (10.0, 10.0, 10.0)
MEAN, STD = 128.0, 33.0
GOAL_VI = 0.05
HAND_SET = ModelParameters(depth=1, features=2, fov=(9, 9, 9), deltas=(2, 2, 2))


@dataclass(frozen=True)
class Case:
    """What is segmented: volumes, a checkpoint, its settings, the box; `kills`, each within so many seconds.

    border: voxels at the faces of the box that are left out of a second score; 0: there is none.
    """

    image: str
    labels: str
    checkpoint: Path
    settings: dict[str, Any]
    box: Box
    kills: int
    kill_within_s: float
    border: int = 0


@dataclass(frozen=True)
class Way:
    """One way to do it: divided along each axis, by so many workers, in a random order, with kills."""

    divided: int
    workers: int
    shuffled: bool = False
    killed: bool = False

    def __str__(self) -> str:
        text = f"{self.divided**3} subvolumes, {self.workers} worker{'s' if self.workers > 1 else ''}"
        return text + (", shuffled" if self.shuffled else "") + (", killed" if self.killed else "")


@dataclass(frozen=True)
class Run:
    """What came out: SHA-256 of the output's files, the labels, kills that hit, and the wall time."""

    digest: str
    labels: NDArray[Any]
    kills: int
    seconds: float


def ways_of(divided: int) -> list[Way]:
    """The first of a plan is what the others have to equal."""
    if divided == 1:
        return [Way(1, 1), Way(1, 1, killed=True)]
    return [Way(divided, 2), Way(divided, 1), Way(divided, 4, shuffled=True), Way(divided, 2, True, True)]


def quick_ways() -> dict[int, list[Way]]:
    return {1: [Way(1, 2)], 2: [Way(2, 2), Way(2, 4, shuffled=True, killed=True)]}


def run(options: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="ensemble-invariance-") as name:
        folder = Path(name)
        if options.quick:
            return measure(folder, small_case(folder, side=32, kills=3), quick_ways(), None)
        every = {divided: ways_of(divided) for divided in (1, 2, 3)}
        once = {divided: own[:1] for divided, own in every.items()}
        volumes: list[tuple[str, Case, dict[int, list[Way]], float | None]] = []
        if options.case in ("bytes", "both"):
            volumes.append(("phantom", small_case(folder / "small", side=48, kills=20), every, None))
        if options.case != "bytes":
            ways = every if options.case == "all-on-fib25" else once
            volumes.append(("FIB-25", fib25_case(folder / "fib25", options.mode), ways, GOAL_VI))
        for _, case, ways, _ in volumes:
            for divided in ways:
                plan_of(folder, case, Way(divided, 1))  # says what does not fit before an hour's work
        return [
            replace(figure, name=f"{volume}, {figure.name}")
            for volume, case, ways, goal_vi in volumes
            for figure in measure(folder, case, ways, goal_vi)
        ]


def measure(folder: Path, case: Case, ways: dict[int, list[Way]], goal_vi: float | None) -> list[Figure]:
    """Segment in every way; `goal_vi`: how much VI may change with the plan, None where it tells nothing."""
    figures: list[Figure] = []
    truth = open_volume(case.labels).read(case.box)
    parts = {"": Box.of((0, 0, 0), case.box.shape)}
    if case.border:
        parts[f", {case.border} voxels off the faces"] = parts[""].grow((-case.border,) * 3)
    scores: dict[int, dict[str, Scores]] = {}
    for divided, own in ways.items():
        first: Run | None = None
        for way in own:
            done = segment(folder, case, way)
            if first is None:
                first = done
                scores[divided] = {
                    part: score(truth[box.slices()], done.labels[box.slices()]) for part, box in parts.items()
                }
                figures += [accuracy_figure(f"{way}{part}", found, done) for part, found in scores[divided].items()]
            else:
                note = f"{done.kills} kills, {done.seconds:.0f} s" if way.killed else f"{done.seconds:.0f} s"
                different = float(done.digest != first.digest)
                figures.append(Figure(f"{way}: other bytes than with the first", different, "", 0, note=note))
    for divided, part in itertools.product(list(scores)[1:], parts):
        change = abs(scores[divided][part].vi - scores[1][part].vi)
        figures.append(Figure(f"{divided**3} subvolumes against 1{part}: change of VI", change, "bit", goal_vi))
    return figures


def fib25_case(folder: Path, mode: str) -> Case:
    """The published network on the whole sample."""
    sample = FIB25 / SAMPLE
    if not sample.is_file():
        raise DataError(f"{sample}: is not there; ENSEMBLE_FIB25 names the folder of the FIB-25 sample")
    image, labels = (open_volume(f"{sample}:{dataset}") for dataset in ("raw", "labels"))
    write_volume(folder / "image.zarr", image.read(), VOXEL_NM)
    write_volume(folder / "labels.zarr", labels.read(), VOXEL_NM)
    published = load_checkpoint(str(FIB25 / CHECKPOINT))
    info = CheckpointInfo(
        model=published.model, image_mean=MEAN, image_std=STD, step=published.step, provenance={"from": CHECKPOINT}
    )
    save_checkpoint(folder / "checkpoint", info, published.weights, {})
    return Case(
        image=str(folder / "image.zarr"),
        labels=str(folder / "labels.zarr"),
        checkpoint=folder / "checkpoint",
        settings={"mode": mode},
        box=image.box,
        kills=20,
        kill_within_s=60.0,
        border=16,
    )


def small_case(folder: Path, side: int, kills: int) -> Case:
    """A cube of a phantom, and a network that takes what is brighter than the mean for inside of an object."""
    phantom = make_phantom(
        PhantomParameters(output=str(folder / "phantom"), shape=(side + 8, side + 24, side + 24), seed=4), silent
    )
    info = CheckpointInfo(model=HAND_SET, image_mean=MEAN, image_std=STD, step=1, provenance={})
    save_checkpoint(folder / "checkpoint", info, bright_is_object(HAND_SET), {})
    return Case(
        image=phantom.image,
        labels=phantom.labels,
        checkpoint=folder / "checkpoint",
        settings={"min_size": 100, "seed_separation": 8},
        box=Box.of((4, 12, 12), (side, side, side)),
        kills=kills,
        kill_within_s=6.0,
    )


def plan_of(folder: Path, case: Case, way: Way) -> tuple[DeploymentPlan, Deployment, Resources]:
    """Of a deployment into `folder`/run.  Raises ParameterError where the subvolumes are too small."""
    deployment = Deployment(
        model="invariance",
        checkpoint=case.checkpoint,
        inference=case.settings,
        image=case.image,
        output=folder / "run" / "out.zarr",
        box=case.box,
        subvolume=_triple(tuple(-(-extent // way.divided) for extent in case.box.shape)),
    )
    resources = Resources(
        nodes=way.workers, node_memory=8 << 30, subvolumes_per_job=1, reconciliation_jobs=min(way.divided, 3)
    )
    return plan_deployment(deployment, resources), deployment, resources


def segment(folder: Path, case: Case, way: Way) -> Run:
    """Deploy in a folder that is then removed: the output's name is in its metadata, so it is the same every time."""
    begin = time.perf_counter()
    plan, deployment, resources = plan_of(folder, case, way)
    place = deployment.output.parent
    jobs = ProcessJobs(place / "jobs", way, case)
    with Display(Console(file=io.StringIO())) as display:
        run_plan(plan, deployment, jobs, display, resources)
    digest, labels = digest_of(deployment.output), open_volume(str(deployment.output)).read()
    shutil.rmtree(place)
    done = Run(digest, labels, jobs.kills, time.perf_counter() - begin)
    print(f"{way}: {digest[:12]}, {done.kills} kills, {done.seconds:.0f} s", file=sys.stderr, flush=True)
    return done


def digest_of(volume: Path) -> str:
    """SHA-256 over names and bytes of all files of a volume."""
    digest = hashlib.sha256()
    for path in sorted(path for path in volume.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(volume)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class ProcessJobs:
    """Each task in a process of its own, by so many workers; what is killed is begun again, as Balsam does."""

    def __init__(self, folder: Path, way: Way, case: Case) -> None:
        self._folder, self._way, self._case = folder, way, case
        self._random = random.Random(f"{way}")
        self._left = case.kills if way.killed else 0
        self._pool = ThreadPoolExecutor(way.workers)
        self._numbers = itertools.count(1)  # of the jobs, in the order in which they are submitted, as Balsam's
        self._waiting: list[tuple[int, Task, Future[Outcome]]] = []
        self._ended: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        self.kills = 0

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            self._waiting.append((next(self._numbers), task, future))
        self._pool.submit(self._one)
        return future

    def outcome(self, key: str) -> Outcome | None:
        return self._ended.get(key)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._ended.pop(key, None)

    def workdir(self, key: str) -> Path:
        return self._folder / key

    def _one(self) -> None:
        with self._lock:
            place = self._random.randrange(len(self._waiting)) if self._way.shuffled else 0
            number, task, future = self._waiting.pop(place)
        try:
            outcome = self._ended[task.key] = self._do(number, task)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(outcome)

    def _do(self, number: int, task: Task) -> Outcome:
        folder = self.workdir(task.key)
        folder.mkdir(parents=True)
        write_json(folder / PARAMETERS_FILE, task.parameters)
        # It ends with this process, however that ends.
        command = [sys.executable, "-P", "-m", "ensemble.stage_process", str(os.getpid()), task.stage]
        command.append(str(folder / PARAMETERS_FILE))
        while True:
            with (folder / "job.out").open("ab") as output:
                process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            if not self._killed(process):
                break
        ending = read_ending(folder)
        if ending is None or ending["record"] is None:
            raise DataError(f"{task.key}: {(folder / 'job.out').read_text()[-500:]}")
        return Outcome(task.key, number, ending["record"])

    def _killed(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the end of a process, or kill it at a random moment while kills are left."""
        with self._lock:
            wait_s = self._random.uniform(0.0, self._case.kill_within_s) if self._left else None
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        killed = process.returncode == -signal.SIGKILL
        if killed:
            with self._lock:
                self._left, self.kills = max(0, self._left - 1), self.kills + 1
        return killed


def accuracy_figure(name: str, scores: Scores, done: Run) -> Figure:
    note = (
        f"split {scores.vi_split:.3f} + merge {scores.vi_merge:.3f}, adapted Rand error "
        f"{scores.adapted_rand_error:.3f}, {len(np.unique(done.labels)) - 1} objects, {done.seconds:.0f} s"
    )
    return Figure(f"{name}: VI against the truth", scores.vi, "bit", note=note)


def _triple(values: tuple[int, ...]) -> Triple:
    return values[0], values[1], values[2]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", choices=("fast", "faithful"), default="fast", help="of the network (default: fast)")
    parser.add_argument(
        "--case",
        choices=("both", "bytes", "accuracy", "all-on-fib25"),
        default="both",
        help="bytes: all ways, on the phantom; accuracy: every plan once, on FIB-25; all ways on FIB-25 take hours",
    )


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.subvolume_invariance", __doc__, run, add_options))
