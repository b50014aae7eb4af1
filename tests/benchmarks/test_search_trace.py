"""The workers' stamps, the utilisation that is worked out from them, and the objective of the search benchmarks."""

from __future__ import annotations

import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.objectives import BOUND, DIMENSIONS, Evaluations, Task, ackley, optimum_of
from benchmarks.search_trace import ROOT, Evaluation, Trace, read_stamps, watch

# Two workers, window [10, 20]: one is busy but for a second, the other from before the window until 12, then hangs.
TRACE = Trace(
    (
        Evaluation(8.0, 12.0, -3.0, False, (1.0,)),
        Evaluation(10.0, 14.0, -5.0, False, (2.0,)),
        Evaluation(12.0, None, None, True, (3.0,)),
        Evaluation(15.0, 18.0, None, False, (4.0,)),
        Evaluation(18.0, None, None, False, (1.0,)),
    ),
    opened=10.0,
    seconds=10.0,
)


def test_utilisation_counts_what_lies_in_the_window() -> None:
    assert TRACE.utilisation(2) == pytest.approx((2 + 4 + 8 + 3 + 2) / 20)


def test_a_hung_evaluation_holds_its_worker_until_the_time_limit_only() -> None:
    assert TRACE.hung_share(2, 5.0) == pytest.approx(5 / 20)
    assert TRACE.utilisation(2, 5.0) == pytest.approx((2 + 4 + 5 + 3 + 2) / 20)


def test_the_best_objective_is_that_of_what_had_ended() -> None:
    assert TRACE.best_after(1.9) == -math.inf
    assert TRACE.best_after(2.0) == -3.0
    assert [one.value for one in TRACE.ended()] == [-3.0, -5.0, None]
    assert TRACE.repeated() == 1


def test_ackley_is_zero_at_its_optimum_and_worse_elsewhere() -> None:
    optimum = optimum_of(3)
    assert ackley(optimum, optimum) == pytest.approx(0.0, abs=1e-12)
    assert ackley([1.0] * 5, [0.0] * 5) == pytest.approx(20 * math.exp(-0.2) - 20)
    assert all(abs(value) <= BOUND / 2 for value in optimum) and optimum != optimum_of(4)


def test_workers_stamp_what_they_evaluate_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    task = Task(workers=4, mean_s=0.01, seed=1, folder=str(tmp_path))
    assert Task.load(str(task.save())) == task
    evaluate = Evaluations(task)
    points = [[float(number)] * DIMENSIONS for number in range(8)]
    with ThreadPoolExecutor(task.workers) as pool:
        values = list(pool.map(evaluate, points))
    with task.stamps.open("a") as stream:
        stream.write('{"name": "torn", "sta')
    found = read_stamps(task.stamps)
    assert sorted(one.x[0] for one in found) == [float(number) for number in range(8)]
    assert sorted(one.value or 0.0 for one in found) == sorted(values)
    assert all(one.end is not None and one.end > one.start for one in found)


def test_the_fate_of_an_evaluation_depends_on_its_point(tmp_path: Path) -> None:
    evaluate = Evaluations(Task(1, 0.0, 1, str(tmp_path), failures=1.0), failure=KeyError)
    with pytest.raises(KeyError, match="meant to fail"):
        evaluate([0.0] * DIMENSIONS)
    (failed,) = read_stamps(tmp_path / "stamps.jsonl")
    assert (failed.value, failed.hangs) == (None, False)


SLEEPER = """
import sys, time
from benchmarks.objectives import Evaluations, Task
evaluate = Evaluations(Task.load(sys.argv[1]))
while True:
    evaluate([time.monotonic()] * 5)
"""


def test_a_system_is_watched_for_the_window_and_killed(tmp_path: Path) -> None:
    task = Task(workers=1, mean_s=0.02, seed=1, folder=str(tmp_path))
    trace = watch([sys.executable, "-c", SLEEPER], task, 0.5, ready=1)
    assert trace.utilisation(1) > 0.5
    count = len(read_stamps(task.stamps))
    time.sleep(0.1)
    assert len(read_stamps(task.stamps)) == count


def test_a_system_that_ends_by_itself_is_an_error_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no such optimiser"):
        watch([sys.executable, "-c", "raise SystemExit('no such optimiser')"], Task(1, 1.0, 1, str(tmp_path)), 1.0, 1)


def test_the_benchmarks_are_run_from_the_repository() -> None:
    assert (ROOT / "benchmarks" / "search_trace.py").is_file()
