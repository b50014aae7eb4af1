"""How busy a search keeps its workers, beside its peers and at the size of machines it is made for.

Utilisation is busy worker-seconds / (workers x window), from the workers' own clocks; the window is opened when every
worker has begun its first evaluation.  Every system maximises Ackley's function in five dimensions, and sleeps a
log-normal time in each evaluation, from the same seed.  Cases:

    sleep     32 workers, mean 1 s: the driver with the in-process runner, and all peers, one after the other
    failures  512 workers in process, mean 10 s, 5 % of the evaluations fail, 1 % hang until the search ends them
    shared    four drivers that share one search, 128 workers each in process, mean 10 s
    balsam    64 virtual nodes, real Balsam, mean 10 s
    many      4,096 virtual nodes, real Balsam, mean 60 s
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness import Figure, benchmark_with_options
from benchmarks.objectives import SIGMA, Task
from benchmarks.search_peers import NOTES, search_with
from benchmarks.search_trace import Trace, watch

SEED = 1
LIMIT_IN_MEANS = 6.0
"""Time limit of an evaluation, in means of the sleep; one in 7,000 of the log-normal sleeps is longer."""
GOAL_IN_PROCESS, GOAL_64, GOAL_4096 = 0.98, 0.95, 0.98
CORES = 2.0
QUICK_CASES, QUICK_SYSTEMS = ("sleep",), ["ensemble", "deephyper random"]


@dataclass(frozen=True)
class Size:
    """Of a case: workers, mean sleep, and for how long is looked."""

    workers: int
    mean_s: float
    seconds: float


SLEEP = {False: Size(32, 1.0, 30.0), True: Size(8, 0.2, 1.0)}
FAILURES = {False: Size(512, 10.0, 90.0), True: Size(16, 0.2, 2.0)}
DRIVERS = 4
SHARED = {False: Size(512, 10.0, 60.0), True: Size(8, 0.2, 2.0)}
BALSAM = {False: Size(64, 10.0, 60.0), True: Size(4, 0.5, 3.0)}
MANY = {False: Size(4096, 60.0, 120.0), True: Size(8, 0.5, 3.0)}


def run(options: argparse.Namespace) -> list[Figure]:
    cases = options.case or (QUICK_CASES if options.quick else CASES)
    systems = options.system or (QUICK_SYSTEMS if options.quick else list(NOTES))
    return [figure for case in cases for figure in CASES[case](options.quick, systems)]


def sleep_case(quick: bool, systems: list[str]) -> list[Figure]:
    """Every system on the same task; the goal is our driver's."""
    size, figures = SLEEP[quick], []
    for name in systems:
        trace = observe(name, size)
        goal = GOAL_IN_PROCESS if name == "ensemble" and not quick else None
        figures.append(_utilisation(f"{name}, {size.workers} workers", trace, size, goal, NOTES[name]))
    return figures


def failures_case(quick: bool, systems: list[str]) -> list[Figure]:
    """Our driver where evaluations fail and hang; the peers have no time limit for an evaluation."""
    size = FAILURES[quick]
    limit_s = LIMIT_IN_MEANS * size.mean_s
    trace = observe("ensemble", size, failures=0.05, hangs=0.01, limit_s=limit_s)
    name = f"ensemble, {size.workers} workers, 5 % fail, 1 % hang"
    hung = f"a hung evaluation holds its worker for the limit of {limit_s:g} s, and no longer"
    return [
        _utilisation(name, trace, size, None if quick else GOAL_IN_PROCESS, hung, limit_s),
        Figure(f"{name}: held by hung evaluations", trace.hung_share(size.workers, limit_s), "", note="part of it"),
    ]


def shared_case(quick: bool, systems: list[str]) -> list[Figure]:
    """All workers of several drivers together."""
    size = SHARED[quick]
    with tempfile.TemporaryDirectory(prefix="ensemble-search-") as folder:
        task = Task(size.workers, size.mean_s, SEED, folder)
        command = [sys.executable, "-m", "benchmarks.search_shared", str(DRIVERS)]
        trace = watch(command, task, size.seconds, size.workers)
    name = f"ensemble, {DRIVERS} drivers with {size.workers} workers together"
    note = f"drivers, optimisers and workers used {trace.cpu_s:.0f} processor seconds"
    return [
        _utilisation(name, trace, size, None if quick else GOAL_IN_PROCESS, note),
        Figure(f"{name}: evaluations repeated", trace.repeated(), "", 0),
    ]


def balsam_case(quick: bool, systems: list[str]) -> list[Figure]:
    return _simulated(BALSAM[quick], None if quick else GOAL_64)


def many_case(quick: bool, systems: list[str]) -> list[Figure]:
    return _simulated(MANY[quick], None if quick else GOAL_4096)


def _simulated(size: Size, goal: float | None) -> list[Figure]:
    """Our driver, a real Balsam server, agent and launcher, and nodes that only sleep."""
    from benchmarks.search_own import ackley_of, ackley_search
    from ensemble.simulation.plan import Plan, Times
    from ensemble.simulation.run import simulate

    plan = Plan(size.workers, Times("lognormal", size.mean_s, SIGMA), size.seconds, seed=SEED)
    found = simulate(ackley_search(), plan, ackley_of(SEED))
    name = f"ensemble, {size.workers} virtual nodes, real Balsam"
    took = f"{found.ended} jobs in {found.window_s:.0f} s, noticed {found.notice_s:.2f} s after their end (median)"
    cores = ", ".join(f"{component} {share:.2f}" for component, share in found.cores.items())
    return [
        Figure(name, found.utilisation, "", goal, "higher", f"mean {size.mean_s:g} s; {took}"),
        Figure(f"{name}: all busy after", found.ready_s, "s", note="from the search's begin"),
        Figure(f"{name}: used by all of it", sum(found.cores.values()), "cores", goal and CORES, note=cores),
        Figure(f"{name}: best objective", found.best[-1][1], "", None, "higher"),
    ]


def observe(name: str, size: Size, failures: float = 0.0, hangs: float = 0.0, limit_s: float | None = None) -> Trace:
    with tempfile.TemporaryDirectory(prefix="ensemble-search-") as folder:
        task = Task(size.workers, size.mean_s, SEED, folder, failures, hangs, limit_s)
        return search_with(name, task, size.seconds, size.workers)


def _utilisation(
    name: str, trace: Trace, size: Size, goal: float | None, note: str, limit_s: float = float("inf")
) -> Figure:
    ended, again = len(trace.ended()), trace.repeated()
    counts = f"{ended} evaluations in {trace.seconds:g} s{f', {again} of them repeated' if again else ''}"
    return Figure(name, trace.utilisation(size.workers, limit_s), "", goal, "higher", f"{note}; {counts}")


CASES: dict[str, Callable[[bool, list[str]], list[Figure]]] = {
    "sleep": sleep_case,
    "failures": failures_case,
    "shared": shared_case,
    "balsam": balsam_case,
    "many": many_case,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", choices=CASES, help="run this case only (repeat for more)")
    parser.add_argument("--system", action="append", choices=NOTES, help="in the case `sleep`, this system only")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.search_utilisation", __doc__, run, add_options))
