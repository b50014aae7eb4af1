"""Tasks as real Balsam jobs: outcomes, dependencies, a second driver that finds them, and sessions."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.core.errors import FailureKind, StateError
from apps.simulation.stage import SimulationParameters
from ensemble import service, sites
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.runners.balsam import BalsamRunner
from ensemble.search.runners.contract import Assignment
from ensemble.service.processes import end, wait_until
from ensemble.session import STARTED_FILE, open_session
from ensemble.sites.processes import AT_ONCE, launcher_processes, launchers
from tests.conftest import RunningService
from tests.ensemble.samples import campaign_data

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


def simulated(key: str, seconds: float = 0.0, fate: str = "ok", **fields: Any) -> Task:
    return Task(key, "simulation", {"seconds": seconds, "fate": fate, "output": fields.pop("output", None)}, **fields)


def _wait_until(condition: Callable[[], object]) -> None:
    assert wait_until(lambda: bool(condition()), PATIENCE_S, 0.05)


def _of(workdir: Path) -> list[psutil.Process]:
    """The simulations that run in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            here = "apps.simulation" in process.cmdline() and process.cwd() == str(workdir.resolve())
        except psutil.Error:
            continue
        if here:
            found.append(process)
    return found


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
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign
) -> None:
    with CampaignJobs(campaign, app_ids, balsam_service.site.path / "data") as jobs:
        future = jobs.submit(simulated("killed", seconds=1.5))
        _wait_until(lambda: _of(jobs.workdir("killed")))
        os.kill(_of(jobs.workdir("killed"))[0].pid, signal.SIGKILL)
        outcome = future.result(PATIENCE_S)
    assert outcome.failure is None
    assert outcome.attempts == 2


def test_what_hangs_is_ended_and_what_the_submitter_retries_is_not_run_again(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, tmp_path: Path
) -> None:
    killed = simulated("killed", fate="killed", output=str(tmp_path / "starts"), max_attempts=1)
    with CampaignJobs(campaign, app_ids, balsam_service.site.path / "data") as jobs:
        blocked = jobs.workdir("blocked") / "parameters.json"
        blocked.mkdir(parents=True)
        futures = [
            jobs.submit(task)
            for task in (simulated("hangs", fate="hang", time_limit_s=1.0), killed, simulated("blocked"))
        ]
        hangs, lost, failed = (future.result(PATIENCE_S) for future in futures)
        assert (hangs.failure, hangs.attempts) == (FailureKind.HUNG, 1)
        assert "ran longer than its time limit of 1 s" in hangs.message
        assert _of(jobs.workdir("hangs")) == []
        assert (lost.failure, lost.attempts) == (FailureKind.KILLED, 1)
        # A job that Balsam itself gave up says why.
        assert failed.failure is FailureKind.BUG
        assert "Is a directory" in failed.message


def test_cancelled_jobs_leave_balsam_and_the_machine(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign
) -> None:
    with CampaignJobs(campaign, app_ids, balsam_service.site.path / "data") as jobs:
        runs = jobs.submit(simulated("runs", fate="hang"))
        waits = jobs.submit(simulated("waits", after=("runs",)))
        _wait_until(lambda: _of(jobs.workdir("runs")))
        jobs.cancel(["runs", "waits"])
        assert {runs.result(0).failure, waits.result(0).failure} == {FailureKind.KILLED}
        assert _of(jobs.workdir("runs")) == []

        def left() -> list[str]:
            tags = {"campaign": campaign.name, "campaign_uid": campaign.uid}
            return [str(job.state.value) for job in Job.objects.filter(tags=tags)]

        from balsam.api import Job

        _wait_until(lambda: set(left()) <= {"FAILED"})


def test_nodes_are_counted_where_launchers_run(balsam_service: RunningService, app_ids: dict[str, int]) -> None:
    site = balsam_service.site
    _wait_until(lambda: sites.running_nodes(site) == 2)
    number = sites.submit_batch_job(site, 1, 10, {"campaign": "another"})
    _wait_until(lambda: sites.running_nodes(site) == 3)
    assert sites.running_nodes(site, {"campaign": "mine", "search": "s"}) == 2
    assert sites.running_nodes(site, {"campaign": "another", "search": "s"}) == 3
    script = site.path / "qsubmit" / f"qlaunch{number:05d}.sh"
    end(launcher_processes(site.path, str(script)), AT_ONCE)
    _wait_until(lambda: sites.running_nodes(site) == 2)


def test_a_launcher_that_ended_is_followed_by_another_that_goes_on(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal is to a launcher what the end of its walltime is: it times out its jobs and ends."""
    monkeypatch.setattr("ensemble.session.LAUNCHER_CHECK_S", 0.3)
    home, site = balsam_service.home, balsam_service.site
    with open_session(home, campaign, site.name, 2, 30) as jobs:
        future = jobs.submit(simulated("long", seconds=1.5))
        _wait_until(lambda: _of(jobs.workdir("long")))
        first = launchers(site.path)
        for process in first:
            process.terminate()
        outcome = future.result(PATIENCE_S)
        assert outcome.failure is None
        assert outcome.attempts == 1  # walltime is no fault of the job
        assert {process.pid for process in launchers(site.path)}.isdisjoint(process.pid for process in first)
        _wait_until(lambda: sites.running_nodes(site) == 2)  # it was asked for once, although it was looked for often


def test_session_leaves_what_the_user_started(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign
) -> None:
    home, site = balsam_service.home, balsam_service.site
    with open_session(home, campaign, site.name, 2, 30) as jobs:
        assert jobs.submit(simulated("short")).result(PATIENCE_S).failure is None
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


def test_trials_run_and_the_next_driver_finds_them(
    balsam_service: RunningService, app_ids: dict[str, int], campaign: Campaign, tmp_path: Path
) -> None:
    def parameters(request: TrialRequest) -> SimulationParameters:
        return SimulationParameters(seconds=0, objectives=(2.0,), output=request.output, **request.configuration)

    search = Search(lambda data: None, parameters, lambda result: 0.0, stage="simulation")
    fates = [Assignment(i, 0, 1, {"fate": fate}, time_limit_s=1.0) for i, fate in enumerate(("ok", "hang", "killed"))]
    again = Assignment(2, 0, 2, {"fate": "killed"})

    def run(jobs: CampaignJobs, assignments: list[Assignment]) -> dict[tuple[int, int], Outcome]:
        site = balsam_service.site
        runner = BalsamRunner(jobs, search, campaign_data(), tmp_path, 0, "s", lambda: sites.running_nodes(site))
        assert runner.nodes() == 2
        runner.submit(assignments)
        found: dict[tuple[int, int], Outcome] = {}
        while len(found) < len(assignments):
            found |= {(r.assignment.trial, r.assignment.attempt): r.outcome for r in runner.wait(PATIENCE_S)}
        runner.close()
        return found

    data = balsam_service.site.path / "data"
    with CampaignJobs(campaign, app_ids, data) as jobs:
        first = run(jobs, fates)
        assert [first[i, 1].failure for i in range(3)] == [None, FailureKind.HUNG, FailureKind.KILLED]
        record = first[0, 1].record
        assert record is not None and record["result"]["objectives"] == [2.0]
        assert run(jobs, [again])[2, 2].failure is None
    with CampaignJobs(campaign, app_ids, data) as jobs:
        found = run(jobs, [*fates, again])
        assert {key: found[key] for key in first} == first
