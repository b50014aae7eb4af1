"""Several of our drivers on one search: `python -m benchmarks.search_shared DRIVERS TASK`, until it is killed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.objectives import Task
from benchmarks.search_own import ALL_TRIALS, search_run, search_trials


def start_drivers(drivers: int, task: Task) -> list[subprocess.Popen[bytes]]:
    """So many processes, each with its part of the task's workers; they share journal, campaign and stamps."""
    search_run(task)  # made once
    command = [sys.executable, "-m", "benchmarks.search_shared", "1", str(Path(task.folder) / "task.json")]
    share, rest = divmod(task.workers, drivers)
    return [subprocess.Popen([*command, str(share + (number < rest))]) for number in range(drivers)]


if __name__ == "__main__":
    count, given = int(sys.argv[1]), Task.load(sys.argv[2])
    if count == 1:
        search_trials(replace(given, workers=int(sys.argv[3])), ALL_TRIALS, shared=True)
    else:
        # One that ends, ends the benchmark: none shall.
        codes = [driver.wait() for driver in start_drivers(count, given)]
        raise SystemExit(max(codes))
