"""The stage that only takes time: fates, as its command and its parameters give them."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import DataError, DivergedError, ParameterError
from apps.core.progress import silent
from apps.core.stage import RESULT_FILE, run_file
from apps.simulation.stage import (
    HANGING_S,
    STAGE,
    SimulationParameters,
    duration,
    fate_of_this_start,
    run,
)


def parameters(**fields: Any) -> SimulationParameters:
    return SimulationParameters(**{"seconds": 0.0, "objectives": (0.5, 2.0), **fields})


def test_sleeps_and_gives_its_numbers() -> None:
    begin = time.monotonic()
    result = run(parameters(seconds=0.05), silent)
    assert time.monotonic() - begin >= 0.05
    assert result.objectives == (0.5, 2.0)
    assert result.seconds == 0.05


def test_failures_are_of_their_kinds() -> None:
    with pytest.raises(ParameterError, match="cannot work"):
        run(parameters(fate="bad_configuration", seconds=100.0), silent)  # at once
    with pytest.raises(DivergedError, match="diverged"):
        run(parameters(fate="diverged"), silent)


def test_a_hanging_job_outlasts_any_allocation() -> None:
    assert duration(parameters(fate="hang"), "hang") == HANGING_S
    assert duration(parameters(seconds=3.0), "ok") == 3.0


def test_a_killed_job_is_ok_after_its_lost_starts(tmp_path: Path) -> None:
    lost = parameters(fate="killed", lost_starts=2, output=str(tmp_path / "out"))
    assert [fate_of_this_start(lost) for _ in range(4)] == ["killed", "killed", "ok", "ok"]


def test_a_killed_job_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    run(parameters(fate="killed", output=str(tmp_path)), silent)
    assert signals == [(os.getpid(), signal.SIGKILL)]


def test_bad_parameters(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="seconds = -1"):
        parameters(seconds=-1.0)
    with pytest.raises(ParameterError, match="fate = 'bored'"):
        parameters(fate="bored")
    with pytest.raises(ParameterError, match="output folder"):
        parameters(fate="killed")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        fate_of_this_start(parameters(fate="killed", output=str(tmp_path / "file" / "out")))


def test_runs_as_any_stage_does(tmp_path: Path) -> None:
    file = tmp_path / "parameters.json"
    parameters().save(file)
    run_file(STAGE, file)
    assert json.loads((tmp_path / RESULT_FILE).read_text())["result"] == {"objectives": [0.5, 2.0], "seconds": 0.0}
