"""Planning and tracking a deployment of a million subvolumes, with simulated jobs on a real Balsam service.

The volume is a sparse one (its metadata only), the model has the published network's field of view.  Plan, tasks and
driver, Balsam's server, database, agent and launcher are the real ones.  The jobs are of the stage `simulation`: the
launcher of a simulated site keeps their clocks on virtual nodes, and nothing is segmented.  A job carries as many
numbers as a real one.  Then a second driver finds the finished deployment again.  Cases:

    million   100 x 100 x 100 subvolumes, 64 in a job
    jobs      50 x 50 x 50 subvolumes, 2 in a job: many more jobs for a subvolume
    masked    2,000 subvolumes of a volume that a mask excludes wholly: here the jobs are the real ones, one after the
              other without Balsam, and what counts is what such a subvolume costs
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from apps.core.boxes import Triple
from apps.core.stage import RESULT_FILE, load_stage
from apps.core.volumes import create_shared_volume, open_volume, write_volume
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.masks import MaskParameters
from apps.ffn.model import ModelParameters, initial_weights
from benchmarks.harness import Figure, benchmark_with_options
from ensemble.deployment import Deployment, Resources, plan_deployment
from ensemble.deployment.driver import Driver
from ensemble.deployment.plan import PLAN_FILE, DeploymentPlan, keep_plan
from ensemble.deployment.tasks import DeploymentTasks
from ensemble.deployment.window import window_size
from ensemble.jobs import CampaignJobs, Outcome, Task

SITE = "virtual"
MODEL = ModelParameters(depth=2, features=2, fov=(33, 33, 33), deltas=(8, 8, 8))
SIDE = 64
VOXEL_SIZE = (8.0, 8.0, 8.0)
WALL_TIME_MIN = 24 * 60
GOAL_PLAN_S, GOAL_AGAIN_S, GOAL_MEMORY_GIB, GOAL_CORES = 60.0, 120.0, 2.0, 2.0


@dataclass(frozen=True)
class Size:
    """Of a case: subvolumes zyx, how many in a job, jobs that share reconciliation, virtual nodes, seconds a job."""

    counts: Triple
    per_job: int
    reconciliation_jobs: int
    nodes: int
    seconds: float

    @property
    def subvolumes(self) -> int:
        return self.counts[0] * self.counts[1] * self.counts[2]


SIZES = {
    "million": {False: Size((100, 100, 100), 64, 2000, 512, 5.0), True: Size((10, 10, 10), 20, 8, 8, 0.3)},
    "jobs": {False: Size((50, 50, 50), 2, 2000, 512, 5.0), True: Size((6, 6, 6), 2, 8, 8, 0.1)},
}

MASKED = "masked"
MASKED_COUNTS: dict[bool, Triple] = {False: (10, 10, 20), True: (2, 3, 4)}
CASES = [*SIZES, MASKED]
GOAL_MASKED_S = 0.02


class SimulatedJobs:
    """A campaign's jobs whose every task takes some simulated seconds; the records are what the driver reads."""

    def __init__(self, jobs: CampaignJobs, seconds: float) -> None:
        self._jobs, self._seconds = jobs, seconds
        self.submitted = 0

    def submit(self, task: Task) -> Future[Outcome]:
        numbers = [float(number) for number in task.parameters.get("numbers", ())]
        simulated = replace(
            task, stage="simulation", parameters={"seconds": self._seconds, "objectives": numbers}, outputs=()
        )
        self.submitted += 1
        told: Future[Outcome] = Future()
        self._jobs.submit(simulated).add_done_callback(lambda future: told.set_result(_as_real(future.result())))
        return told

    def outcome(self, key: str) -> Outcome | None:
        found = self._jobs.outcome(key)
        return None if found is None else _as_real(found)

    def forget(self, keys: Iterable[str]) -> None:
        self._jobs.forget(keys)

    def workdir(self, key: str) -> Path:
        return self._jobs.workdir(key)


class AllThere:
    """Simulated jobs leave no pieces: the driver is told that they are all there."""

    def there(self, number: int) -> bool:
        return True

    def record(self, numbers: Sequence[int]) -> dict[str, Any]:
        raise AssertionError("a simulated job has failed")


def _as_real(outcome: Outcome) -> Outcome:
    """With the record that a job of the real stage would leave, as far as the driver reads it."""
    if outcome.record is None:
        return outcome
    count = len(outcome.record["result"]["objectives"])
    looked = {"voxels": count * (SIDE + 32) ** 3, "excluded": 0}
    result = {
        "count": count,
        "without_look": 0,
        "masked_read": looked,
        "masked_write": looked,
        "seed_seconds": 0.0,
        "model_seconds": outcome.record["result"]["seconds"],
        "other_seconds": 0.0,
        "complete": True,
    }
    return replace(outcome, record={**outcome.record, "result": result})


