"""Progress: the file a driver reads, and the bar that only a terminal sees."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from apps.core.progress import PROGRESS_FILE, FileReporter, read_progress, silent, stage_reporter, terminal_reporter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_reader_sees_the_last_report(tmp_path: Path) -> None:
    report = FileReporter(tmp_path, interval_s=0)
    report(1, 4, "partition")
    assert read_progress(tmp_path) == (0.25, "partition")
    report(4, 4, "done")
    assert read_progress(tmp_path) == (1.0, "done")
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]


def test_reports_are_rare_but_the_last_always_counts(tmp_path: Path) -> None:
    report = FileReporter(tmp_path, interval_s=3600)
    for done in range(10):
        report(done, 10, f"step {done}")
    assert read_progress(tmp_path) == (0.0, "step 0")
    report(10, 10, "all")
    assert read_progress(tmp_path) == (1.0, "all")


def test_nothing_to_do_is_done(tmp_path: Path) -> None:
    FileReporter(tmp_path)(0, 0)
    assert read_progress(tmp_path) == (1.0, "")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"fraction": 0.5}', '{"fraction": "x", "what": ""}'])
def test_reader_of_nothing(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / PROGRESS_FILE).write_text(content)
    assert read_progress(tmp_path) == (0.0, "")


def test_a_place_that_cannot_be_written_does_not_end_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    FileReporter(tmp_path / "file", interval_s=0)(1, 2, "x")
    FileReporter(tmp_path / "absent", interval_s=0)(1, 2, "x")
    assert not (tmp_path / "absent").exists()


def test_silence_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with terminal_reporter("training") as report:
        assert report is silent
        report(1, 2)
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with terminal_reporter("training") as report:
        report(1, 2, "step 5")
        report(0, 0, "nothing left")
    assert "training" in stream.getvalue()
    assert "nothing left" in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_stage_reporter_writes_the_file(tmp_path: Path) -> None:
    with stage_reporter(tmp_path, "training") as report:
        report(3, 3, "trained")
    assert read_progress(tmp_path) == (1.0, "trained")
