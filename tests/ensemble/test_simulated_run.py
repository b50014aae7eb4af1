"""Jobs that are clocks: what they leave is what the stage's command leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("balsam")

from balsam.site.launcher.node_manager import NodeSpec

from apps.core.stage import FAILURE_FILE, RESULT_FILE, run_file
from apps.simulation.stage import STAGE
from ensemble.settings import SITE_VARIABLE
from ensemble.simulated_run import KILLED, TERMINATED, SimulatedRun
from ensemble.simulation import clocks

PYTHON = "/usr/bin/python -P -m"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "site" / "log").mkdir(parents=True)
    monkeypatch.setenv(SITE_VARIABLE, str(tmp_path / "site"))
    monkeypatch.setattr("ensemble.simulated_run._clocks", lambda: clocks.ClockFile.of_site(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    monkeypatch.setattr(time, "time", lambda: moment[0] + 1e9)
    return moment


def start(folder: Path, limit: str = "0", command: str = "", nodes: int = 1, **fields: Any) -> SimulatedRun:
    folder.mkdir(exist_ok=True)
    (folder / "parameters.json").write_text(json.dumps({"seconds": 10.0, "objectives": [0.5], **fields}))
    names = [str(i) for i in range(nodes)]
    run = SimulatedRun(
        cmdline=command or f"{PYTHON} apps.simulation parameters.json --time-limit {limit}",
        preamble=None,
        envs={"A": "B"},
        cwd=folder,
        outfile_path=folder / "job.out",
        node_spec=NodeSpec(node_ids=names, hostnames=names),
        ranks_per_node=2,
        threads_per_rank=1,
        threads_per_core=1,
        launch_params={},
        gpus_per_rank=0,
    )
    run.start()
    return run


def failure(folder: Path) -> Any:
    return json.loads((folder / FAILURE_FILE).read_text())


def test_ends_when_its_seconds_are_over_with_the_command_s_result(site: Path, now: list[float], tmp_path: Path) -> None:
    run = start(tmp_path / "job", nodes=3)
    assert run.poll() is None
    now[0] += 9.9
    assert run.poll() is None
    now[0] += 5.0  # noticed late
    assert run.poll() == 0
    assert run.wait() == 0
    found = json.loads((tmp_path / "job" / RESULT_FILE).read_text())
    assert found["result"] == {"objectives": [0.5], "seconds": 10.0}
    assert found["cost"]["end"] - found["cost"]["start"] == pytest.approx(10.0)
    assert found["ranks"] == 6
    real = tmp_path / "real"
    real.mkdir()
    (real / "parameters.json").write_text('{"seconds": 0.0, "objectives": [0.5]}')
    run_file(STAGE, real / "parameters.json")
    command = json.loads((real / RESULT_FILE).read_text())
    assert found.keys() == command.keys()
    assert found["cost"].keys() == command["cost"].keys()
    file = clocks.ClockFile.of_site(site)
    file.read()
    assert [(span.nodes, span.end - span.start, span.hung) for span in file.spans] == [(3, 10.0, False)]


@pytest.mark.parametrize(
    ("fate", "code", "kind"), [("bad_configuration", 2, "bad_configuration"), ("diverged", 3, "diverged")]
)
def test_failures(site: Path, now: list[float], tmp_path: Path, fate: str, code: int, kind: str) -> None:
    run = start(tmp_path / "job", fate=fate)
    now[0] += 10.0
    assert run.poll() == code
    assert failure(tmp_path / "job")["kind"] == kind
    assert run.tail_output()


def test_a_killed_job_leaves_nothing_and_runs_the_next_time(site: Path, now: list[float], tmp_path: Path) -> None:
    for code in (KILLED, 0):
        run = start(tmp_path / "job", fate="killed", output=str(tmp_path / "out"))
        now[0] += 10.0
        assert run.poll() == code
        assert not (tmp_path / "job" / FAILURE_FILE).exists()
        assert (tmp_path / "job" / RESULT_FILE).exists() == (code == 0)


def test_a_hanging_job_is_ended_at_its_time_limit(site: Path, now: list[float], tmp_path: Path) -> None:
    run = start(tmp_path / "job", limit="30", fate="hang")
    now[0] += 29.0
    assert run.poll() is None
    now[0] += 1.0
    assert run.poll() == 124
    assert failure(tmp_path / "job") == {"kind": "hung", "message": failure(tmp_path / "job")["message"]}
    assert "30 s" in failure(tmp_path / "job")["message"]


def test_a_terminated_job_holds_its_node_no_longer(site: Path, now: list[float], tmp_path: Path) -> None:
    run = start(tmp_path / "job")
    now[0] += 4.0
    run.terminate()
    assert run.poll() == run.wait(timeout=0.0) == TERMINATED
    run.kill()
    file = clocks.ClockFile.of_site(site)
    file.read()
    assert [span.end - span.start for span in file.spans] == [pytest.approx(4.0)]


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (f"{PYTHON} apps.trial parameters.json --time-limit 0", "stage simulation alone"),
        (f"{PYTHON} apps.simulation missing.json --time-limit 0", "missing.json"),
    ],
)
def test_what_cannot_be_run_fails_at_once(
    site: Path, now: list[float], tmp_path: Path, command: str, what: str
) -> None:
    assert start(tmp_path / "job", command=command).poll() == 2
    assert what in failure(tmp_path / "job")["message"]


def test_wrong_parameters_fail_at_once(site: Path, now: list[float], tmp_path: Path) -> None:
    assert start(tmp_path / "job", seconds=-1).poll() == 2
    assert failure(tmp_path / "job")["kind"] == "bad_configuration"
