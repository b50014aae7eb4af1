"""Sites for real: jobs through agent and launcher, the stock `balsam` commands, and what is left after a kill."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.core.errors import ParameterError, StateError
from ensemble import service, sites
from ensemble.service.processes import wait_until
from ensemble.sites import processes
from ensemble.sites.site import client_of
from tests.conftest import RunningService

pytestmark = pytest.mark.service


@pytest.fixture
def connected(balsam_service: RunningService) -> Iterator[RunningService]:
    """The shared service, running and connected; launchers that the test started are ended after it."""
    service.start(balsam_service.home)
    sites.start_agent(balsam_service.site)
    service.connect(balsam_service.home)
    yield balsam_service
    sites.stop_launchers(balsam_service.site)


@pytest.fixture
def shell(connected: RunningService) -> Any:
    return _shell_at("laptop")


def _shell_at(site_name: str) -> Any:
    """An application of that site that runs the shell command it is given, and again after a timeout."""
    from balsam.api import ApplicationDefinition

    class Shell(ApplicationDefinition):
        """Runs a shell command."""

        site = site_name
        command_template = "bash -c {{command}}"  # Balsam quotes the parameter

        def handle_timeout(self) -> None:
            self.job.state = "RESTART_READY"

    Shell.sync()
    return Shell


@dataclass(frozen=True)
class LongJob:
    """A job, by its number, that outlasts the walltime of the first launcher at a site of its own."""

    site: sites.Site
    number: int


@pytest.fixture(scope="module")
def long_job(balsam_service: RunningService) -> Iterator[LongJob]:
    """It runs beside other tests of this file, from the first that asks for it: a walltime is a minute at the least.

    Those of the stock commands come before: where there is one site, they need not be told which.
    """
    service.start(balsam_service.home)
    sites.start_agent(balsam_service.site)
    service.connect(balsam_service.home)
    site = sites.create_site(balsam_service.home, "minute", nodes=1)
    try:
        sites.start_agent(site)
        sites.submit_batch_job(site, nodes=1, wall_time_min=1)
        command = "if [ -e ran ]; then echo again; else touch ran; sleep 323.5; fi"
        yield LongJob(site, _shell_at("minute").submit(workdir="walltime/1", command=command).id)
    finally:
        service.start(balsam_service.home)
        sites.stop_launchers(site)
        sites.stop_agent(site)
        shutil.rmtree(site.path)


def _wait_for(job: Any, *states: str, patience_s: float = 40.0, interval_s: float = 0.1) -> None:
    def there() -> bool:
        job.refresh_from_db()
        return job.state in states

    assert wait_until(there, patience_s, interval_s), f"job is {job.state}, expected {states}"


def _alive(seconds: str) -> list[psutil.Process]:
    """Processes `sleep SECONDS`; each test sleeps for an odd time of its own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline() == ["sleep", seconds] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_sessions_that_begin_at_once_register_the_stages_of_a_new_site(connected: RunningService) -> None:
    """Without a lock the server refuses one of them nearly always: an application of that name exists already."""
    site = sites.create_site(connected.home, "new", nodes=1)
    program = f"""
import sys
from pathlib import Path
from ensemble import service, sites
home = Path({str(connected.home)!r})
service.connect(home)
import apps.definitions
print("ready", flush=True)
sys.stdin.readline()
print(sorted(sites.register_stages(sites.open_site(home, "new")).items()), flush=True)
"""
    both = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for process in both:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert said[0] == said[1] != ""
    finally:
        for process in both:
            process.kill()
        client_of(site).Site.objects.get(id=site.id).delete()
        shutil.rmtree(site.path)


def test_the_same_site_again_is_the_same(connected: RunningService) -> None:
    home, site = connected.home, connected.site
    assert sites.create_site(home, "laptop", nodes=4) == site
    assert sites.list_sites(home) == [site]
    with pytest.raises(StateError, match="exists with 4 nodes instead of 3"):
        sites.create_site(home, "laptop", nodes=3)
    with pytest.raises(StateError, match="with other settings"):
        sites.create_site(home, "laptop", nodes=4, path=home / "elsewhere")
    with pytest.raises(StateError, match="exists already and is not a site"):
        sites.create_site(home, "other", path=home / "logs")


def test_a_site_may_lie_elsewhere_and_survives_a_killed_create(connected: RunningService, tmp_path: Path) -> None:
    from balsam.api import Site

    # What a `create` that was killed after it registered the site leaves.
    (tmp_path / ".far.partial").mkdir()
    registered = Site.objects.create(name="old", path=tmp_path / "far")
    site = sites.create_site(connected.home, "far", nodes=1, path=tmp_path / "far")
    try:
        assert site.id == registered.id
        assert site.path == tmp_path / "far"
        assert sites.open_site(connected.home, "far") == site
        assert sites.create_site(connected.home, "far", nodes=1, path=tmp_path / "far") == site
        assert [path.name for path in tmp_path.iterdir()] == ["far"]
        assert sites.start_agent(site)
        assert not sites.start_agent(site)
        assert sites.stop_agent(site)
        assert not sites.stop_agent(site)
    finally:
        (connected.home / "sites" / "far").unlink()


