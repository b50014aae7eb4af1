"""Horovod as `make test` builds it: two real ranks over MPI share sums and train one model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.rank_runs import needs_horovod, run

RANKS = 2

pytestmark = needs_horovod


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank reported, by rank."""
    folder = tmp_path_factory.mktemp("reports")
    ended = run(RANKS, ["-m", "tests.horovod_ranks", folder])
    assert ended.code == 0, ended.out + ended.error
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_the_library_finds_mpi_from_where_it_lies() -> None:
    """A cached wheel is installed into environments in other places than that which it was built in."""
    spec = importlib.util.find_spec("horovod")
    assert spec is not None and spec.origin is not None
    library = next((Path(spec.origin).parent / "tensorflow").glob("mpi_lib*.so"))
    assert b"$ORIGIN/../../../.." in library.read_bytes()


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
