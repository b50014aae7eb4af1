"""Last act of a batch script (`python -m ensemble.sites.after_launcher`): clean up after its launcher.

A launcher that ended by itself has left nothing; one that was killed leaves its jobs' processes and its lease on them.
"""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from ensemble.service.processes import end
from ensemble.settings import current_site, default_home, launcher_mark
from ensemble.sites import list_sites, processes
from ensemble.sites.sessions import release_sessions


def main() -> None:
    script, path = launcher_mark(), current_site()
    if script is None:
        return
    ourselves = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    left = [process for process in processes.launcher_processes(path, script) if process.pid not in ourselves]
    end(left, processes.AT_ONCE)
    for site in list_sites(default_home()):
        if site.path == Path(path).resolve():
            release_sessions(site)


if __name__ == "__main__":
    main()
