"""`ensemble deploy --per-node` on a real Balsam service: as many jobs at a time on the one node, and no more."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ensemble import service
from ensemble.job_requests import fetch_jobs
from tests.conftest import RunningService
from tests.ensemble.deployment.samples import register_sample, sample_deployment
from tests.ensemble.pipeline.test_end_to_end import ENSEMBLE

PER_NODE = 2
JOBS = 3  # more than share the node: were it given out wrongly, one or all of them would be there at a time
NODE_GIB = 4.0

pytestmark = [pytest.mark.slow, pytest.mark.service]


@dataclass(frozen=True)
class Job:
    """An inference job that has run.

    Attributes:
        data: its parameters and its record, as Balsam keeps them.
        batch_job: number of the batch job in which it ran.
        running: seconds between which the launcher's events say that it was running.
        share: of a node that the launcher says it gave to the job.
    """

    data: dict[str, Any]
    batch_job: int
    running: tuple[float, float]
    share: float

    @property
    def working(self) -> tuple[float, float]:
        """Seconds between which its process says that it was there."""
        cost = self.data["record"]["cost"]
        return cost["start"], cost["end"]


def test_so_many_jobs_share_the_one_node(balsam_service: RunningService, tmp_path: Path) -> None:
    home, campaign = balsam_service.home, "deploy-packed"
    sample = sample_deployment(tmp_path)
    register_sample(home, "packed", sample.checkpoint)
    command = [*ENSEMBLE, "deploy", "packed", "--home", str(home), "--campaign", campaign]
    command += ["--image", sample.image, "--out", str(tmp_path / "packed.zarr"), "--subvolume", "16,16,16"]
    command += ["--overlap", "8,8,8", "--per-job", str(-(-8 // JOBS)), "--reconciliation-jobs", "1"]
    command += ["--site", balsam_service.site.name, "--workers", "1", "--per-node", str(PER_NODE)]
    command += ["--node-memory", str(NODE_GIB), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr

    jobs = inference_jobs(home, campaign)
    assert len(jobs) == JOBS
    (batch_job,) = {job.batch_job for job in jobs}
    assert nodes_of(batch_job) == 1
    assert {job.share for job in jobs} == {1 / PER_NODE}
    # By the launcher's events, and by the clocks of the processes themselves.
    assert most_at_a_time([job.running for job in jobs]) == PER_NODE
    assert most_at_a_time([job.working for job in jobs]) == PER_NODE

    assert f"{NODE_GIB / PER_NODE:.1f} GiB there" in done.stdout
    for job in jobs:
        cost = job.data["record"]["cost"]
        assert cost["peak_memory_bytes"] < NODE_GIB * 2**30 / PER_NODE
        assert job.data["parameters"]["threads"] == 1
        assert cost["cpu_seconds"] < 1.5 * (cost["end"] - cost["start"]), "of more than one thread"


def inference_jobs(home: Path, campaign: str) -> list[Job]:
    """What Balsam knows of the campaign's inference jobs."""
    service.connect(home)
    from balsam.api import EventLog

    tags = [f"campaign:{campaign}", "stage:inference"]
    times: dict[str, dict[int, datetime]] = {"RUNNING": {}, "RUN_DONE": {}}
    shares = {}
    for event in EventLog.objects.filter(tags=tags):
        if event.to_state in times:
            times[event.to_state][event.job_id] = event.timestamp
        if event.to_state == "RUNNING":
            shares[event.job_id] = event.data["num_nodes"]
    return [
        Job(
            data=row["data"],
            batch_job=row["batch_job_id"],
            running=(times["RUNNING"][row["id"]].timestamp(), times["RUN_DONE"][row["id"]].timestamp()),
            share=shares[row["id"]],
        )
        for row in fetch_jobs({"tags": tags})
    ]


def nodes_of(batch_job: int) -> int:
    from balsam.api import BatchJob

    return int(BatchJob.objects.get(id=batch_job).num_nodes)


def most_at_a_time(intervals: list[tuple[float, float]]) -> int:
    """The largest number of half open intervals that share a moment."""
    return max(sum(begin <= moment < end for begin, end in intervals) for moment, _ in intervals)
