"""What a long command shows in a log file, and on a terminal."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

import ensemble.display as display_module
from apps.core.progress import FileReporter
from ensemble.display import Display


def test_what_is_waited_for_is_said_before_and_after_in_a_log() -> None:
    log = io.StringIO()
    with Display(Console(file=log, width=100)) as display, display.waiting("starting PostgreSQL"):
        assert log.getvalue() == "starting PostgreSQL ...\n"
    assert re.fullmatch(r"starting PostgreSQL \.\.\.\nstarting PostgreSQL: \d+\.\d s\n", log.getvalue())


def test_on_a_terminal_it_is_shown_while_it_lasts() -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, width=100, force_terminal=True)
    with Display(terminal) as display, display.waiting("starting PostgreSQL"):
        time.sleep(0.3)
        during = screen.getvalue()
    assert "starting PostgreSQL" in during and " s\n" not in during
    assert re.search(r"starting PostgreSQL: \d+\.\d s", screen.getvalue())


def test_what_failed_is_not_said_to_be_done() -> None:
    log = io.StringIO()
    with pytest.raises(OSError), Display(Console(file=log, width=100)) as display, display.waiting("it"):
        raise OSError
    assert log.getvalue() == "it ...\n"


def test_a_long_line_is_not_broken_in_a_log() -> None:
    log, path = io.StringIO(), "/data" * 30
    with Display(Console(file=log, width=80)) as display:
        display.say(f"see job.out in {path}/run; run the same command again")
    assert log.getvalue() == f"see job.out in {path}/run; run the same command again\n"


def test_a_log_tells_now_and_then_how_far_the_running_jobs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_module, "LINES_S", 0.01)
    folders = {f"job{number}": tmp_path / f"job{number}" for number in range(7)}
    for folder in folders.values():
        folder.mkdir()
    log = io.StringIO()

    def until(text: str) -> None:
        end = time.monotonic() + 10
        while text not in log.getvalue():
            assert time.monotonic() < end, log.getvalue()
            time.sleep(0.01)

    with Display(Console(file=log, width=100)) as display, display.phase("flood", lambda: folders) as update:
        update(0, 7)
        FileReporter(folders["job1"])(1, 4, "segmenting")
        until("flood ...\nflood: 0 of 7\n  under way: job1 25 % segmenting\n")
        time.sleep(0.1)
        assert log.getvalue().count("under way") == 1, "nothing new"
        for folder in list(folders.values())[2:]:
            FileReporter(folder)(1, 2, "")
        until("  under way: job1 25 % segmenting, job2 50 %, job3 50 %, job4 50 % and 2 more\n")
