"""What Balsam applications do around their command; tests/ensemble/test_jobs_running.py has them on a real Balsam."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.core.stage import STAGES, load_stage
from apps.definitions import APPLICATIONS, MAX_ATTEMPTS, MAX_LAUNCHERS, StageHooks


@dataclass
class FakeJob:
    """What the hooks need of a Balsam job."""

    id: int = 7
    data: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    def get_parameters(self) -> dict[str, Any]:
        return self.parameters


@dataclass
class FakeEvents:
    """Balsam's log of the job's ends: what each says."""

    ends: list[dict[str, Any]]

    def filter(self, job_id: int, to_state: str) -> list[SimpleNamespace]:
        assert (job_id, to_state in ("RUN_TIMEOUT", "RUN_ERROR")) == (7, True)
        return [SimpleNamespace(id=number, data=data) for number, data in enumerate(self.ends)]


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageHooks:
    """Hooks of a job whose work directory is the current one, as in Balsam's agent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("balsam.api.EventLog.objects", FakeEvents([]), raising=False)
    made = StageHooks()
    made.job = FakeJob()
    return made


def test_every_stage_has_an_application_that_runs_it() -> None:
    assert list(APPLICATIONS) == list(STAGES)
    for name, application in APPLICATIONS.items():
        assert f"-m apps.{name} " in application.command_template
        assert application.__doc__
        assert load_stage(name).name == name


def test_only_what_trains_takes_several_ranks() -> None:
    assert [name for name in STAGES if load_stage(name).several_ranks] == ["training", "trial"]


def test_parameters_are_written_and_an_old_failure_is_put_away(hooks: StageHooks) -> None:
    Path("failure.json").write_text("{}")
    Path("hang-rank0.txt").write_text("Timeout")
    hooks.job.data = {"parameters": {"seed": 3}}
    hooks.preprocess()
    assert json.loads(Path("parameters.json").read_text()) == {"seed": 3}
    assert not Path("failure.json").exists()
    assert not Path("hang-rank0.txt").exists()
    assert hooks.job.state == "PREPROCESSED"


def test_record_is_set_from_the_result_beside_the_users_parameters(hooks: StageHooks, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "result.json").write_text('{"result": {"vi": 1.0}}')
    hooks.job.parameters = {"parameters": str(folder / "mine.json")}
    hooks.postprocess()
    assert hooks.job.data["record"] == {"result": {"vi": 1.0}}
    assert hooks.job.state == "POSTPROCESSED"


def test_success_without_a_result_is_a_failure(hooks: StageHooks) -> None:
    hooks.postprocess()
    assert hooks.job.state == "FAILED"
    assert hooks.job.data["failure"]["kind"] == "bug"


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("bad_configuration", "FAILED"),
        ("diverged", "FAILED"),
        ("hung", "FAILED"),
        ("no_room", "FAILED"),
        ("lost_node", "RESTART_READY"),
    ],
)
def test_named_failures_are_recorded_and_only_transient_ones_run_again(
    hooks: StageHooks, kind: str, state: str
) -> None:
    Path("failure.json").write_text(json.dumps({"kind": kind, "message": "why"}))
    hooks.handle_error()
    assert hooks.job.state == state
    if state == "FAILED":
        assert hooks.job.data["failure"] == {"kind": kind, "message": "why"}


