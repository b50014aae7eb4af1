"""The agent of a site: Balsam's daemon that moves jobs through their states and submits batch jobs."""

from __future__ import annotations

import subprocess
import sys

from apps.core.errors import StateError
from ensemble.service.connection import environment, require_running
from ensemble.service.postgres import last_log_line, open_log
from ensemble.service.processes import wait_until
from ensemble.service.state import file_lock
from ensemble.settings import AGENT_VARIABLE, SITE_VARIABLE, inherited_environment
from ensemble.sites import processes
from ensemble.sites.sessions import release_sessions
from ensemble.sites.site import Site

START_PATIENCE_S = 30.0


def agent_running(site: Site) -> bool:
    """True where the site's agent lives, whoever started it (`balsam site start` as well)."""
    return processes.agent_process(site.path) is not None


def start_agent(site: Site) -> bool:
    """Start the site's agent and wait until it is up; False where it was running.

    What a killed agent left is cleared up first: helper processes, the pid file, leases on jobs.  Raises StateError
    where the service does not run or the agent ends at once.
    """
    require_running(site.home)
    with file_lock(site.path / ".agent.lock", 60.0, f"the agent of site {site.name!r}"):
        if agent_running(site):
            return False
        processes.end_agent(site.path)
        release_sessions(site)
        variables = {**inherited_environment(), **environment(site.home)}
        variables |= {SITE_VARIABLE: str(site.path), AGENT_VARIABLE: str(site.path)}
        log_file = site.path / "log" / "agent.log"
        with open_log(log_file) as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", processes.AGENT_MODULE],
                cwd=site.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                start_new_session=True,
            )
        pid_file = site.path / processes.PID_FILE
        wait_until(lambda: process.poll() is not None or pid_file.exists(), START_PATIENCE_S)
        if process.poll() is not None or not wait_until(lambda: agent_running(site), 5.0):
            processes.end_agent(site.path)
            raise StateError(
                f"the agent of site {site.name!r} did not start: {last_log_line(log_file)}; see {site.path / 'log'}"
            )
        process.returncode = 0  # it is not ours to wait for; without this Python warns of a process that still runs
    return True


def stop_agent(site: Site) -> bool:
    """Stop the site's agent and its helpers; False where none was running.  Launchers go on."""
    with file_lock(site.path / ".agent.lock", 60.0, f"the agent of site {site.name!r}"):
        return processes.end_agent(site.path)
