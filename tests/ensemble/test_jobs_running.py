"""Tasks as real Balsam jobs: outcomes, dependencies, a second driver that finds them, and sessions."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apps.core.errors import FailureKind, StateError
from ensemble import service, sites
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.jobs import CampaignJobs, Task
from ensemble.session import STARTED_FILE, open_session
from tests.conftest import RunningService

pytestmark = pytest.mark.service

PATIENCE_S = 120.0


@pytest.fixture(scope="module")
def app_ids(balsam_service: RunningService) -> Iterator[dict[str, int]]:
    service.connect(balsam_service.home)
    from apps.definitions import register

    ids = register(balsam_service.site.id)
    sites.submit_batch_job(balsam_service.site, 2, 30)
    yield ids
    sites.stop_launchers(balsam_service.site)


@pytest.fixture
def campaign(balsam_service: RunningService, tmp_path: Path) -> Campaign:
    return create_campaign(balsam_service.home, CampaignPlan(name=f"jobs-{tmp_path.name[-20:]}"), tmp_path / "campaign")


def phantom(folder: Path, key: str = "phantom") -> Task:
    return Task(key, "phantom", {"output": str(folder / "em"), "shape": [24, 32, 32], "seed": 1})


def test_outcomes_dependencies_and_a_second_driver(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, tmp_path: Path
) -> None:
    data = balsam_service.site.path / "data"
    em = tmp_path / "em"
    box = {"offset": [0, 0, 0], "shape": [24, 32, 32]}
    score = {"segmentation": str(em / "labels.zarr"), "labels": str(em / "labels.zarr"), "box": box, "baselines": False}
    tasks = [
        phantom(tmp_path),
        Task("score", "evaluation", score, after=("phantom",)),
        Task("wrong", "evaluation", {**score, "segmentation": str(tmp_path / "none.zarr")}),
    ]
    with CampaignJobs(campaign, app_ids, data) as jobs:
        made, scored, wrong = (future.result(PATIENCE_S) for future in [jobs.submit(task) for task in tasks])
        assert made.record is not None and made.record["result"]["objects"] > 0
        assert scored.record is not None and scored.record["result"]["scores"]["vi"] == 0
        assert wrong.failure is FailureKind.BAD_CONFIGURATION
        assert "none.zarr: no such volume" in wrong.message
    with CampaignJobs(campaign, app_ids, data) as again:
        assert again.submit(tasks[0]).result(1).job_id == made.job_id
        again.forget(["wrong"])
        assert again.outcome("wrong") is None
        renewed = again.submit(tasks[2]).result(PATIENCE_S)
        assert renewed.failure is FailureKind.BAD_CONFIGURATION
        assert renewed.job_id != wrong.job_id


def test_killed_process_is_run_again_and_counted(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, tmp_path: Path
) -> None:
    # Large enough that there is time to kill it.
    task = Task("phantom", "phantom", {"output": str(tmp_path / "em"), "shape": [96, 160, 160], "seed": 1})
    with CampaignJobs(campaign, app_ids, balsam_service.site.path / "data") as jobs:
        future = jobs.submit(task)
        workdir = jobs.workdir("phantom")
        deadline = time.monotonic() + PATIENCE_S
        while not (victims := [p for p in _stages() if p.cwd() == str(workdir.resolve())]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(victims[0].pid, signal.SIGKILL)
        outcome = future.result(PATIENCE_S)
    assert outcome.failure is None
    assert outcome.attempts == 2


def _stages() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "apps.phantom" in process.cmdline():
                process.cwd()
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_session_leaves_what_the_user_started(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, tmp_path: Path
) -> None:
    home, site = balsam_service.home, balsam_service.site
    with open_session(home, campaign, site.name, 2, 30) as jobs:
        assert jobs.submit(phantom(tmp_path)).result(PATIENCE_S).failure is None
        with pytest.raises(StateError, match="drives it already"), open_session(home, campaign, site.name, 2, 30):
            pass
    assert service.status(home).phase is service.Phase.RUNNING
    assert sites.agent_running(site)
    assert not (home / STARTED_FILE).exists()


def test_unknown_site_is_named(balsam_service: RunningService, campaign: Campaign) -> None:
    with (
        pytest.raises(StateError, match="'typo': no such site"),
        open_session(balsam_service.home, campaign, "typo", 2, 30),
    ):
        pass
