"""The main that every stage shares: exit codes, result.json last and whole, failure.json, --help, --print-schema."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from msgspec import Meta

from apps.core import stage as stage_module
from apps.core.errors import (
    DataError,
    DivergedError,
    FailureKind,
    NoRoomError,
    ParameterError,
    TransientError,
    kind_of,
)
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter, read_progress
from apps.core.ranks import Launch
from apps.core.stage import Stage, load_stage, run_file, stage_main


class CountParameters(Parameters, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=0, description="how far to count, 100 % at most")]
    name: Annotated[str, Meta(description="a word")] = "counter"


class CountResult(Result, frozen=True, kw_only=True):
    total: Annotated[int, Meta(description="sum of the numbers")]


Run = Callable[[CountParameters, Reporter], CountResult]


def count(parameters: CountParameters, report: Reporter) -> CountResult:
    report(parameters.limit, parameters.limit, "counting")
    return CountResult(total=sum(range(parameters.limit + 1)))


def failing(error: BaseException) -> Run:
    def run(parameters: CountParameters, report: Reporter) -> CountResult:
        raise error

    return run


def make_stage(run: Run = count, several_ranks: bool = True) -> Stage[CountParameters, CountResult]:
    example = {"limit": 3}
    return Stage("count", "Count to a limit.", CountParameters, CountResult, run, example, several_ranks)


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    file = tmp_path / "parameters.json"
    file.write_text('{"limit": 3}')
    return file


def main(file: Path, run: Run = count, *options: str) -> int:
    return stage_main(make_stage(run), [str(file), *options])


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_success_writes_the_envelope(parameters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(parameters) == 0
    envelope = read(tmp_path, "result.json")
    assert envelope["stage"] == "count"
    assert envelope["result"] == {"total": 6}
    assert envelope["configuration_hash"] == CountParameters(limit=3).hash()
    assert envelope["ranks"] == 1
    assert set(envelope) == {"stage", "result", "cost", "ranks", "code_version", "configuration_hash"}
    cost = envelope["cost"]
    assert cost["start"] < cost["end"] <= time.time()
    assert cost["cpu_seconds"] > 0
    assert cost["peak_memory_bytes"] > 10e6
    assert json.loads(capsys.readouterr().out) == {"total": 6}
    assert read_progress(tmp_path) == (1.0, "counting")
    assert not (tmp_path / "failure.json").exists()


def test_twice_is_the_same(parameters: Path, tmp_path: Path) -> None:
    assert main(parameters) == 0
    first = read(tmp_path, "result.json")
    assert main(parameters) == 0
    second = read(tmp_path, "result.json")
    assert {**first, "cost": None} == {**second, "cost": None}


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (DataError("em.h5: no such file"), 2, "bad_configuration"),
        (DivergedError("the loss is NaN at step 7"), 3, "diverged"),
        (TransientError("lost the node"), 75, "lost_node"),
        (ZeroDivisionError("division by zero"), 1, "bug"),
        (MemoryError(), 1, "bug"),
    ],
)
def test_failures(
    error: Exception, code: int, kind: str, parameters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text("of an earlier run")
    assert main(parameters, failing(error)) == code
    assert read(tmp_path, "failure.json") == {"kind": kind, "message": str(error) or type(error).__name__}
    assert not (tmp_path / "result.json").exists()
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"count: {error}" in shown.err
    assert ("Traceback" in shown.err) == (kind == "bug")


def full(_: CountParameters, report: Reporter) -> CountResult:
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise DataError("volume.zarr: cannot be written (No space left on device); free some space") from error


def test_a_full_disk_is_told_from_parameters_that_cannot_work(parameters: Path, tmp_path: Path) -> None:
    assert main(parameters, full) == NoRoomError.exit_code == 74
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["kind"] == "no_room"
    assert failure["message"].startswith("volume.zarr: cannot be written (No space left on device)")
    assert kind_of(OSError(errno.EDQUOT, "Disk quota exceeded")) is FailureKind.NO_ROOM
    assert kind_of(OSError(errno.EIO, "Input/output error")) is FailureKind.BUG
    assert kind_of(DataError("x")) is FailureKind.BAD_CONFIGURATION


def test_debug_shows_the_traceback(parameters: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(parameters, failing(DataError("bad")), "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_later_success_clears_the_failure(parameters: Path, tmp_path: Path) -> None:
    assert main(parameters, failing(DataError("bad"))) == 2
    assert main(parameters) == 0
    assert not (tmp_path / "failure.json").exists()
    assert read(tmp_path, "result.json")["result"] == {"total": 6}


def test_an_interrupt_is_no_failure_of_the_stage(parameters: Path, tmp_path: Path) -> None:
    assert main(parameters, failing(KeyboardInterrupt())) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parameters.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"limit": -1}', "limit"),
        ('{"limit": "three"}', "limit"),
        ("{}", "limit"),
        ('{"limit": 3, "speed": 1}', "speed"),
        ("{", "parameters.json"),
    ],
)
def test_wrong_parameters(
    text: str, message: str, parameters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters.write_text(text)
    assert main(parameters) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert read(tmp_path, "failure.json")["kind"] == "bad_configuration"
    assert not (tmp_path / "result.json").exists()


def test_a_missing_file_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "absent" / "parameters.json") == 2
    assert "no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_no_file_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        stage_main(make_stage(), [])
    assert caught.value.code == 2
    assert "parameters.json is missing" in capsys.readouterr().err


def test_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert stage_main(make_stage(), ["--print-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$defs"]["CountParameters"]["properties"]["limit"]["minimum"] == 0


def test_help_shows_fields_example_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        stage_main(make_stage(), ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for part in ("Count to a limit.", "how far to count, 100 % at most", '"limit": 3', "result.json is written"):
        assert part in text


def test_of_several_ranks_only_rank_0_writes(parameters: Path, tmp_path: Path) -> None:
    result = run_file(make_stage(), parameters, Launch(1, 2, "mpiexec"))
    assert result.total == 6
    assert [path.name for path in tmp_path.iterdir()] == ["parameters.json"]
    run_file(make_stage(), parameters, Launch(0, 2, "mpiexec"))
    assert read(tmp_path, "result.json")["ranks"] == 2
    assert read_progress(tmp_path) == (1.0, "counting")


def test_another_rank_leaves_the_result_alone(parameters: Path, tmp_path: Path) -> None:
    """Rank 0 may have written it already where another rank is late."""
    run_file(make_stage(), parameters, Launch(0, 2, "mpiexec"))
    run_file(make_stage(), parameters, Launch(1, 2, "mpiexec"))
    assert (tmp_path / "result.json").is_file()


def test_the_first_rank_that_fails_is_the_one_recorded(parameters: Path, tmp_path: Path) -> None:
    failures = [(1, DivergedError("the loss is NaN")), (0, TransientError("another rank has ended"))]
    for rank, error in failures:
        with pytest.raises(type(error)):
            run_file(make_stage(failing(error)), parameters, Launch(rank, 2, "mpiexec"))
    assert read(tmp_path, "failure.json") == {"kind": "diverged", "message": "the loss is NaN"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failure.json", "parameters.json"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_of_an_earlier_run_is_not_the_first(parameters: Path, tmp_path: Path, rank: int) -> None:
    (tmp_path / "failure.json").write_text("old")
    os.utime(tmp_path / "failure.json", (1e9, 1e9))
    with pytest.raises(DataError):
        run_file(make_stage(failing(DataError("bad"))), parameters, Launch(rank, 2, "mpiexec"))
    assert read(tmp_path, "failure.json")["message"] == "bad"


def test_rank_0_does_not_remove_what_a_faster_rank_has_failed_with(parameters: Path, tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text("of rank 1, just now")
    run_file(make_stage(), parameters, Launch(0, 2, "mpiexec"))
    assert (tmp_path / "failure.json").read_text() == "of rank 1, just now"


def test_a_stage_of_one_rank_is_not_started_as_several(parameters: Path) -> None:
    with pytest.raises(ParameterError, match="mpiexec started 2 ranks, and this stage is the work of one"):
        run_file(make_stage(several_ranks=False), parameters, Launch(0, 2, "mpiexec"))


def test_result_is_the_last_thing_written(parameters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When result.json appears the stage has ended and nothing else follows."""
    written: list[str] = []
    replace = os.replace

    def spy(source: str, target: Path) -> None:
        assert not Path(target).exists()
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    run_file(make_stage(), parameters)
    assert written == ["result.json"]
    newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert newest.name == "result.json"


