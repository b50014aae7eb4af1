"""The installer: when it has nothing to do, and what an installation that was cut short leads to."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from tools import environment


class Recorder:
    """Stands in for the two slow parts, making an environment and running pip in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fresh = 0
        self.installed: list[str] = []
        self.error: Exception | None = None
        monkeypatch.setattr(venv, "EnvBuilder", self.builder)
        monkeypatch.setattr(subprocess, "run", self.run)

    def builder(self, **options: Any) -> Recorder:
        assert options["clear"], "an environment of unknown state must be emptied"
        return self

    def create(self, folder: Path) -> None:
        self.fresh += 1
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").write_text("")
        (folder / "pyvenv.cfg").write_text("")

    def run(self, command: list[str], **options: Any) -> None:
        if "install" in command:
            if self.error:
                raise self.error
            self.installed.append(command[-1])


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return Recorder(monkeypatch)


def test_second_call_does_nothing(recorder: Recorder, tmp_path: Path) -> None:
    environment.install(tmp_path, {"cpu"})
    environment.install(tmp_path, {"cpu"})
    assert (recorder.fresh, recorder.installed) == (1, [".[cpu]"])


def test_more_extras_are_added_and_fewer_are_there_already(recorder: Recorder, tmp_path: Path) -> None:
    environment.install(tmp_path, {"cpu"})
    environment.install(tmp_path, {"cpu", "test"})
    environment.install(tmp_path, {"cpu"})
    assert (recorder.fresh, recorder.installed) == (1, [".[cpu]", ".[cpu,test]"])


def test_new_pins_install_again_and_keep_the_extras(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.install(tmp_path, {"cpu", "test"})
    monkeypatch.setattr(environment, "pins", lambda: "others")
    environment.install(tmp_path, {"cpu"})
    assert (recorder.fresh, recorder.installed) == (1, [".[cpu,test]", ".[cpu,test]"])


def test_a_cut_installation_leaves_no_stamp_and_is_begun_anew(recorder: Recorder, tmp_path: Path) -> None:
    environment.install(tmp_path, {"cpu"})
    recorder.error = subprocess.CalledProcessError(1, "pip")
    with pytest.raises(subprocess.CalledProcessError):
        environment.install(tmp_path, {"cpu", "test"})
    assert environment.read_stamp(tmp_path) == ("", set())
    recorder.error = None
    environment.install(tmp_path, {"cpu"})
    assert (recorder.fresh, recorder.installed) == (2, [".[cpu]", ".[cpu]"])


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pins": "x"}'])
def test_a_damaged_stamp_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / environment.STAMP_FILE).write_text(content)
    assert environment.read_stamp(tmp_path) == ("", set())


def test_a_removed_python_is_noticed(recorder: Recorder, tmp_path: Path) -> None:
    environment.install(tmp_path, {"cpu"})
    (tmp_path / "bin" / "python").unlink()
    environment.install(tmp_path, {"cpu"})
    assert recorder.fresh == 2


def test_pins_follow_the_two_files_and_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that was moved with its checkout has programs that point to the old place."""
    seen = set()
    for place, pyproject, constraints in (("a", "1", "1"), ("b", "1", "1"), ("b", "2", "1"), ("b", "2", "2")):
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "pyproject.toml").write_text(pyproject)
        (folder / "constraints.txt").write_text(constraints)
        monkeypatch.setattr(environment, "ROOT", folder)
        seen.add(environment.pins())
    assert len(seen) == 4


def test_a_place_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["environment.py", str(tmp_path / "file" / "venv"), "cpu"])
    assert environment.main() == 2
    assert "cannot be made" in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_emptied(recorder: Recorder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError):
        environment.install(tmp_path, {"cpu"})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert recorder.fresh == 0


def test_stamp_is_json(recorder: Recorder, tmp_path: Path) -> None:
    environment.install(tmp_path, {"test", "cpu"})
    stamp = json.loads((tmp_path / environment.STAMP_FILE).read_text())
    assert stamp == {"pins": environment.pins(), "extras": ["cpu", "test"]}
