"""`ensemble deploy` on a real Balsam service: jobs and the driver are killed, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from apps.core.volumes import content_hash, open_volume
from ensemble import service
from ensemble.deployment import Resources, plan_deployment, run_plan
from ensemble.display import Display
from ensemble.job_requests import fetch_jobs
from tests.conftest import RunningService
from tests.ensemble.deployment.samples import ThreadJobs, register_sample, sample_deployment
from tests.ensemble.pipeline.test_end_to_end import ENSEMBLE, stage_processes

CAMPAIGN = "deploy-killed"
# Jobs that are killed, by stage, before the driver is.
KILLS = {"inference": 2, "reconciliation": 1}

pytestmark = [pytest.mark.slow, pytest.mark.service]


def test_killed_jobs_and_a_killed_driver_lose_nothing(balsam_service: RunningService, tmp_path: Path) -> None:
    home = balsam_service.home
    alone = sample_deployment(tmp_path, inference={"min_size": 50})
    register_sample(home, "tubes", alone.checkpoint)
    out = tmp_path / "balsam.zarr"
    command = [*ENSEMBLE, "deploy", "tubes", "--home", str(home), "--image", alone.image, "--out", str(out)]
    command += ["--site", balsam_service.site.name, "--workers", "2", "--campaign", CAMPAIGN]
    command += ["--subvolume", "16,16,16", "--overlap", "8,8,8", "--per-job", "1", "--reconciliation-jobs", "2"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        kill_jobs(home, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert not out.exists(), "what is half made has not the name of what is whole"

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "complete: all 8 subvolumes" in done.stdout
    verified = subprocess.run([*ENSEMBLE, "deploy", "--verify", str(out)], capture_output=True, text=True, timeout=60)
    assert verified.returncode == 0 and "complete, every write box" in verified.stdout, verified.stderr

    resources = Resources(nodes=1, subvolumes_per_job=8, reconciliation_jobs=1)
    with Display() as display:
        run_plan(plan_deployment(alone, resources), alone, ThreadJobs(tmp_path / "jobs"), display, resources)
    expected = open_volume(str(alone.output))
    assert content_hash(open_volume(str(out))) == content_hash(expected)
    assert len(set(expected.read().ravel().tolist())) == 5, "the four tubes, and what is outside of them"

    before = jobs_of(home)
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stdout + again.stderr
    assert jobs_of(home) == before, "what is done is not done again"
    assert len(before) == len(set(before)), "no task has two jobs"


def kill_jobs(home: Path, driver: subprocess.Popen[str]) -> None:
    """Kill as many processes of each stage as KILLS says, each a job's attempt of its own."""
    killed: dict[str, set[int]] = {stage: set() for stage in KILLS}
    deadline = time.monotonic() + 240
    while any(len(killed[stage]) < count for stage, count in KILLS.items()):
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline, f"killed so far: {killed}"
        for stage, count in KILLS.items():
            for process in stage_processes(home, stage)[: count - len(killed[stage])]:
                process.kill()
                killed[stage].add(process.pid)
        time.sleep(0.02)


def jobs_of(home: Path) -> list[str]:
    """The tasks of the campaign's jobs in Balsam."""
    service.connect(home)
    return sorted(str(job["tags"]["task"]) for job in fetch_jobs({"tags": [f"campaign:{CAMPAIGN}"]}))