def run(options: argparse.Namespace) -> list[Figure]:
    cases = options.case or (["million", MASKED] if options.quick else CASES)
    figures = []
    for case in cases:
        if case == MASKED:
            figures += masked_out(MASKED_COUNTS[options.quick])
        else:
            figures += deploy(case, SIZES[case][options.quick], options.quick)
    return figures


def deploy(case: str, size: Size, quick: bool) -> list[Figure]:
    """Plan, submit and track one case in a service of its own; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="ensemble-deployment-") as name:
        folder = Path(name)
        deployment, resources = request(folder, size)
        begin = time.perf_counter()
        plan = plan_deployment(deployment, resources)
        keep_plan(plan)
        planned_s = time.perf_counter() - begin
        plan.work.mkdir()
        with service_and_site(folder / "home", size) as (home, campaign, site_path):
            from ensemble.simulation.costs import CpuMeter

            meter, before_cpu = CpuMeter(home, site_path), {}
            with session(home, campaign, size) as jobs:
                simulated = SimulatedJobs(jobs, size.seconds)
                before_cpu = meter.read()
                begin = time.perf_counter()
                watch = Watch(meter)
                records = drive(plan, deployment, simulated, size, watch)
                tracked_s = time.perf_counter() - begin
                after_cpu = meter.read()
            deployment.output.mkdir()
            again_s, again = track_again(home, campaign, plan, deployment, size)
        inference = records.by_step["inference"]
        done = sum(record["result"]["count"] for record in inference)
        plan_bytes = (deployment.folder / PLAN_FILE).stat().st_size
    name = f"{case}: {size.subvolumes} subvolumes"
    goals = (None,) * 4 if quick else (GOAL_PLAN_S, GOAL_AGAIN_S, GOAL_MEMORY_GIB, GOAL_CORES)
    used = {component: (after_cpu[component] - before_cpu[component]) / tracked_s for component in after_cpu}
    cores = ", ".join(f"{component} {share:.2f}" for component, share in used.items() if component != "optimiser")
    rate = simulated.submitted / tracked_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        Figure(f"{name}: plan", planned_s, "s", goals[0], note=f"plan.json of {plan_bytes} bytes"),
        Figure(
            f"{name}: submitted and tracked to the end",
            tracked_s,
            "s",
            note=f"{simulated.submitted} jobs of {size.seconds:g} s on {size.nodes} virtual nodes, "
            f"{window_size(size.nodes)} under way at most",
        ),
        Figure(f"{name}: jobs", rate, "jobs/s", None, "higher", note="from the first submission to the last end"),
        Figure(f"{name}: subvolumes that the driver has taken note of", done, "", size.subvolumes, "higher"),
        Figure(f"{name}: found again by a second driver", again_s, "s", goals[1], note=f"{again} jobs submitted"),
        Figure(f"{name}: jobs that the second driver repeated", again, "", 0),
        Figure(f"{name}: peak memory of the driver", peak, "GiB", goals[2], note="imports and plan included"),
        Figure(
            f"{name}: peak memory of the server and its database", watch.service_gib, "GiB", note="resident, summed"
        ),
        Figure(f"{name}: server and database", used["server"] + used["database"], "cores", goals[3], note=cores),
    ]


def masked_out(counts: Triple) -> list[Figure]:
    """Plan a deployment of which nothing is left to segment, and do its inference jobs."""
    with tempfile.TemporaryDirectory(prefix="ensemble-deployment-") as name:
        folder = Path(name)
        deployment, resources = request(folder, Size(counts, 64, 1, 1, 0.0))
        mask = folder / "mask.zarr"
        write_volume(mask, np.ones(open_volume(deployment.image).shape, np.uint8), VOXEL_SIZE)
        deployment = replace(deployment, masks=(MaskParameters(volume=str(mask)),))
        begin = time.perf_counter()
        plan = plan_deployment(deployment, resources)
        keep_plan(plan)
        planned_s = time.perf_counter() - begin
        jobs = [job.task for job in DeploymentTasks(plan, deployment).segmenting()]
        begin, before = time.perf_counter(), _children_s()
        results = [run_job(folder / f"job{number}", task) for number, task in enumerate(jobs)]
        wall_s, cpu_s = time.perf_counter() - begin, _children_s() - before
        written = sum(path.stat().st_size for path in plan.pieces.rglob("*") if path.is_file())
        count = len(plan.grid)
    assert sum(result["without_look"] for result in results) == count, "a network was started"
    name, note = f"{MASKED}: {count} subvolumes", "processes and imports included"
    return [
        Figure(f"{name}: plan", planned_s, "s", note="the mask is counted"),
        Figure(f"{name}: jobs", len(jobs), "", note="no network is started in any"),
        Figure(
            f"{name}: processor time of each", cpu_s / count, "s", GOAL_MASKED_S if count >= 1000 else None, note=note
        ),
        Figure(f"{name}: wall time of each", wall_s / count, "s", note=f"one job at a time; {note}"),
        Figure(f"{name}: bytes of each", written / count, "B"),
    ]


def run_job(folder: Path, task: Task) -> dict[str, Any]:
    """Run a task's stage as a job does; its result."""
    folder.mkdir()
    file = folder / "parameters.json"
    load_stage(task.stage).parameters.from_json(json.dumps(task.parameters)).save(file)
    subprocess.run([sys.executable, "-m", f"apps.{task.stage}", str(file)], check=True, stdout=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text())["result"]
    return result


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def request(folder: Path, size: Size) -> tuple[Deployment, Resources]:
    """A sparse volume of so many subvolumes, and a network that nobody will start."""
    shape = (size.counts[0] * SIDE, size.counts[1] * SIDE, size.counts[2] * SIDE)
    create_shared_volume(folder / "image.zarr", shape, "uint8", VOXEL_SIZE)
    info = CheckpointInfo(model=MODEL, image_mean=128.0, image_std=33.0, step=1, provenance={})
    save_checkpoint(folder / "checkpoint", info, initial_weights(MODEL, 0), {})
    deployment = Deployment(
        model="scale:1",
        checkpoint=folder / "checkpoint",
        inference={"min_size": 1000},
        image=str(folder / "image.zarr"),
        output=folder / "out.zarr",
        subvolume=(SIDE, SIDE, SIDE),
        trained_voxel_size_nm=VOXEL_SIZE,
        speed=1e6,
    )
    resources = Resources(
        nodes=size.nodes,
        node_memory=8 << 30,
        subvolumes_per_job=size.per_job,
        reconciliation_jobs=size.reconciliation_jobs,
    )
    return deployment, resources


