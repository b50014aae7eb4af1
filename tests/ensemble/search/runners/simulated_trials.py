"""Trials that take a time and a fate, for tests of runners that start real processes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from apps.core.errors import FailureKind
from apps.simulation.stage import SimulationParameters
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.runners.contract import Assignment, Report, Runner, TrialParameters
from ensemble.search.runners.deephyper import DeepHyperRunner, open_evaluator
from tests.ensemble.samples import campaign_data

# Fate of a trial -> how it is to be reported.
ENDS: dict[str, FailureKind | None] = {
    "ok": None,
    "bad_configuration": FailureKind.BAD_CONFIGURATION,
    "refused": FailureKind.BAD_CONFIGURATION,
    "diverged": FailureKind.DIVERGED,
    "killed": FailureKind.KILLED,
    "hang": FailureKind.HUNG,
}


def parameters(request: TrialRequest) -> SimulationParameters:
    """The stage's parameters: seconds, fate and value stand in the configuration."""
    given = request.configuration
    return SimulationParameters(
        seconds=-1.0 if given["fate"] == "refused" else given["seconds"],
        fate=given["fate"],
        objectives=(given["value"], float(request.budget or 0)),
        output=request.output,
    )


def simulated_search() -> Search:
    return Search(problem=object(), parameters=parameters, objective=lambda result: 0.0, stage="simulation")


def assignment(trial: int, fate: str = "ok", seconds: float = 0.1, **settings: Any) -> Assignment:
    configuration = {"seconds": seconds, "fate": fate, "value": trial / 8}
    return Assignment(trial, 0, 1, configuration, **settings)


def runner_in(folder: Path, evaluator: Any) -> DeepHyperRunner:
    trials = TrialParameters(simulated_search(), campaign_data(), folder / "trials", seed=0)
    return DeepHyperRunner(evaluator, trials, "simulation", "quick", folder / "work")


def all_reports(runner: Runner, number: int, timeout_s: float = 60.0) -> dict[int, Report]:
    """Trial -> report of the next `number` that end."""
    reports: list[Report] = []
    last = time.monotonic() + timeout_s
    while len(reports) < number and time.monotonic() < last:
        reports += runner.wait(1.0)
    assert len(reports) == number
    return {report.assignment.trial: report for report in reports}


def run_every_fate(runner: Runner) -> dict[str, str | None]:
    """Fate -> failure kind that was reported, of one trial of each fate."""
    runner.submit([assignment(n, fate, time_limit_s=0.5 if fate == "hang" else 30.0) for n, fate in enumerate(ENDS)])
    reports = all_reports(runner, len(ENDS))
    assert [report.outcome.key for _, report in sorted(reports.items())] == [
        f"search/quick/trial-{n:04d}/rung-0/attempt-1" for n in range(len(ENDS))
    ]
    return {fate: reports[n].outcome.failure for n, fate in enumerate(ENDS)}


def stages_below(pid: int | None = None) -> list[psutil.Process]:
    """Stages that run below that process, or below this one."""

    def is_stage(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return "ensemble.stage_process" in process.cmdline()
        return False

    return [process for process in psutil.Process(pid).children(recursive=True) if is_stage(process)]


def main(folder: Path) -> None:
    """What a rank of MPI does: rank 0 prints what it found, and ends with exit code 3; the others work for it."""
    with open_evaluator("mpicomm", 1) as evaluator:
        if evaluator is None:
            return
        runner = runner_in(folder, evaluator)
        try:
            found: Mapping[str, Any] = {"nodes": runner.nodes(), "kinds": run_every_fate(runner)}
            runner.submit([assignment(9, "hang")])
            time.sleep(1.0)
        finally:
            runner.close()
        print(json.dumps(found))
        sys.exit(3)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
