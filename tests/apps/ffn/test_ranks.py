"""The collectives of a training's ranks: the identity for one, and over real Horovod for two."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.errors import ParameterError, TransientError
from apps.core.ranks import Launch
from apps.ffn.ranks import HorovodRanks, lost_ranks, one_rank, start_ranks
from tests.rank_runs import ROOT, Ended, Launcher, needs_horovod, run

PROGRAM = Path(__file__).with_name("ranks_program.py")
LAUNCHERS: list[Launcher] = ["mpiexec", "horovodrun unasked"]


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setenv("PMI_RANK", str(rank))
    monkeypatch.setenv("PMI_SIZE", str(size))


def test_one_rank_has_nobody_to_talk_to() -> None:
    ranks = one_rank()
    assert (ranks.rank, ranks.size) == (0, 1)
    gradients = [object(), object()]
    assert ranks.average(gradients) == gradients
    values = np.array([1.0, 2.5])
    total = ranks.total(values)
    assert total.tolist() == [1.0, 2.5]
    assert total is not values
    ranks.agree("anything", "at all")
    ranks.broadcast([])
    ranks.barrier()


@pytest.mark.parametrize("environment", [{}, {"PMI_RANK": "0", "PMI_SIZE": "1"}])
def test_one_rank_starts_without_horovod_and_tensorflow(environment: dict[str, str]) -> None:
    code = "import sys; from apps.ffn.ranks import start_ranks; ranks = start_ranks(threads=1); \
print(ranks.rank, ranks.size, sorted({'horovod', 'tensorflow', 'keras'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "0 1 []\n", done.stderr


def test_several_ranks_without_horovod_are_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 1, 2)
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(ParameterError, match=r"mpiexec started 2 ranks.*not installed.*make horovod.*one rank"):
        start_ranks(threads=1)


def test_a_horovod_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").write_text("")
    (tmp_path / "horovod" / "tensorflow.py").write_text("raise OSError('libmpi.so.12: cannot open\\nand more')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("apps.ffn.backend.start_tensorflow", lambda threads: None)
    for name in horovod_modules():
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ParameterError, match=r"Horovod does not start \(libmpi\.so\.12: cannot open\); build it anew"):
        HorovodRanks(Launch(0, 2, "mpiexec"), threads=1)
    for name in horovod_modules():  # the broken one is not for the tests after this
        del sys.modules[name]


def horovod_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "horovod"]


def test_only_horovods_word_of_a_lost_rank_is_translated() -> None:
    unknown_error = type("UnknownError", (Exception,), {"__module__": "tensorflow.python.framework.errors_impl"})
    with pytest.raises(TransientError, match="another rank has ended"), lost_ranks():
        raise unknown_error("Horovod has been shut down. This was caused by ...\n\tat ...")
    for error in (unknown_error("no memory"), RuntimeError("Horovod"), ParameterError("Horovod")):
        with pytest.raises(type(error)), lost_ranks():
            raise error


@dataclass(frozen=True)
class Launched:
    """A launch of two ranks of ranks_program.py, and the folder of their reports."""

    launcher: Launcher
    ended: Ended
    folder: Path


@pytest.fixture(scope="module", params=LAUNCHERS)
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """All collectives, and then rank 1 fails."""
    folder = tmp_path_factory.mktemp("reports")
    return Launched(request.param, run(2, [PROGRAM, "raises", folder], request.param), folder)


@pytest.fixture
def reports(launched: Launched) -> list[dict[str, Any]]:
    """What each of the two ranks found."""
    files = [launched.folder / f"{rank}.json" for rank in range(2)]
    assert all(file.exists() for file in files), launched.ended.out + launched.ended.error
    return [json.loads(file.read_text()) for file in files]


class TestTwoRanks:
    pytestmark = needs_horovod

    def test_each_knows_its_place(self, reports: list[dict[str, Any]]) -> None:
        assert [(report["rank"], report["size"]) for report in reports] == [(0, 2), (1, 2)]

    def test_gradients_are_averaged(self, reports: list[dict[str, Any]]) -> None:
        """Rank r has r + 1 and (10, 20) * (r + 1), the latter in bfloat16."""
        for report in reports:
            assert report["mean"] == [[1.5], [15.0, 30.0]]
            assert report["dtypes"] == ["float32", "float32"]
            assert report["means"] == [1.5 * step for step in range(5)]

    def test_totals_are_bitwise_equal(self, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            assert report["total"] == [[0.1 + 0.2, 3e300], [3.0, -1.0]]
        assert reports[0]["scalar"] == reports[1]["scalar"] == 3.0

    def test_variables_get_the_values_of_rank_0(self, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            assert report["variables"] == [[1.0, 2.0], 7]

    def test_all_ranks_learn_who_differs(self, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            assert report["disagreement"].startswith("weights: not the same on all 2 ranks, rank 1 differs from rank 0")

    def test_nobody_passes_the_barrier_before_all_are_there(self, reports: list[dict[str, Any]]) -> None:
        """Rank 1 comes a second late."""
        assert reports[0]["passed"] >= reports[1]["came"] - 0.01

    def test_another_number_of_ranks_than_the_launcher_says_is_refused(self, reports: list[dict[str, Any]]) -> None:
        for report in reports:
            assert "says rank 3 of 5, Horovod finds rank" in report["mismatch"]


class TestALostRank:
    """Those that wait for it end.

    mpiexec ends the survivor; under horovodrun it may see that its partner is gone before that.
    """

    pytestmark = needs_horovod

    def test_that_fails(self, launched: Launched, reports: list[dict[str, Any]]) -> None:
        assert launched.ended.code == 3 or (launched.launcher != "mpiexec" and launched.ended.code != 0)
        assert_nothing_else_was_seen(launched.folder)

    @pytest.mark.parametrize("launcher", LAUNCHERS)
    def test_that_is_killed(self, launcher: Launcher, tmp_path: Path) -> None:
        assert run(2, [PROGRAM, "killed", tmp_path], launcher, limit_s=60.0).code != 0
        assert_nothing_else_was_seen(tmp_path)


def assert_nothing_else_was_seen(folder: Path) -> None:
    survivor = folder / "lost.json"
    assert not survivor.exists() or json.loads(survivor.read_text()) == {"error": "TransientError"}
