"""Which rank a process is, by its launcher's variables; and real launches of a stage that need no Horovod."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.errors import ParameterError
from apps.core.ranks import ONE_RANK, Launch, read_launch
from tests.rank_runs import Ended, Launcher, run

PROGRAM = Path(__file__).with_name("ranks_stage.py")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ONE_RANK),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, Launch(1, 4, "mpiexec")),
        ({"PMI_RANK": "0", "PMI_SIZE": "1"}, Launch(0, 1, "mpiexec")),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, Launch(2, 3, "mpirun of Open MPI")),
        ({"PALS_RANKID": "5", "PMI_SIZE": "12"}, Launch(5, 12, "mpiexec of PALS")),
        ({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "PMI_RANK": "0", "PMI_SIZE": "1"}, Launch(1, 2, "horovodrun")),
        # A batch script of Slurm's has some of the variables of a step, and is one process.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, ONE_RANK),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "0"},
            Launch(3, 8, "srun of an older Slurm"),
        ),
        (
            {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"},
            Launch(3, 4, "srun"),
        ),
    ],
)
def test_launch_is_read_from_the_environment(environment: dict[str, str], expected: Launch) -> None:
    assert read_launch(environment) == expected


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", ""), ("0", "0")])
def test_what_is_no_rank_is_refused(rank: str, size: str) -> None:
    with pytest.raises(ParameterError, match=f"PMI_RANK={rank}, PMI_SIZE={size}: expected"):
        read_launch({"PMI_RANK": rank, "PMI_SIZE": size})


def launch(folder: Path, parameters: dict[str, Any], launcher: Launcher = "mpiexec") -> tuple[Ended, float]:
    """Run the stage of ranks_stage.py as two ranks; returns how it ended and the seconds that took."""
    (folder / "parameters.json").write_text(json.dumps(parameters))
    begin = time.monotonic()
    ended = run(2, [PROGRAM, folder / "parameters.json"], launcher, limit_s=30.0)
    return ended, time.monotonic() - begin


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rank_0_alone_writes_and_reports(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("of an earlier run")
    (tmp_path / "result.json").write_text("of an earlier run")
    time.sleep(1.1)  # the start of a process is known to a second
    ended, _ = launch(tmp_path, {})
    assert ended.code == 0, ended.error
    assert json.loads(ended.out) == {"rank": 0}
    assert read(tmp_path, "result.json")["result"] == {"rank": 0}
    assert read(tmp_path, "result.json")["ranks"] == 2
    assert read(tmp_path, "progress.json")["what"] == "rank 0"
    assert names(tmp_path) == ["parameters.json", "progress.json", "result.json"]


@pytest.mark.parametrize(
    ("error", "code", "kind"), [("data", 2, "bad_configuration"), ("diverged", 3, "diverged"), ("bug", 1, "bug")]
)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_all(error: str, code: int, kind: str, failing: int, tmp_path: Path) -> None:
    """The other rank sleeps for a minute."""
    ended, seconds = launch(tmp_path, {"error": error, "failing": failing, "sleep": 60})
    assert ended.code == code
    assert seconds < 20
    assert read(tmp_path, "failure.json") == {"kind": kind, "message": f"said rank {failing}"}
    assert f"(rank {failing} of 2): said rank {failing}" in ended.error
    assert "result.json" not in names(tmp_path)


def test_a_rank_that_fails_before_mpi_ends_those_that_wait_in_it(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    ended, _ = launch(tmp_path, {"error": "data", "failing": 1, "mpi": True})
    assert ended.code == 2
    assert read(tmp_path, "failure.json")["message"] == "said rank 1"


def test_a_rank_that_fails_after_mpi_has_started_ends_all(tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    ended, _ = launch(tmp_path, {"error": "diverged", "failing": 0, "mpi": True, "after_mpi": True})
    assert ended.code == 3
    assert read(tmp_path, "failure.json")["kind"] == "diverged"


def test_a_killed_rank_ends_all_and_is_no_failure_of_the_stage(tmp_path: Path) -> None:
    ended, seconds = launch(tmp_path, {"error": "killed", "failing": 1, "sleep": 60})
    assert ended.code != 0
    assert seconds < 20
    assert names(tmp_path)[0] == "parameters.json"


def test_parameters_that_one_rank_cannot_read_end_all(tmp_path: Path) -> None:
    """Each rank has a folder of its own here; rank 1's holds no file."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "parameters.json").write_text('{"sleep": 60}')
    code = f"import os, runpy, sys; sys.argv = ['x', os.environ['PMI_RANK'] + '/parameters.json']\n\
runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    ended = run(2, ["-c", code], folder=tmp_path, limit_s=30.0)
    assert ended.code == 2
    assert "1/parameters.json: no such file" in ended.error


def test_a_stage_of_one_process_refuses_several(tmp_path: Path) -> None:
    (tmp_path / "parameters.json").write_text('{"shape": [16, 16, 16], "output": "em", "seed": 1}')
    ended = run(2, ["-m", "apps.phantom", tmp_path / "parameters.json"], limit_s=30.0)
    assert ended.code == 2
    assert "mpiexec started 2 ranks, and this stage is the work of one" in ended.error
    assert names(tmp_path) == ["failure.json", "parameters.json"]


def test_a_single_rank_is_a_process_like_any(tmp_path: Path) -> None:
    (tmp_path / "parameters.json").write_text("{}")
    ended = run(1, [PROGRAM, tmp_path / "parameters.json"], limit_s=30.0)
    assert ended.code == 0, ended.error
    assert read(tmp_path, "result.json")["ranks"] == 1


@pytest.mark.horovod
def test_horovodrun_starts_ranks_too(tmp_path: Path) -> None:
    pytest.importorskip("horovod")
    ended, _ = launch(tmp_path, {}, "horovodrun unasked")
    assert ended.code == 0, ended.error
    assert read(tmp_path, "result.json")["ranks"] == 2
    ended, _ = launch(tmp_path, {"error": "diverged", "failing": 1, "sleep": 60}, "horovodrun unasked")
    assert ended.code != 0
    assert read(tmp_path, "failure.json")["kind"] == "diverged"
