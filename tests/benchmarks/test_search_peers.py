"""The systems of the search benchmarks: all that are named can be started, and unknown ones are refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import search_libensemble, search_peers
from benchmarks.objectives import DIMENSIONS, Task
from benchmarks.search_own import ackley_of, ackley_search
from benchmarks.search_peers import LIBENSEMBLE, NOTES, SYSTEMS, libensemble_python, search_with
from ensemble.search.space import SearchSpace


def test_every_system_that_is_named_can_be_started() -> None:
    ours_and_peers = {name for name in NOTES if not name.startswith("libensemble ")}
    assert ours_and_peers == set(SYSTEMS)
    assert {f"libensemble {name}" for name in search_libensemble.GENERATORS} == set(NOTES) - ours_and_peers


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="hyperopt"):
        search_with("hyperopt", Task(1, 1.0, 1, str(tmp_path)), 1.0, 1)


def test_all_maximise_in_the_same_space() -> None:
    space = SearchSpace(search_peers.ackley_problem())
    assert len(space.names) == DIMENSIONS
    configuration = dict.fromkeys(space.names, 0.0)
    assert ackley_of(1)(configuration, None) < -1.0
    assert ackley_search().objective({"value": -2.5}) == -2.5


def test_libensembles_environment_is_taken_for_whole_only_when_all_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(0, ""), (1, "no space left"), (0, ""), (0, "")]
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        code, message = answers.pop(0)
        (tmp_path / "ensemble" / "benchmarks" / LIBENSEMBLE[0].replace("==", "-")).mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, code, "", message)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="no space left"):
        libensemble_python()
    python = libensemble_python()
    assert python == libensemble_python()
    assert [command[1:3] for command in commands] == [["-m", "venv"], ["-m", "pip"]] * 2
    assert commands[-1][0] == str(python) and commands[-1][-1] == LIBENSEMBLE[-1]
