"""The time limit of a stage: real processes that sleep, that hold the interpreter, and one of two ranks that does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest

from apps.core.errors import HungError
from apps.core.time_limit import parse_time_limit, remove_traces, time_limit, trace_file, was_ended
from tests.rank_runs import ROOT, Ended, run

Process = subprocess.CompletedProcess[str]
PROGRAM = Path(__file__).with_name("ranks_stage.py")
LIMIT_S = 1.0

ends_its_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def one(folder: Path, parameters: dict[str, Any], limit: str = str(LIMIT_S)) -> tuple[Process, float]:
    """Run the stage of ranks_stage.py as one process; returns how it ended and the seconds that took."""
    (folder / "parameters.json").write_text(json.dumps(parameters))
    begin = time.monotonic()
    ended = subprocess.run(
        [sys.executable, PROGRAM, folder / "parameters.json", "--time-limit", limit],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ended, time.monotonic() - begin


def two(folder: Path, parameters: dict[str, Any]) -> tuple[Ended, float]:
    """The same as two ranks."""
    (folder / "parameters.json").write_text(json.dumps(parameters))
    begin = time.monotonic()
    ended = run(2, [PROGRAM, folder / "parameters.json", "--time-limit", str(LIMIT_S)], limit_s=30.0)
    return ended, time.monotonic() - begin


def failure(folder: Path) -> Any:
    return json.loads((folder / "failure.json").read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_process_that_sleeps_is_ended_and_says_where_it_was(tmp_path: Path) -> None:
    ended, seconds = one(tmp_path, {"error": "hang"})
    assert ended.returncode == 124
    assert LIMIT_S < seconds < 10
    found = failure(tmp_path)
    assert found["kind"] == "hung"
    assert "ran longer than its time limit of 1 s" in found["message"]
    assert str(trace_file(tmp_path, 0)) in found["message"]
    assert "in fail" in trace_file(tmp_path, 0).read_text()
    assert found["message"] in ended.stderr
    assert "result.json" not in names(tmp_path)


def test_a_process_that_holds_the_interpreter_is_ended_by_the_back_up(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("of an earlier run")
    ended, seconds = one(tmp_path, {"error": "stuck"})
    assert ended.returncode == 1
    assert LIMIT_S < seconds < 10
    assert "failure.json" not in names(tmp_path)  # there was nobody to write it; the trace says it all the same
    assert was_ended(tmp_path) == trace_file(tmp_path, 0)
    assert "in fail" in trace_file(tmp_path, 0).read_text()


@pytest.mark.parametrize("limit", ["20", "0"])
def test_what_ends_in_time_leaves_no_trace(limit: str, tmp_path: Path) -> None:
    trace_file(tmp_path, 0).write_text("of an earlier run that was ended")
    if limit == "0":
        remove_traces(tmp_path)
    ended, _ = one(tmp_path, {}, limit)
    assert ended.returncode == 0, ended.stderr
    assert was_ended(tmp_path) is None
    assert names(tmp_path) == ["parameters.json", "progress.json", "result.json"]


def test_a_failure_within_the_limit_is_its_own(tmp_path: Path) -> None:
    ended, _ = one(tmp_path, {"error": "diverged"}, "20")
    assert ended.returncode == 3
    assert failure(tmp_path)["kind"] == "diverged"
    assert was_ended(tmp_path) is None


def test_one_of_two_ranks_hangs_and_the_other_has_ended(tmp_path: Path) -> None:
    ended, seconds = two(tmp_path, {"error": "hang", "failing": 1})
    assert ended.code != 0
    assert seconds < 15
    assert failure(tmp_path)["kind"] == "hung"
    assert was_ended(tmp_path) == trace_file(tmp_path, 1)


def test_one_of_two_ranks_is_stuck_and_the_other_waits_for_it_in_mpi(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    ended, seconds = two(tmp_path, {"error": "stuck", "failing": 1, "mpi": True, "after_mpi": True})
    assert ended.code != 0
    assert seconds < 15
    assert failure(tmp_path)["kind"] == "hung"
    assert was_ended(tmp_path) is not None
    assert "result.json" not in names(tmp_path)


@pytest.mark.parametrize(("text", "seconds"), [("0", None), ("1.5", 1.5), ("3600", 3600.0)])
def test_limits(text: str, seconds: float | None) -> None:
    assert parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e10", "soon", ""])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected seconds from 0|could not convert"):
        parse_time_limit(text)


@ends_its_thread
def test_the_error_is_given_to_another_thread(tmp_path: Path) -> None:
    told: list[HungError] = []
    done = threading.Event()

    def give_up(error: HungError) -> NoReturn:
        told.append(error)
        done.set()
        raise SystemExit  # of this thread

    with time_limit(0.05, tmp_path, give_up):
        assert done.wait(5)
    assert "0.05 s" in str(told[0])
    with time_limit(None, tmp_path, give_up):
        assert names(tmp_path) == []


@ends_its_thread
def test_a_folder_that_cannot_be_written_does_not_stop_the_clock(tmp_path: Path) -> None:
    done = threading.Event()

    def give_up(error: HungError) -> NoReturn:
        done.set()
        raise SystemExit

    with time_limit(0.05, tmp_path / "absent", give_up):
        assert done.wait(5)
