"""`ensemble run` and `ensemble gate` without a service: what is said of bad input, and what gates list and accept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.quality import COLUMNS
from apps.core.errors import EnsembleError, FailureKind
from apps.core.volumes import write_volume
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.cli.run import _conclude
from ensemble.display import Display
from ensemble.jobs import Outcome, Task
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.engine import Look
from ensemble.pipeline.gates import load_acceptances
from ensemble.pipeline.planners.contract import StepPlan
from ensemble.pipeline.quality_table import write_table
from ensemble.pipeline.run import RunReport, Written, failures_of, run_pipeline
from tests.ensemble.pipeline.in_process import StageJobs
from tests.ensemble.pipeline.microscope import ALIGNMENT, MONTAGE, acquire, list_sections, spoil
from tests.ensemble.test_cli import call

PIPELINES = Path(__file__).parents[3] / "pipelines"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a campaign whose table says that sections 3 and 5 are held, and 7 was accepted."""
    folder = tmp_path / "home"
    campaign = create_campaign(folder, CampaignPlan(name="block"), tmp_path / "out")
    rows = [
        (
            "montage",
            "montage",
            section,
            "overlap_correlation",
            value,
            "",
            "higher",
            0.4,
            value >= 0.4,
            state,
            "words",
            "",
        )
        for section, value, state in ((3, 0.2, "held"), (4, 0.8, "passed"), (5, 0.3, "held"), (7, 0.1, "accepted"))
    ]
    write_table(pd.DataFrame(rows, columns=list(COLUMNS)), campaign.folder)
    return folder


def gate(capsys: Capture, home: Path, *arguments: str) -> tuple[int, str, str]:
    return call(capsys, "gate", *arguments, "--home", str(home))


def test_ls_names_what_is_held_and_why(capsys: Capture, home: Path) -> None:
    code, out, _ = gate(capsys, home, "ls", "block")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:5]] for line in out.splitlines() if "│ montage" in line]
    assert [row[:3] for row in rows] == [["montage", n, "held"] for n in ("3", "5", "7")]
    assert rows[0][3].startswith("overlap_correlation 0.2,")
    gate(capsys, home, "accept", "block", "montage", "--sections", "5", "--reason", "looked at")
    accepted = next(line for line in gate(capsys, home, "ls", "block")[1].splitlines() if "│       5 │" in line)
    assert "accepted" in accepted, "at once"


