"""The processes of a site: its agent, its launchers, and their jobs; found by what their environment says.

`LocalScheduler` and `start_agent` mark what they start with a variable, and children inherit it, so that a job is found
even when the launcher between is gone.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection
from pathlib import Path

import psutil

from ensemble.service.processes import end, family, with_variable
from ensemble.settings import AGENT_VARIABLE, LAUNCHER_VARIABLE

# Balsam gives it to the processes of a job.
JOB_VARIABLE = "BALSAM_JOB_ID"
AGENT_MODULE = "balsam.site.service.main"
PID_FILE = "balsam-service.pid"
Steps = list[tuple[signal.Signals, float]]

# An agent first finishes what its workers have in hand; a launcher times out its jobs and sends their last states.
GENTLY: Steps = [(signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)]
AT_ONCE: Steps = [(signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)]


def agent_process(site_path: Path) -> psutil.Process | None:
    """The living agent that the pid file names; a pid that belongs to another program by now is not it."""
    try:
        pid = int((site_path / PID_FILE).read_text().split("\n")[1])
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE and AGENT_MODULE in process.cmdline()
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return process if alive else None


def agent_processes(site_path: Path) -> list[psutil.Process]:
    """The agent and its helpers, those of a killed agent included."""
    agent = agent_process(site_path)
    found = family(agent) if agent else []
    marked = [process for process, value in with_variable(AGENT_VARIABLE) if value == str(site_path)]
    # Batch scripts inherit the agent's mark but outlive the agent: they have their own.
    own = [process for process in marked if not _has(process, LAUNCHER_VARIABLE)]
    return list({process.pid: process for process in [*found, *own] if not _has(process, LAUNCHER_VARIABLE)}.values())


def launcher_processes(site_path: Path, script: str | None = None) -> list[psutil.Process]:
    """Batch scripts of a site (or of the one batch job `script`), their launchers, and the launchers' jobs."""
    folder = site_path / "qsubmit"
    return [
        process
        for process, value in with_variable(LAUNCHER_VARIABLE)
        if (value == script if script else Path(value).parent == folder)
    ]


def end_agent(site_path: Path) -> bool:
    """End the agent and what is left of one; True where there was any."""
    found = agent_processes(site_path)
    agent = agent_process(site_path)
    if agent is not None:
        # Its helpers end when the agent tells them, in the order that loses no update.
        end([agent], GENTLY)
    end([process for process in found if process.is_running()], AT_ONCE)
    (site_path / PID_FILE).unlink(missing_ok=True)
    return bool(found)


def end_launchers(site_path: Path) -> bool:
    """End all batch scripts, launchers and jobs of a site; True where there was any."""
    found = launcher_processes(site_path)
    pilots = launchers(site_path)
    end(pilots, GENTLY)
    # The batch scripts now clean up by themselves; whoever is still there after that is ended.
    psutil.wait_procs(found, timeout=4.0 if pilots else 0.0)
    end(launcher_processes(site_path), AT_ONCE)
    return bool(found)


def end_jobs(site_path: Path, ids: Collection[int]) -> bool:
    """End the processes of these jobs of a site; True where there were any."""
    found = []
    for process in launcher_processes(site_path) if ids else []:
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(JOB_VARIABLE) in {str(number) for number in ids}:
                found.append(process)
    end(found, AT_ONCE)
    return bool(found)


def end_all(site_path: Path) -> bool:
    """End everything of a site, launchers first: their last updates need no agent, and the agent starts no new ones."""
    pilots, agent = end_launchers(site_path), end_agent(site_path)
    # A batch job that the agent started meanwhile.
    return end_launchers(site_path) or pilots or agent


def launchers(site_path: Path) -> list[psutil.Process]:
    """The launchers proper of a site: the processes that hold leases on jobs."""
    return [process for process in launcher_processes(site_path) if _is_launcher(process)]


def batch_scripts(site_path: Path) -> list[psutil.Process]:
    """The batch scripts of a site: there from before their launcher starts until it is cleared up after."""
    return [process for process in launcher_processes(site_path) if _is_script(process)]


def script_of(process: psutil.Process) -> str:
    """The batch script that a process belongs to; empty where it has ended."""
    with contextlib.suppress(psutil.Error, OSError):
        return str(process.environ().get(LAUNCHER_VARIABLE, ""))
    return ""


def _is_launcher(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(word.endswith(("mpi_mode.py", "serial_mode.py")) for word in process.cmdline())
    return False


def _is_script(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[1:] == [script_of(process)]
    return False


def _has(process: psutil.Process, variable: str) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return variable in process.environ()
    return False