def test_a_result_that_cannot_be_written_is_no_success(
    parameters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def block(parameters: CountParameters, report: Reporter) -> CountResult:
        (tmp_path / "result.json").mkdir()
        return count(parameters, report)

    assert main(parameters, block) == 2
    assert "result.json: cannot be written" in capsys.readouterr().err


def test_an_unwritable_failure_does_not_hide_the_error(
    parameters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def block(parameters: CountParameters, report: Reporter) -> CountResult:
        (tmp_path / "failure.json").mkdir()
        raise DivergedError("the loss is NaN")

    assert main(parameters, block) == 3
    assert "the loss is NaN" in capsys.readouterr().err


def test_a_parameters_file_without_a_folder(parameters: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(Path("parameters.json")) == 0
    assert (tmp_path / "result.json").is_file()


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(DataError, match=r"'painting': no such stage \(did you mean 'training'\?\); expected one of"):
        load_stage("painting")


def test_a_stage_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stage_module.STAGES, "count", "tests.apps.core.test_stage")
    monkeypatch.setitem(globals(), "STAGE", make_stage())
    assert load_stage("count").name == "count"


@pytest.mark.parametrize("kind", list(FailureKind))
def test_only_the_machines_failures_are_worth_a_retry(kind: FailureKind) -> None:
    assert kind.transient == (kind.value in {"lost_node", "walltime", "killed"})