@pytest.mark.parametrize(
    ("hook", "limit", "kind"), [("handle_error", MAX_ATTEMPTS, "killed"), ("handle_timeout", MAX_LAUNCHERS, "walltime")]
)
def test_killed_jobs_run_again_a_bounded_number_of_times(hooks: StageHooks, hook: str, limit: int, kind: str) -> None:
    for _ in range(limit - 1):
        getattr(hooks, hook)()
        assert hooks.job.state == "RESTART_READY"
    getattr(hooks, hook)()
    assert hooks.job.state == "FAILED"
    assert hooks.job.data["failure"]["kind"] == kind


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "with signal 9 (SIGKILL), sent by hand or by the system as memory ran out, without a result"),
        (137, "with signal 9 (SIGKILL),"),
        (-11, "with signal 11 (SIGSEGV), a fault in a library,"),
        (5, "with exit code 5, without a result"),
        (None, "the process ended without a result"),
    ],
)
def test_how_a_killed_process_ended_is_said_and_where_its_log_is(
    hooks: StageHooks, monkeypatch: pytest.MonkeyPatch, code: int | None, words: str, tmp_path: Path
) -> None:
    ends: list[dict[str, Any]] = [{"returncode": 1}, {} if code is None else {"returncode": code, "error": "..."}]
    monkeypatch.setattr("balsam.api.EventLog.objects", FakeEvents(ends), raising=False)
    hooks.job.data = {"attempts": MAX_ATTEMPTS}
    hooks.handle_error()
    message = hooks.job.data["failure"]["message"]
    assert words in message and f"tried {MAX_ATTEMPTS} times, see job.out in {tmp_path}" in message


def test_a_disk_too_full_for_the_failure_itself_is_told_by_the_exit_code(
    hooks: StageHooks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("balsam.api.EventLog.objects", FakeEvents([{"returncode": 74}]), raising=False)
    hooks.handle_error()
    assert hooks.job.state == "FAILED"
    message = f"a disk is full, and has no room for failure.json in {tmp_path}"
    assert hooks.job.data["failure"] == {"kind": "no_room", "message": message}


@pytest.mark.parametrize(
    ("ends", "kind"),
    [
        ([{}], "walltime"),
        ([{"message": "Session expired: job was stuck in RUNNING state"}], "lost_node"),
        ([{"message": "Session expired: job was stuck in RUNNING state"}, {}], "walltime"),
    ],
)
def test_a_launcher_that_said_nothing_at_its_end_was_lost(
    hooks: StageHooks, monkeypatch: pytest.MonkeyPatch, ends: list[dict[str, Any]], kind: str
) -> None:
    monkeypatch.setattr("balsam.api.EventLog.objects", FakeEvents(ends), raising=False)
    hooks.job.data = {"interruptions": ["killed"]}
    hooks.handle_timeout()
    assert hooks.job.state == "RESTART_READY"
    assert hooks.job.data == {"interruptions": ["killed", kind], "launchers": 2}


def test_whoever_submits_may_allow_a_single_attempt_but_not_a_single_launcher(hooks: StageHooks) -> None:
    hooks.job.data = {"max_attempts": 1}
    hooks.handle_timeout()
    assert hooks.job.state == "RESTART_READY"
    hooks.handle_error()
    assert hooks.job.state == "FAILED"
    assert hooks.job.data["failure"]["kind"] == "killed"


@pytest.mark.parametrize("hook", ["handle_error", "handle_timeout"])
def test_cancelled_jobs_do_not_run_again(hooks: StageHooks, hook: str) -> None:
    hooks.job.data = {"cancelled": True}
    getattr(hooks, hook)()
    assert hooks.job.state == "FAILED"
    assert "cancelled" in hooks.job.data["failure"]["message"]


@pytest.mark.parametrize(("left", "kind"), [("Timeout (0:00:09)!", "hung"), ("", "killed")])
def test_a_process_that_could_write_nothing_but_its_trace_was_hung(hooks: StageHooks, left: str, kind: str) -> None:
    """The trace file is there and empty while the process runs, so a killed one leaves it too."""
    Path("hang-rank1.txt").write_text(left)
    hooks.job.parameters = {"time_limit": "4.0"}
    hooks.job.data = {"max_attempts": 1}
    hooks.handle_error()
    assert hooks.job.state == "FAILED"
    assert hooks.job.data["failure"]["kind"] == kind
    assert ("its time limit of 4 s" in hooks.job.data["failure"]["message"]) == bool(left)


def test_the_time_limit_is_on_the_command_line() -> None:
    for application in APPLICATIONS.values():
        assert application.command_template.endswith("--time-limit {{ time_limit }}")
        assert application.parameters["time_limit"]["default"] == "0"
