"""How good a search is: against the wall clock, against the number of evaluations, and with promotion.

Cases:

    time       every system on the same tasks, five seeds: the best objective so long after the first evaluation
    samples    one evaluation at a time, ours against DeepHyper's CBO as it comes: the best objective at equal number
    promotion  FFN training on a small volume: the same trials with promotion and to their full budgets

Ackley's function in five dimensions is maximised; each seed places its optimum elsewhere, and sleeps are log-normal.
Objectives are compared by their regret, what they lack to the optimum: `times less regret` is the peer's median over
ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

from benchmarks.harness import Figure, benchmark_with_options, median
from benchmarks.objectives import Task
from benchmarks.search_peers import NOTES, search_with
from benchmarks.search_trace import ROOT

OURS = "ensemble"
PEERS = tuple(name for name in NOTES if name not in (OURS, "optuna tpe sqlite", "libensemble random"))
"""The slower of Optuna's storages, and another random search, are left to search_utilisation."""


@dataclass(frozen=True)
class Race:
    """Of the case `time`: workers, mean sleep, for how long, and how many seeds."""

    workers: int
    mean_s: float
    seconds: float
    seeds: int


RACE = {False: Race(32, 1.0, 15.0, 5), True: Race(4, 0.1, 2.0, 1)}
QUICK_CASES, QUICK_SYSTEMS = ("samples",), [OURS, "deephyper cbo"]
SAMPLES, SAMPLE_SEEDS = {False: 100, True: 15}, {False: 8, True: 1}


def run(options: argparse.Namespace) -> list[Figure]:
    cases = options.case or (QUICK_CASES if options.quick else CASES)
    systems = options.system or (QUICK_SYSTEMS if options.quick else [OURS, *PEERS])
    return [figure for case in cases for figure in CASES[case](options.quick, systems)]


def time_case(quick: bool, systems: Sequence[str]) -> list[Figure]:
    """The best objective at half time and at the end, every system alone on the machine."""
    race = RACE[quick]
    times = {"half time": race.seconds / 2, "the end": race.seconds}
    regrets: dict[str, dict[str, list[float]]] = {name: {when: [] for when in times} for name in systems}
    evaluations: dict[str, list[int]] = {name: [] for name in systems}
    for seed in range(1, race.seeds + 1):
        for name in systems:
            with tempfile.TemporaryDirectory(prefix="ensemble-search-") as folder:
                trace = search_with(name, Task(race.workers, race.mean_s, seed, folder), race.seconds, 1)
            evaluations[name].append(len(trace.ended()))
            for when, seconds in times.items():
                regrets[name][when].append(-trace.best_after(seconds))
    figures = []
    for name in systems:
        for when, seconds in times.items():
            each = ", ".join(f"{-regret:.2f}" for regret in regrets[name][when])
            note = f"after {seconds:g} s, {median(evaluations[name]):.0f} evaluations in all; seeds: {each}"
            best = -median(regrets[name][when])
            figures.append(Figure(f"{name}: best objective, {when}", best, "", None, "higher", note))
    if OURS in systems:
        for name in [name for name in systems if name != OURS]:
            for when in times:
                figures.append(_ahead(name, when, regrets[name][when], regrets[OURS][when], None if quick else 1.0))
    return figures


def samples_case(quick: bool, systems: Sequence[str]) -> list[Figure]:
    """The best objective by the number of evaluations; two processes at a time, as time plays no part."""
    count, seeds = SAMPLES[quick], range(1, SAMPLE_SEEDS[quick] + 1)
    names = [name for name in SEQUENTIAL if name in systems]
    with ThreadPoolExecutor(2) as pool:
        running = {name: [pool.submit(_sequence, name, seed, count) for seed in seeds] for name in names}
        curves = {name: [list(accumulate(one.result(), max)) for one in running[name]] for name in names}
    marks = {f"{number} evaluations": number for number in (count // 2, count)}
    regrets = {
        name: {when: [-curve[number - 1] for curve in curves[name]] for when, number in marks.items()} for name in names
    }
    figures = []
    for name in names:
        for when in marks:
            each = ", ".join(f"{-regret:.2f}" for regret in regrets[name][when])
            note = f"one at a time; seeds: {each}"
            figures.append(
                Figure(f"{name}: best objective after {when}", -median(regrets[name][when]), "", None, "higher", note)
            )
    for name in [name for name in names if name != OURS]:
        for when, number in marks.items():
            goal = 1.0 if number == count and not quick else None  # half of it only informs
            figures.append(_ahead(name, when, regrets[name][when], regrets[OURS][when], goal))
    return figures


def _ahead(peer: str, when: str, theirs: Sequence[float], ours: Sequence[float], goal: float | None) -> Figure:
    won = sum(mine < other for mine, other in zip(ours, theirs, strict=True))
    return Figure(
        f"times less regret than {peer}, {when}",
        median(theirs) / max(median(ours), 1e-9),
        "x",
        goal,
        "higher",
        f"ratio of the medians over the seeds; ours is better at {won} of {len(ours)}",
    )


def _sequence(name: str, seed: int, count: int) -> list[float]:
    """The values of a sequential search, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.search_samples", name, str(seed), str(count)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    values: list[float] = json.loads(done.stdout.splitlines()[-1])
    return values


def promotion(quick: bool, systems: Sequence[str]) -> list[Figure]:
    from benchmarks.search_promotion import promotion_case

    return promotion_case(quick)


SEQUENTIAL = (OURS, "deephyper cbo")
CASES: dict[str, Callable[[bool, Sequence[str]], list[Figure]]] = {
    "time": time_case,
    "samples": samples_case,
    "promotion": promotion,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--case", action="append", choices=CASES, help="run this case only (repeat for more)")
    parser.add_argument("--system", action="append", choices=[OURS, *PEERS], help="this system only (repeat for more)")


if __name__ == "__main__":
    raise SystemExit(benchmark_with_options("benchmarks.search_quality", __doc__, run, add_options))
