"""CPU seconds of what makes a search run, by component."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

from ensemble.service.server import MODULE as SERVER_MODULE
from ensemble.service.state import Home
from ensemble.sites.processes import agent_processes, launcher_processes

COMPONENTS = ("driver", "optimiser", "server", "database", "agent", "launcher")


class CpuMeter:
    """Adds up the CPU seconds of a driver (this process), its service and one site.

    A process that ends is remembered with what it had used when it was last looked at.
    """

    def __init__(self, home: Path, site_path: Path) -> None:
        self._home, self._site_path = Home(home), site_path
        self._used: dict[tuple[str, int, float], float] = {}

    def read(self) -> dict[str, float]:
        """Component -> CPU seconds of its processes since they began, of those that were ever seen."""
        seen: set[int] = set()
        for component, process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.pid not in seen:
                    seen.add(process.pid)
                    times = process.cpu_times()
                    self._used[component, process.pid, process.create_time()] = times.user + times.system
        totals = dict.fromkeys(COMPONENTS, 0.0)
        for (component, _, _), seconds in self._used.items():
            totals[component] += seconds
        return totals

    def processes(self) -> Iterator[tuple[str, psutil.Process]]:
        """(component, process) of all that run; what a process is counted as is what it is first named here."""
        ourselves = psutil.Process()
        yield "driver", ourselves
        for process in agent_processes(self._site_path):
            yield "agent", process
        for process in launcher_processes(self._site_path):
            yield "launcher", process
        for process in psutil.process_iter(["cmdline", "name"]):
            words = process.info["cmdline"] or []
            if SERVER_MODULE in words and str(self._home.path) in words:
                yield "server", process
            elif process.info["name"] == "postgres":
                with contextlib.suppress(psutil.Error, OSError):
                    if Path(process.cwd()) == self._home.database.resolve():
                        yield "database", process
        # Of our children there are the optimiser's process and those that were named above.
        for process in ourselves.children(recursive=True):
            yield "optimiser", process
