"""The benchmarks' harness: goals, statistics, the JSON file, exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks.harness import (
    Figure,
    benchmark_main,
    benchmark_with_options,
    load_report,
    machine,
    median,
    percentile,
    table,
    timed,
)

FAST = Figure("latency", 0.4, "s", 0.6)
SLOW = Figure("latency", 0.7, "s", 0.6)
RATE = Figure("rate", 8.5, "jobs/s", 8.0, "higher")
INFORMS = Figure("size", 12.345678, "MiB")


def test_a_figure_knows_whether_its_goal_is_met() -> None:
    assert FAST.met is True
    assert SLOW.met is False
    assert RATE.met is True
    assert Figure("rate", 7.9, "jobs/s", 8.0, "higher").met is False
    assert INFORMS.met is None
    assert Figure("edge", 0.6, "s", 0.6).met is True


def test_statistics() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert median(values) == 50.5
    assert percentile(values, 95) == 95.0
    assert percentile(values, 100) == 100.0
    assert percentile([3.0], 95) == 3.0
    assert len(timed(lambda: None, 3)) == 3


def test_the_table_shows_value_goal_and_verdict() -> None:
    text = table([FAST, SLOW, RATE, INFORMS])
    assert text.splitlines()[1] == "latency  0.4 s       <= 0.6 s     met"
    assert "MISSED" in text
    assert ">= 8 jobs/s" in text
    assert text.splitlines()[-1].split() == ["size", "12.35", "MiB"]


def test_the_machine_line_names_cores_and_python() -> None:
    assert " cores, " in machine() and "Python 3.11" in machine() and "AMX" in machine()


@pytest.mark.parametrize(("figures", "code"), [([FAST, RATE, INFORMS], 0), ([FAST, SLOW], 1)])
def test_the_report_holds_every_figure_and_the_exit_code_the_verdict(
    tmp_path: Path, figures: list[Figure], code: int
) -> None:
    target = tmp_path / "report.json"
    assert benchmark_main("benchmarks.x", "about", lambda quick: figures, ["--quick", "--json", str(target)]) == code
    report = load_report(target)
    assert report["command"] == "python -m benchmarks.x --quick"
    assert report["all_met"] is (code == 0)
    assert [figure["met"] for figure in report["figures"]] == [figure.met for figure in figures]
    assert json.loads(target.read_text())["figures"][0]["goal"] == 0.6


def test_quick_is_passed_on() -> None:
    asked: list[bool] = []

    def run(quick: bool) -> list[Figure]:
        asked.append(quick)
        return []

    assert benchmark_main("benchmarks.x", None, run, []) == 0
    assert benchmark_main("benchmarks.x", None, run, ["--quick"]) == 0
    assert asked == [False, True]


def test_options_of_a_benchmark_are_in_the_command_of_its_report(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    asked: list[str] = []

    def run(options: argparse.Namespace) -> list[Figure]:
        asked.append(options.box)
        return [INFORMS]

    arguments = ["--box", "0:64,0:8,0:8", f"--json={target}"]
    code = benchmark_with_options("benchmarks.x", None, run, lambda parser: parser.add_argument("--box"), arguments)
    assert (code, asked) == (0, ["0:64,0:8,0:8"])
    assert load_report(target)["command"] == "python -m benchmarks.x --box 0:64,0:8,0:8"
