"""What the quickstart costs beside its stages: its wall time minus the stages' compute time over the workers.

The command runs as a user runs it, in a fresh home and folder; its wall time is taken from outside, start and clean-up
included.  The stages' compute time comes from the clocks of their own processes, imports included.  Idle workers (the
serial parts, the end of the search) count as overhead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apps.core.stage import RESULT_FILE
from benchmarks.harness import Figure, benchmark_main

WORKERS = 2
QUICK_SEARCH = Path(__file__).resolve().parents[1] / "tests" / "ensemble" / "tiny_search.py"


def run(quick: bool) -> list[Figure]:
    """One whole quickstart; with `quick` one of tiny networks, whose overhead says nothing about the goal."""
    with tempfile.TemporaryDirectory(prefix="ensemble-overhead-") as folder:
        home, out = Path(folder) / "home", Path(folder) / "out"
        command = [sys.executable, "-m", "ensemble.cli.main", "quickstart", "--home", str(home), "--out", str(out)]
        command += ["--workers", str(WORKERS)]
        if quick:
            command += ["--search", str(QUICK_SEARCH), "--trials", "2"]
        started = time.time()
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        ended = time.time()
        if done.returncode != 0:
            raise SystemExit(f"the quickstart failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
        print(done.stdout)
        return figures(list((home / "sites" / "quickstart" / "data").rglob(RESULT_FILE)), ended - started, quick)


def figures(results: list[Path], wall_s: float, quick: bool) -> list[Figure]:
    """The figures of one run, from its `result.json` files and its wall time in seconds."""
    costs = [(record["stage"], record["cost"]) for record in (json.loads(path.read_text()) for path in results)]
    seconds = {stage: 0.0 for stage, _ in costs}
    for stage, cost in costs:
        seconds[stage] += cost["end"] - cost["start"]
    compute_s = sum(seconds.values())
    overhead = 1 - compute_s / WORKERS / wall_s
    return [
        Figure("overhead of the wall time", 100 * overhead, "%", None if quick else 15.0),
        Figure("wall time of the command", wall_s, "s", 600.0),
        Figure("stages' compute time over the workers", compute_s / WORKERS, "s", note=f"{WORKERS} workers"),
        *(Figure(f"compute time of {stage}", value, "s") for stage, value in sorted(seconds.items())),
    ]


if __name__ == "__main__":
    raise SystemExit(benchmark_main("benchmarks.quickstart_overhead", __doc__, run))