@contextlib.contextmanager
def service_and_site(home: Path, size: Size) -> Iterator[tuple[Path, Any, Path]]:
    """A Balsam service with a simulated site: (home, campaign, the site's folder)."""
    from ensemble import service, sites
    from ensemble.campaigns import CampaignPlan, create_campaign

    try:
        service.start(home)
        site = sites.create_site(home, SITE, template="simulated", nodes=size.nodes)
        yield home, create_campaign(home, CampaignPlan(name="scale")), site.path
    finally:
        service.stop(home)


def session(home: Path, campaign: Any, size: Size) -> contextlib.AbstractContextManager[CampaignJobs]:
    from ensemble.session import open_session

    return open_session(home, campaign, SITE, size.nodes, WALL_TIME_MIN)


class Watch:
    """Looks now and then at what the service's processes hold, and says how far it is on standard error."""

    def __init__(self, meter: Any) -> None:
        self._meter, self._next = meter, 0.0
        self.service_gib = 0.0

    def __call__(self, progress: object) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 5.0
        self._meter.read()  # what a process has used is lost when it ends
        held = 0
        for component, process in self._meter.processes():
            if component in ("server", "database"):
                with contextlib.suppress(psutil.Error):
                    held += process.memory_info().rss
        self.service_gib = max(self.service_gib, held / 2**30)
        if sys.stderr.isatty():
            print(f"\r\033[K{progress}, load {os.getloadavg()[0]:.1f}", end="", file=sys.stderr, flush=True)


def drive(plan: DeploymentPlan, deployment: Deployment, jobs: SimulatedJobs, size: Size, watch: Any) -> Any:
    tasks = DeploymentTasks(plan, deployment)
    driver = Driver(plan, tasks, jobs, window_size(size.nodes), watch, pieces=AllThere())
    return driver.run(evaluate=False)


def track_again(
    home: Path, campaign: Any, plan: DeploymentPlan, deployment: Deployment, size: Size
) -> tuple[float, int]:
    """Seconds that a second driver takes to see that all is done, its session opened again, and jobs it submits."""
    begin = time.perf_counter()
    with session(home, campaign, size) as jobs:
        simulated = SimulatedJobs(jobs, size.seconds)
        drive(plan, deployment, simulated, size, lambda progress: None)
        return time.perf_counter() - begin, simulated.submitted


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", choices=CASES, help="run this case only (repeat for more)")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.deployment_scale", __doc__, run, add_options))
