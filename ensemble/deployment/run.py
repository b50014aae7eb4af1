"""Running a deployment, shown on a display; and checking a finished one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from apps.core.errors import DataError, StateError
from apps.core.files import lock
from apps.core.progress import Reporter
from apps.core.stage import load_stage
from ensemble.deployment.driver import SEGMENTING, Driver
from ensemble.deployment.owner import Owner, claim
from ensemble.deployment.plan import DeploymentPlan, find_plan, keep_plan, plan_deployment, renew_plan, work_beside
from ensemble.deployment.progress import Progress
from ensemble.deployment.records import Records
from ensemble.deployment.request import Deployment, Resources
from ensemble.deployment.tasks import DeploymentTasks, reconciliation_parameters
from ensemble.deployment.window import window_size
from ensemble.display import Display, Folders, Update, job_folders
from ensemble.jobs import CampaignJobs
from ensemble.workflow import Jobs

_LOCK_FILE = ".driver.lock"
# Jobs that a display shows at a time.
_SHOWN = 8


def run_deployment(
    deployment: Deployment, jobs: CampaignJobs | Jobs, display: Display, resources: Resources | None = None
) -> dict[str, Any]:
    """Plan and do it, shown on a display; returns records by step.

    A list for `inference` and, where several jobs share them, `compare` and `relabel`; one for `reconciliation` and
    `evaluation`.  The same deployment, asked for again, goes on with what is missing.
    """
    resources = resources or Resources()
    plan = plan_deployment(deployment, resources)
    return run_plan(plan, deployment, jobs, display, resources).by_step


def run_plan(
    plan: DeploymentPlan, deployment: Deployment, jobs: Jobs, display: Display, resources: Resources
) -> Records:
    """Do a plan.

    Raises SubvolumesFailedError that names the subvolumes which keep failing, when all others are done; StateError
    where another process works on the same output, or jobs of another campaign have.
    """
    keep_plan(plan)
    with _open_lock(Path(plan.folder)) as held:
        lock(held, Path(plan.folder))
        unfinished: Callable[[], set[str]] = set
        if isinstance(jobs, CampaignJobs):
            claim(Path(plan.folder), plan.output, Owner(name=jobs.campaign, jobs=str(jobs.root)))
            unfinished = jobs.unfinished
        renew_plan(plan)
        driver: Driver

        def running() -> dict[str, Path]:
            return job_folders(jobs, islice(driver.window.keys, _SHOWN))

        processes = resources.nodes * plan.jobs_per_node
        with _Shown(display, running) as tell:
            tasks = DeploymentTasks(plan, deployment)
            driver = Driver(plan, tasks, jobs, window_size(processes), tell, processes, unfinished=unfinished)
            tell.begin(SEGMENTING)  # to look at what is there may take its time
            records = driver.run(evaluate=deployment.labels is not None)
        prove_complete(plan, records)
        return records


class _Shown(contextlib.ExitStack):
    """Shows each step of a driver as a phase of a display; called with the step's progress."""

    def __init__(self, display: Display, running: Folders) -> None:
        super().__init__()
        self._display, self._running = display, running
        self._title = ""
        self._update: Update

    def begin(self, title: str) -> None:
        """Show another step from now on."""
        self.close()
        self._title = title
        self._update = self.enter_context(self._display.phase(title, self._running))

    def __call__(self, progress: Progress) -> None:
        if progress.title != self._title:
            self.begin(progress.title)
        self._update(progress.done, progress.total, str(progress))


def _open_lock(folder: Path) -> IO[str]:
    try:
        return (folder / _LOCK_FILE).open("a")
    except OSError as error:
        why = error.strerror or error
        raise DataError(f"{folder}: cannot be written ({why}); make room there, or give another --out") from error


def prove_complete(plan: DeploymentPlan, records: Records) -> None:
    """Raise StateError unless the manifest of the output accounts for the write box of every subvolume, once."""
    import pyarrow.parquet as pq

    manifest = records.by_step["reconciliation"]["result"]["manifest"]
    table = pq.read_table(manifest, columns=["subvolume", "voxels"])
    numbers = np.sort(table["subvolume"].to_numpy())
    whole = np.array_equal(numbers, np.arange(len(plan.grid)))
    written = int(table["voxels"].to_numpy().sum())
    if not whole or written != plan.grid.box.size:
        raise StateError(
            f"{plan.output}: {manifest} accounts for {len(numbers)} of {len(plan.grid)} subvolumes and {written} of "
            f"{plan.grid.box.size} voxels; remove {plan.work} and run the same command again"
        )


def verify_deployment(output: Path, report: Reporter) -> dict[str, Any]:
    """Read a finished deployment's output again, and compare every write box with the manifest.

    Returns the result of the stage `reconciliation`.  Raises StateError where no deployment made the output, DataError
    that names the boxes which differ.
    """
    output = output.absolute()
    plan = find_plan(output)
    stage = load_stage("reconciliation")
    if not output.is_dir():
        raise DataError(f"{output}: is not there; run the deployment to its end first")
    # A copy, or what was moved, is looked at itself, with what lies beside it: the plan has the first place.
    here = {"output": str(output), "work": str(work_beside(output))}
    parameters = stage.parameters.from_json(reconciliation_parameters(plan, "verify") | here)
    result: dict[str, Any] = stage.run(parameters, report).to_dict()
    return result