def test_accept_takes_the_sections_named_as_they_were_measured(capsys: Capture, home: Path, tmp_path: Path) -> None:
    code, out, _ = gate(capsys, home, "accept", "block", "montage", "--sections", "5", "--reason", "looked at")
    assert code == 0 and "accepted 1" in out
    (accepted,) = load_acceptances(tmp_path / "out").accepted
    assert (accepted.step, accepted.section, accepted.reason) == ("montage", 5, "looked at")
    assert accepted.values == {"overlap_correlation": 0.3}
    assert gate(capsys, home, "accept", "block", "montage", "--all")[0] == 0
    assert [(each.section, each.reason) for each in load_acceptances(tmp_path / "out").accepted] == [
        (3, ""),
        (5, "looked at"),
        (7, ""),
    ]
    assert gate(capsys, home, "revoke", "block", "montage", "--sections", "3-5")[0] == 2  # 4 never was
    assert gate(capsys, home, "revoke", "block", "montage", "--sections", "3,5,7")[0] == 0
    assert load_acceptances(tmp_path / "out").accepted == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ls", "nothing"), "no such campaign"),
        (("accept", "block", "montage"), "give either --sections 7,9-12 or --all"),
        (("accept", "block", "montage", "--all", "--sections", "3"), "give either"),
        (
            ("accept", "block", "montage", "--sections", "3-4"),
            "sections [4]: its gate does not hold them; it holds 3, 5, 7",
        ),
        (("accept", "block", "montaje", "--all"), "no such step; the table has montage"),
        (("accept", "block", "montage", "--sections", "7-"), "expected section numbers"),
        (("accept", "block", "montage", "--sections", "9-7"), "expected section numbers"),
        (("revoke", "block", "montage"), "give --sections"),
    ],
)
def test_bad_input_is_named(capsys: Capture, home: Path, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = gate(capsys, home, *arguments)
    assert code == 2 and message in err


def test_without_a_table_there_is_nothing_to_accept(capsys: Capture, home: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "quality.csv").unlink()
    code, _, err = gate(capsys, home, "ls", "block")
    assert code == 2 and "quality.csv" in err and "`ensemble run` writes it for a pipeline with gates" in err


def test_a_pipeline_that_cannot_work_is_refused_before_anything_is_made(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    file.write_text("steps:\n  montage: {stage: montage, parameters: {tile: x}}\n")
    code, _, err = call(capsys, "run", str(file), "--home", str(tmp_path / "home"), "--out", str(tmp_path / "out"))
    assert code == 2 and "unknown parameter tile" in err
    assert not (tmp_path / "home").exists() and not (tmp_path / "out").exists()
    code, _, err = call(capsys, "run", str(tmp_path / "none.yml"))
    assert code == 2 and "no such pipeline file" in err


def test_a_table_that_is_not_there_is_said_before_anything_is_started(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    file.write_text("steps:\n  montage: {stage: montage, parameters: {tiles: ./tiles.csv}}\n")
    for more in ((), ("--dry-run",)):
        code, _, err = call(capsys, "run", str(file), "--home", str(tmp_path / "home"), *more)
        assert code == 2 and "step montage" in err and "tiles.csv: no such file" in err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("failure", "held", "settled", "code"),
    [
        (None, [], True, 0),
        (None, [3], True, 4),
        (None, [], False, 1),
        (FailureKind.KILLED, [3], False, 1),
        (FailureKind.BAD_CONFIGURATION, [], False, 2),
    ],
)
def test_exit_codes(
    failure: FailureKind | None, held: list[int], settled: bool, code: int, tmp_path: Path, capsys: Capture
) -> None:
    pipeline = Pipeline.from_json({"name": "a", "steps": {"s": {"stage": "simulation", "parameters": {"seconds": 1}}}})
    task, outcomes = Task("s/run-1", "simulation", {}), dict[str, Outcome]()
    if failure is not None:
        outcomes[task.key] = Outcome(task.key, 1, None, failure, "went wrong")
    look = Look({"s": StepPlan((task,), settled)}, outcomes, frozenset())
    users_fault = failure is FailureKind.BAD_CONFIGURATION
    failures = tuple(failures_of(look, Path))
    report = RunReport(look, Written(tmp_path / "r"), failures, {"s": held} if held else {}, users_fault)
    found = 0
    try:
        _conclude(pipeline, report)
    except EnsembleError as error:
        found = error.exit_code
        assert ("went wrong" in str(error)) == (failure is not None)
    except SystemExit as end:
        found = int(end.code or 0)
    assert found == code
    assert ("ensemble gate accept a s --sections 3" in capsys.readouterr().out) == bool(held)


def test_a_dry_run_says_what_would_be_done_and_does_nothing(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "flow.yml"
    (tmp_path / "tiles.csv").write_text("path,section,x,y\na.tif,0,0,0\nb.tif,1,0,0\n")
    file.write_text("steps:\n  montage: {stage: montage, parameters: {tiles: ./tiles.csv}}\n")
    code, out, _ = call(capsys, "run", str(file), "--dry-run", "--out", str(tmp_path / "out"))
    assert code == 0 and "nothing was done" in out and not (tmp_path / "out").exists()
    (row,) = [line for line in out.splitlines() if "montage" in line]
    assert cells(row) == ["montage", "montage", "2", "one for every section", ""]


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        (FailureKind.KILLED, "run the same command again: it goes on with what is missing"),
        (FailureKind.BAD_CONFIGURATION, "mend that, and run the same command again"),
        (FailureKind.BUG, "its log may tell more; the same command tries again"),
    ],
)
def test_a_failure_names_step_and_job_and_log_and_what_to_do(failure: FailureKind, advice: str, tmp_path: Path) -> None:
    task = Task("ffn/run-1", "training", {})
    outcomes = {task.key: Outcome(task.key, 17, None, failure, "ended with signal 9 (SIGKILL)")}
    look = Look({"ffn": StepPlan((task,))}, outcomes, frozenset())
    (sentence,) = failures_of(look, lambda key: tmp_path / key)
    said = f"step ffn, job 17 (ffn/run-1), {failure}: ended with signal 9 (SIGKILL)"
    assert sentence == f"{said}; log: {tmp_path}/ffn/run-1/job.out; {advice}"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("│")[1:-1]]