def test_batch_jobs_that_cannot_be_are_refused(connected: RunningService) -> None:
    for nodes, minutes in ((5, 10), (0, 10), (-1, 10), (1, 0), (1, -3)):
        with pytest.raises(ParameterError):
            sites.submit_batch_job(connected.site, nodes, minutes)


def test_the_stock_commands_show_a_campaign(connected: RunningService, shell: Any) -> None:
    from balsam.api import Job

    environment = {**os.environ, **service.environment(connected.home)}

    def balsam(words: str) -> str:
        done = subprocess.run(["balsam", *words.split()], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert re.search(r"laptop .* Yes", balsam("site ls"))
    assert re.search(r"Shell +laptop", balsam("app ls"))
    balsam("job create --site laptop -a Shell -w stock/1 -p command=hostname -tag campaign=stock -y")
    balsam("queue submit -n 2 -t 10 -q local -A local -j mpi -tag campaign=stock")
    assert re.search(r"laptop .*\{'campaign': 'stock'\} +local +local +2 +10 +mpi", balsam("queue ls"))
    (job,) = Job.objects.filter(tags={"campaign": "stock"})
    _wait_for(job, "JOB_FINISHED")
    assert "JOB_FINISHED" in balsam("job ls --tag campaign=stock")
    assert "stock/1" not in balsam("job ls --tag campaign=other")
    output = connected.site.path / "data" / "stock" / "1" / "job.out"
    assert output.read_text().strip() == os.uname().nodename


@pytest.fixture(scope="module")
def ended_jobs(balsam_service: RunningService, long_job: LongJob) -> dict[str, Any]:
    """By name: a pair of jobs, one of MPI and one that fails, which one launcher of four nodes has run."""
    site, tags = balsam_service.site, {"campaign": "beside"}
    submit = functools.partial(_shell_at(site.name).submit, tags=tags)
    sites.submit_batch_job(site, nodes=4, wall_time_min=10, filter_tags=tags)
    jobs = {
        name: submit(workdir=f"beside/{name}", command="date +%s.%N; sleep 1; date +%s.%N") for name in ("one", "two")
    }
    echo = "echo rank $PMI_RANK of $PMI_SIZE"
    jobs["mpi"] = submit(workdir="beside/mpi", command=echo, num_nodes=2, ranks_per_node=2)
    jobs["fails"] = submit(workdir="beside/fails", command="echo what went wrong; exit 3")
    for job in jobs.values():
        _wait_for(job, "JOB_FINISHED", "FAILED")
    sites.stop_launchers(site)
    return jobs


def test_a_launcher_runs_jobs_beside_each_other_and_mpi_jobs(
    connected: RunningService, ended_jobs: dict[str, Any]
) -> None:
    data = connected.site.path / "data/beside"
    assert [ended_jobs[name].state for name in ("one", "two", "mpi")] == ["JOB_FINISHED"] * 3
    (start_0, end_0), (start_1, end_1) = (
        [float(line) for line in (data / name / "job.out").read_text().split()] for name in ("one", "two")
    )
    assert max(start_0, start_1) < min(end_0, end_1)
    assert sorted((data / "mpi/job.out").read_text().splitlines()) == [f"rank {i} of 4" for i in range(4)]


def test_a_failed_job_is_failed_and_tells_its_last_lines(connected: RunningService, ended_jobs: dict[str, Any]) -> None:
    from balsam.api import EventLog

    assert ended_jobs["fails"].state == "FAILED"
    event = next(iter(EventLog.objects.filter(job_id=ended_jobs["fails"].id, to_state="RUN_ERROR")))
    assert event.data["returncode"] == 3
    assert "what went wrong" in event.data["error"]


def test_a_killed_launcher_leaves_no_process_and_its_jobs_run_again(connected: RunningService, shell: Any) -> None:
    tags = {"campaign": "killed"}
    sites.submit_batch_job(connected.site, nodes=1, wall_time_min=10, filter_tags=tags)
    command = "if [ -e ran ]; then echo again; else touch ran; sleep 321.5 & sleep 321.5; fi"
    job = shell.submit(workdir="killed/1", command=command, tags=tags)
    assert wait_until(lambda: len(_alive("321.5")) == 2, 30.0, 0.1)
    for pilot in processes.launchers(connected.site.path):
        pilot.kill()
    assert wait_until(lambda: _alive("321.5") == [], 20.0, 0.1)
    sites.submit_batch_job(connected.site, nodes=1, wall_time_min=10, filter_tags=tags)
    _wait_for(job, "JOB_FINISHED")
    assert (connected.site.path / "data/killed/1/job.out").read_text() == "again\n"


def test_stop_launchers_leaves_no_process_and_jobs_can_go_on(connected: RunningService, shell: Any) -> None:
    tags = {"campaign": "stopped"}
    site = connected.site
    sites.submit_batch_job(site, nodes=1, wall_time_min=10, filter_tags=tags)
    command = "if [ -e ran ]; then echo again; else touch ran; trap : TERM; sleep 322.5 & sleep 322.5; sleep 322.5; fi"
    job = shell.submit(workdir="stopped/1", command=command, tags=tags)
    assert wait_until(lambda: len(_alive("322.5")) == 2, 30.0, 0.1)
    assert sites.stop_launchers(site)
    assert processes.launcher_processes(site.path) == []
    assert _alive("322.5") == []
    assert not sites.stop_launchers(site)
    _wait_for(job, "RESTART_READY")
    sites.submit_batch_job(site, nodes=1, wall_time_min=10, filter_tags=tags)
    _wait_for(job, "JOB_FINISHED")


def test_a_batch_job_that_waits_is_withdrawn(connected: RunningService) -> None:
    sites.stop_agent(connected.site)
    number = sites.submit_batch_job(connected.site, nodes=1, wall_time_min=10)
    sites.stop_launchers(connected.site)
    sites.start_agent(connected.site)
    time.sleep(2.0)
    assert processes.launcher_processes(connected.site.path) == []
    from balsam.api import BatchJob

    assert BatchJob.objects.get(id=number).state == "finished"


def test_a_killed_agent_is_replaced_and_jobs_go_on(connected: RunningService, shell: Any) -> None:
    site, tags = connected.site, {"campaign": "agent"}
    sites.submit_batch_job(site, nodes=1, wall_time_min=10, filter_tags=tags)
    assert wait_until(lambda: bool(processes.launchers(site.path)), 20.0, 0.1)
    agent = processes.agent_process(site.path)
    assert agent is not None
    agent.kill()
    assert wait_until(lambda: not sites.agent_running(site), 5.0)
    assert sites.start_agent(site)
    job = shell.submit(workdir="agent/1", command="true", tags=tags)
    _wait_for(job, "JOB_FINISHED")
    marked = [p for p in processes.agent_processes(site.path) if p.ppid() == 1]
    assert [p.pid for p in marked] in ([], [processes.agent_process(site.path).pid])  # type: ignore[union-attr]


def test_the_stock_agent_command_is_ours_too(connected: RunningService) -> None:
    site = connected.site
    sites.stop_agent(site)
    environment = {**os.environ, **service.environment(connected.home)}
    subprocess.run(["balsam", "site", "start"], env=environment, cwd=site.path, check=True, stdout=subprocess.DEVNULL)
    assert wait_until(lambda: sites.agent_running(site), 10.0)
    assert not sites.start_agent(site)
    assert sites.stop_agent(site)
    assert processes.agent_process(site.path) is None


def test_a_restarted_server_finds_its_agents_again(connected: RunningService, shell: Any) -> None:
    """Agent and launcher sit out a short absence of the server; the job that they have meanwhile is finished."""
    from ensemble.service.state import Home

    tags = {"campaign": "outage"}
    sites.submit_batch_job(connected.site, nodes=1, wall_time_min=10, filter_tags=tags)
    job = shell.submit(workdir="outage/1", command="sleep 2", tags=tags)
    _wait_for(job, "RUNNING")
    identity = Home(connected.home).load_state().server
    assert identity is not None
    os.kill(identity.pid, signal.SIGKILL)
    assert wait_until(lambda: not identity.alive, 5.0)
    service.start(connected.home)
    service.connect(connected.home)
    from balsam.api import Job

    _wait_for(Job.objects.get(id=job.id), "JOB_FINISHED")


def test_stopping_the_service_ends_everything(tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        service.start(home)
        site = sites.create_site(home, "short", nodes=1)
        sites.start_agent(site)
        sites.submit_batch_job(site, nodes=1, wall_time_min=10)
        assert wait_until(lambda: bool(processes.launchers(site.path)), 20.0, 0.1)
    finally:
        begin = time.monotonic()
        assert service.stop(home)
    assert time.monotonic() - begin < 20.0
    assert processes.agent_processes(site.path) == processes.launcher_processes(site.path) == []
    assert not (site.path / processes.PID_FILE).exists()
    assert not service.stop(home)


@pytest.mark.slow
def test_a_job_alive_at_the_end_of_the_walltime_can_be_restarted(connected: RunningService, long_job: LongJob) -> None:
    from balsam.api import EventLog, Job

    job = Job.objects.get(id=long_job.number)
    _wait_for(job, "RESTART_READY", patience_s=100.0, interval_s=0.5)
    assert _alive("323.5") == []
    began, ended = (
        next(iter(EventLog.objects.filter(job_id=job.id, to_state=state))).timestamp
        for state in ("RUNNING", "RUN_TIMEOUT")
    )
    assert (ended - began).total_seconds() > 30.0
    sites.submit_batch_job(long_job.site, nodes=1, wall_time_min=10)
    _wait_for(job, "JOB_FINISHED")
    assert (long_job.site.path / "data/walltime/1/job.out").read_text() == "again\n"
