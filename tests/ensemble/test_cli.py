"""The command line: help, and bad input as a sentence and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ensemble.cli.main import COMMANDS, _run


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command in this process: exit code, standard output, standard error."""
    code = _run(list(arguments), debug=False)
    captured = capsys.readouterr()
    return code or 0, captured.out, captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "Usage: ensemble" in out
    assert command in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(command in out for command in COMMANDS)


@pytest.fixture
def em(tmp_path: Path) -> Path:
    """An HDF5 file with one good image and several bad ones."""
    path = tmp_path / "em.h5"
    shape = (30, 90, 80)
    with h5py.File(path, "w") as file:
        file["raw"] = np.full(shape, 100, "uint8")
        file["labels"] = np.ones(shape, "uint32")
        file["flat"] = np.zeros((5, 5), "uint8")
        file["short"] = np.ones((30, 90, 79), "uint32")
        file["tiny"] = np.zeros((4, 4, 4), "uint8")
    return path


BAD = {
    "missing file": (["--data", "{dir}/none.h5:raw", "--labels", "{em}:labels"], "none.h5: no such file"),
    "no dataset name": (["--data", "{em}", "--labels", "{em}:labels"], "expected FILE.h5:DATASET"),
    "wrong dataset": (["--data", "{em}:grey", "--labels", "{em}:labels"], "has no dataset 'grey'; it has"),
    "2-D data": (["--data", "{em}:flat", "--labels", "{em}:labels"], "has 2 dimensions"),
    "other shape": (["--data", "{em}:raw", "--labels", "{em}:short"], "expected that of the image"),
    "too small": (["--data", "{em}:tiny", "--labels", "{em}:tiny"], "too small"),
    "no labels": (["--data", "{em}:raw"], "give --labels"),
    "unwritable output": (["--out", "{em}/out"], "cannot be created"),
    "negative trials": (["--trials", "-3"], "Invalid value for '--trials'"),
    "no workers": (["--workers", "0"], "Invalid value for '--workers'"),
    "voxel size": (["--voxel-size", "8,8"], "expected three numbers"),
    "search file": (["--search", "{dir}/none.py"], "none.py: no such search file"),
    "nothing to resume": (["--resume"], "holds no quickstart to continue"),
    "unknown option": (["--tirals", "3"], "--trials"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_the_quickstart_is_one_sentence_and_makes_nothing(
    case: str, em: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = BAD[case]
    home, out = tmp_path / "home", tmp_path / "out"
    given = [argument.format(dir=tmp_path, em=em) for argument in arguments]
    if "--out" not in given:
        given += ["--out", str(out)]
    code, _, err = call(capsys, "quickstart", "--home", str(home), *given)
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert not out.exists()
    assert not (home / "campaigns").exists() or not list((home / "campaigns").iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["results", "none"], "'none': no such campaign"),
        (["select", "none"], "'none': no such campaign"),
        (["search", "status", "none"], "'none': no such campaign"),
        (["models", "show", "none"], "'none': no such model"),
        (["deploy", "none", "--site", "s", "--image", "i.zarr", "--out", "o.zarr"], "'none': no such model"),
        (["nonsense"], "No such command"),
    ],
)
def test_unknown_things_are_named(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ENSEMBLE_HOME", str(tmp_path))
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert sentence in err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ensemble.cli.main", "results", "none", "--home", str(tmp_path)]
    plain = subprocess.run(command, capture_output=True, text=True)
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert (plain.returncode, debug.returncode) == (2, 2)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_a_space_without_a_choice_is_refused_before_a_campaign_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, home = tmp_path / "constant.py", tmp_path / "home"
    file.write_text(
        "from deephyper.hpo import HpProblem\n"
        "from ensemble.search import Search\n"
        "search = Search(problem=HpProblem(), parameters=lambda trial: None, objective=lambda result: 0.0)\n"
    )
    arguments = ["search", "run", str(file), "--campaign", "c", "--evaluator", "serial", "--home", str(home)]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "no free hyperparameter" in err
    assert not (home / "campaigns").exists()


def test_status_says_whether_anything_drives_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ensemble.campaigns import create_campaign, plan_campaign
    from ensemble.search import events
    from ensemble.search.run import SearchRun

    campaign = create_campaign(tmp_path, plan_campaign("demo"))
    run = SearchRun(campaign, "mine")
    run.folder.mkdir(parents=True)
    ledger = run.ledger()
    ledger.append([events.suggested(0, {"a": 1})])
    arguments = ("search", "status", "demo", "--home", str(tmp_path))
    assert "none runs" in call(capsys, *arguments)[1]
    (campaign.folder / "driver.lock").write_text("123")  # a killed driver leaves its number, and no lock
    assert "none runs" in call(capsys, *arguments)[1]
    with campaign.driver_lock():
        assert "none runs" not in call(capsys, *arguments)[1]
