"""Horovod as `make test` builds it: two real ranks over MPI share sums and train one model."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RANKS = 2

pytestmark = [
    pytest.mark.horovod,
    pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed: make horovod"),
]


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    """What each rank reported, by rank."""
    mpiexec = Path(sys.executable).parent / "mpiexec"  # of the mpich package that Horovod was built against
    done = subprocess.run(
        [mpiexec, "-n", str(RANKS), sys.executable, Path(__file__).with_name("horovod_ranks.py")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda report: int(report["rank"]))


def test_ranks_find_each_other_over_mpi(reports: list[dict[str, Any]]) -> None:
    assert [report["rank"] for report in reports] == [0, 1]
    assert {report["size"] for report in reports} == {RANKS}
    assert all(report["mpi"] for report in reports)


def test_allreduce(reports: list[dict[str, Any]]) -> None:
    for report in reports:
        assert report["total"] == [1 + 2, 10 + 20]
        assert report["mean"] == [0.5]


def test_distributed_gradients_keep_the_ranks_equal(reports: list[dict[str, Any]]) -> None:
    first, second = reports
    assert first["losses"] != second["losses"]  # each rank has data of its own
    assert first["weights"] == second["weights"]
    for report in reports:
        assert report["losses"][-1] < 0.5 * report["losses"][0]
