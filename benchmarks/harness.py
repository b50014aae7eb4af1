"""What all benchmarks share: figures with goals, the machine they were taken on, the command line and the JSON file.

A benchmark module defines `run(quick) -> list[Figure]` and ends in
`raise SystemExit(benchmark_main("benchmarks.<name>", __doc__, run))`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.core.parameters import write_json

EXIT_CODE_OF_MISSED_GOAL = 1


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the number, in `unit`.
        unit: for example `s`, `jobs/s`, `%`.
        goal: the value to reach; None for a figure that only informs.
        better: whether `value` should be `lower` or `higher` than the goal.
        note: how it was measured, or what it was compared with.
    """

    name: str
    value: float
    unit: str
    goal: float | None = None
    better: Literal["lower", "higher"] = "lower"
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": float(f"{self.value:.4g}"),
            "unit": self.unit,
            "goal": self.goal,
            "better": self.better,
            "met": self.met,
            "note": self.note,
        }


def machine() -> str:
    """One line on this machine: processor, cores that we may use, memory, system, Python, and the load just now."""
    import psutil

    from apps.ffn.processor import computes_bfloat16

    # Machines of one name differ in it, and so do their speeds: of networks most, but not alone.
    unit = {True: "with AMX", False: "without AMX", None: "AMX unknown"}[computes_bfloat16()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()} {unit}, {cores} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f} before the run"
    )


def timed(function: Callable[[], object], repeats: int) -> list[float]:
    """Seconds that each of `repeats` calls took."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def benchmark_main(
    name: str,
    description: str | None,
    run: Callable[[bool], list[Figure]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Command line of one benchmark; returns 0 where every goal is met, 1 otherwise."""
    return benchmark_with_options(name, description, lambda options: run(options.quick), lambda parser: None, arguments)


def benchmark_with_options(
    name: str,
    description: str | None,
    run: Callable[[argparse.Namespace], list[Figure]],
    add_options: Callable[[argparse.ArgumentParser], object],
    arguments: Sequence[str] | None = None,
) -> int:
    """`benchmark_main` of one that takes options of its own; the report's command names them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="a small version that shows that it works, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, goals and the machine to FILE")
    options = parser.parse_args(arguments)
    machine_line, started = machine(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    begin = time.perf_counter()
    figures = run(options)
    missed = [figure for figure in figures if figure.met is False]
    print(table(figures))
    print(machine_line)
    if options.json:
        report = {
            "benchmark": name,
            "command": shlex.join(["python", "-m", name, *_without_json(arguments)]),
            "machine": machine_line,
            "started": started,
            "seconds": round(time.perf_counter() - begin, 1),
            "figures": [figure.to_dict() for figure in figures],
            "all_met": not missed,
        }
        write_json(options.json, report)
    for figure in missed:
        print(f"missed: {figure.name}", file=sys.stderr)
    return EXIT_CODE_OF_MISSED_GOAL if missed else 0


def _without_json(arguments: Sequence[str] | None) -> list[str]:
    """The arguments but for where the report went to."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept, skip = [], False
    for argument in given:
        if skip or argument.startswith("--json="):
            skip = False
        elif argument == "--json":
            skip = True
        else:
            kept.append(argument)
    return kept


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned text."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [("figure", "value", "goal", "")]
    for figure in figures:
        sign = "<=" if figure.better == "lower" else ">="
        goal = "" if figure.goal is None else f"{sign} {figure.goal:g} {figure.unit}"
        rows.append((figure.name, f"{figure.value:.4g} {figure.unit}", goal, words[figure.met]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def load_report(path: Path) -> dict[str, Any]:
    """A report that `benchmark_main` wrote."""
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
