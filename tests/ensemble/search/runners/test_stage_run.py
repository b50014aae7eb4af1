"""One run of a stage, watched: what its end is called, and that nothing of it is left."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from apps.core.errors import FailureKind
from ensemble.search.runners import stage_run
from ensemble.search.runners.stage_run import StageRun, run_stage
from tests.ensemble.search.runners.simulated_trials import stages_below


def run_of(folder: Path, time_limit_s: float | None = None, **parameters: Any) -> StageRun:
    given = {"seconds": 0.0, "objectives": (1.0,), "output": str(folder / "output"), **parameters}
    return StageRun("simulation", given, str(folder / "run"), time_limit_s, str(folder / "stop"))


def test_a_run_gives_its_record_and_is_not_run_twice(tmp_path: Path) -> None:
    before = time.time()
    first = run_stage(run_of(tmp_path))
    assert first["failure"] is None
    record = first["record"]
    assert record is not None
    assert record["result"] == {"objectives": [1.0], "seconds": 0.0}
    assert before - 0.05 <= record["cost"]["start"] < record["cost"]["end"] <= time.time()
    output = tmp_path / "run" / "job.out"
    size = output.stat().st_size
    assert size > 0
    assert run_stage(run_of(tmp_path)) == first
    assert output.stat().st_size == size


def test_other_parameters_are_another_run(tmp_path: Path) -> None:
    run_stage(run_of(tmp_path))
    assert run_stage(run_of(tmp_path, fate="diverged"))["failure"] == FailureKind.DIVERGED
    again = run_stage(run_of(tmp_path, objectives=(2.0,)))
    assert again["record"] is not None
    assert again["record"]["result"]["objectives"] == [2.0]


def test_a_run_whose_driver_did_not_see_its_end_starts_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, fate="killed")
    killed = run_stage(run)
    assert killed["failure"] == FailureKind.KILLED
    assert "signal 9 (SIGKILL)" in killed["message"]
    assert "job.out" in killed["message"]
    assert run_stage(run)["record"] is not None


def test_refused_parameters_are_a_bad_configuration(tmp_path: Path) -> None:
    ending = run_stage(run_of(tmp_path, seconds=-1.0))
    assert ending["failure"] == FailureKind.BAD_CONFIGURATION
    assert "seconds" in ending["message"]


def test_a_run_beyond_its_time_limit_is_hung(tmp_path: Path) -> None:
    ending = run_stage(run_of(tmp_path, time_limit_s=0.2, fate="hang"))
    assert ending["failure"] == FailureKind.HUNG
    assert "0.2 s" in ending["message"]


def test_a_process_that_cannot_end_itself_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_run, "PATIENCE_S", -59.5)
    ending = run_stage(run_of(tmp_path, time_limit_s=60.0, fate="hang"))
    assert ending["failure"] == FailureKind.HUNG
    assert stages_below() == []


def test_the_stop_file_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_run, "STOP_LOOK_S", 0.1)
    (tmp_path / "stop").touch()
    ending = run_stage(run_of(tmp_path, fate="hang"))
    assert ending["failure"] == FailureKind.KILLED
    assert stages_below() == []


def test_a_folder_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way")
    ending = run_stage(run_of(tmp_path))
    assert ending["failure"] == FailureKind.LOST_NODE
    assert str(tmp_path / "run") in ending["message"]


def test_a_full_disk_is_told_where_the_run_cannot_begin_or_cannot_say_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = stage_run._without_a_word(run_of(tmp_path), tmp_path, 74)
    assert (ending["failure"], ending["message"]) == (
        "no_room",
        f"a disk is full, and has no room for failure.json in {tmp_path}",
    )

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    assert run_stage(run_of(tmp_path))["failure"] == FailureKind.NO_ROOM


def test_a_stage_takes_itself_for_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PMI_RANK", "1"), ("PMI_SIZE", "3"), ("SLURM_STEP_ID", "0")):
        monkeypatch.setenv(name, value)
    assert run_stage(run_of(tmp_path))["record"] is not None


def test_a_stage_ends_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(vars(run_of(tmp_path, fate="hang"))))
    code = (
        "import json, sys; from ensemble.search.runners.stage_run import StageRun, run_stage; "
        "run_stage(StageRun(**json.load(open(sys.argv[1]))))"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run.json")])
    try:
        last = time.monotonic() + 20
        while not (stages := stages_below(worker.pid)) and time.monotonic() < last:
            time.sleep(0.02)
        assert len(stages) == 1
        while not (tmp_path / "run" / "progress.json").exists() and time.monotonic() < last:
            time.sleep(0.02)
        worker.send_signal(signal.SIGKILL)
        psutil.wait_procs(stages, timeout=10)
        assert not stages[0].is_running()
    finally:
        worker.kill()
        worker.wait()