def test_a_dry_run_says_of_every_step_which_jobs_it_has_and_what_it_waits_for(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = call(capsys, "run", str(PIPELINES / "connectome.yml"), "--dry-run")
    rows = {row[0]: row[2:] for line in out.splitlines() if len(row := cells(line)) == 5}
    assert code == 0 and "0+" not in out
    assert rows["tissue"] == ["1", "", ""]
    assert rows["inference"] == ["3", "2 x part, run", "tissue, ffn"]
    assert rows["reconciliation"] == ["6", "2 x compare, solve, 2 x relabel, run", "inference"]
    assert rows["synapse_model"] == ["1", "", "lesson"]
    assert "a run from nothing has 41 jobs" in out and "(?)" not in out  # as many as a run had
    _, out, _ = call(capsys, "run", str(PIPELINES / "phantom.yml"), "--dry-run")
    rows = {row[0]: row[2:] for line in out.splitlines() if len(row := cells(line)) == 5}
    assert rows["montage"] == ["?", "one for every 4 sections", "tissue"]
    assert rows["masking"] == ["?", "prepare, one for every 8 sections", "alignment, mask_model"]
    assert "those of 3 steps (?) that are known once" in out


def test_a_dry_run_counts_the_jobs_of_a_volume_that_is_there(capsys: Capture, tmp_path: Path) -> None:
    write_volume(tmp_path / "image.zarr", np.ones((10, 8, 8), np.uint8), (40.0, 8.0, 8.0))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    step = "{stage: masking, parameters: {image: ./image.zarr, model: ./model}, grain: 4}"
    (tmp_path / "flow.yml").write_text(f"steps:\n  masks: {step}\n")
    code, out, err = call(capsys, "run", str(tmp_path / "flow.yml"), "--dry-run", "--out", str(tmp_path / "out"))
    assert (code, err) == (0, "") and "a run from nothing has 4 jobs" in out  # prepare, and 0-3, 4-7, 8-9


def test_what_is_said_and_written_while_a_pipeline_runs(tmp_path: Path) -> None:
    table = acquire(tmp_path)
    list_sections(table, tmp_path / "some.csv", 4)
    spoil(table, 2)
    pipeline = Pipeline.from_json(
        {
            "name": "block",
            "steps": {
                "montage": {
                    "stage": "montage",
                    "parameters": {"tiles": str(tmp_path / "some.csv"), **MONTAGE},
                    "gate": {"overlap_correlation": 0.6},
                },
                "alignment": {
                    "stage": "alignment",
                    "parameters": {"montage": "${montage.output}", **ALIGNMENT},
                    "gate": "none",
                },
            },
        }
    )
    campaign = create_campaign(tmp_path / "home", CampaignPlan(name="block"), tmp_path / "out")
    with (tmp_path / "log").open("w") as stream, Display(Console(file=stream, width=200)) as display:
        report = run_pipeline(pipeline, campaign, StageJobs(), display)
    log = (tmp_path / "log").read_text()
    assert report.held == {"montage": [2]} and report.failures == ()
    assert "montage: section 2 held for overlap_correlation" in log
    assert "alignment: section 2 absent: held at step montage" in log
    assert report.written.page is not None and report.written.table is not None
    page = report.written.page.read_text()
    assert "ensemble gate accept block montage --sections 2" in page and "held at step montage" in page
    states = (
        pd.read_csv(report.written.table).drop_duplicates(["step", "section"]).set_index(["step", "section"])["state"]
    )
    assert states.to_dict() == {
        **{("montage", n): "held" if n == 2 else "passed" for n in range(4)},
        **{("alignment", n): "absent" if n == 2 else "passed" for n in range(4)},
    }
