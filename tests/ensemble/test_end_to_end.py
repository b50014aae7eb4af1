"""The whole loop on a real Balsam service: interrupted, killed, continued, looked at with the stock command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from apps.core.progress import silent
from apps.core.volumes import open_volume
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as make_phantom
from ensemble.models import find_model
from ensemble.search.ledger import Ledger

TRIALS = 3
SEARCH = Path(__file__).parent / "tiny_search.py"
JOURNAL = Path("searches") / SEARCH.stem / "journal.jsonl"
ENSEMBLE = [sys.executable, "-m", "ensemble.cli.main"]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Interrupted:
    """What a quickstart says and leaves that is interrupted when it has submitted its first trial."""

    code: int
    output: str
    left_running: list[str]
    open_trials: int


@dataclass(frozen=True)
class Run:
    """What the three runs of one quickstart left behind: one interrupted, one killed, one that came to the end."""

    home: Path
    out: Path
    interrupted: Interrupted
    before: list[dict[str, object]]
    output: str

    @property
    def campaign(self) -> str:
        return str(json.loads((self.out / "campaign.json").read_text())["name"])

    @property
    def journal(self) -> Path:
        return self.out / JOURNAL


def ended(journal: Path) -> list[dict[str, object]]:
    """The events of a journal that say how a job ended."""
    lines = journal.read_text().splitlines(keepends=True) if journal.is_file() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if "record" in event]


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes that run below this home: by their command line or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and (
                any(str(home) in part for part in process.cmdline()) or str(home) in str(process.environ().values())
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_until(command: list[str], happened: Callable[[], bool], what: str) -> subprocess.Popen[str]:
    """Start a quickstart, and return it as soon as that has happened in it."""
    # Where the tests run in the background of a shell, what they start would ignore the interrupt.
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts
    )
    deadline = time.monotonic() + 240
    while not happened():
        assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""
        assert time.monotonic() < deadline, f"{what} in time"
        time.sleep(0.1)
    return driver


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One home for all: what is prepared once need not be prepared again to be interrupted, or to be killed."""
    folder = tmp_path_factory.mktemp("loop")
    home, out = folder / "home", folder / "out"
    journal = out / JOURNAL
    phantom = make_phantom(PhantomParameters(output=str(folder / "em"), shape=(40, 96, 96), seed=3), silent)
    command = [*ENSEMBLE, "quickstart", "--home", str(home), "--out", str(out), "--trials", str(TRIALS)]
    command += ["--data", phantom.image, "--labels", phantom.labels, "--search", str(SEARCH), "--workers", "2"]

    def submitted() -> bool:
        return journal.is_file() and "submitted" in journal.read_text()

    driver = start_until(command, submitted, "no trial was submitted")
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    left = [" ".join(process.cmdline()) for process in processes_of(home)]
    interrupted = Interrupted(driver.returncode, output, left, len(Ledger(journal).open_trials()))

    driver = start_until(command, lambda: bool(ended(journal)), "no trial ended")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = ended(journal)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return Run(home, out, interrupted, before, finished.stdout + finished.stderr)


pytestmark = [pytest.mark.slow, pytest.mark.service]


def test_interrupt_leaves_nothing_running_and_the_journal_whole(run: Run) -> None:
    assert run.interrupted.code == 130
    assert "run the same command again to continue" in run.interrupted.output
    assert run.interrupted.left_running == []
    assert run.interrupted.open_trials > 0


def test_finished_trials_were_not_run_again(run: Run) -> None:
    after = ended(run.journal)
    assert len(run.before) < TRIALS
    assert after[: len(run.before)] == run.before
    assert sorted(int(str(event["trial"])) for event in after if event["rung"] == 0) == list(range(TRIALS))
    assert len({(event["trial"], event["rung"]) for event in after}) == len(after)
    assert len({event["job_id"] for event in after}) == len(after)


def test_some_trials_were_promoted_and_went_on_from_their_checkpoint(run: Run) -> None:
    after = ended(run.journal)
    promoted = {event["trial"] for event in after if event["rung"] == 1}
    assert 0 < len(promoted) < TRIALS
    table = pd.read_parquet(run.out / "results.parquet").set_index("trial")
    went_on = table.index.isin([int(str(trial)) for trial in promoted])
    assert list(table["job_status"]) == ["DONE" if on else "STOPPED" for on in went_on]
    for column in ("m:steps", "m:budget"):
        assert list(table[column]) == [20 if on else 10 for on in went_on]


def test_table_holds_every_trial_with_scores_and_cost(run: Run) -> None:
    table = pd.read_parquet(run.out / "results.parquet")
    assert list(table["trial"]) == list(range(TRIALS))
    failures = table.loc[
        table["job_status"] == "FAILED", [c for c in table.columns if c.startswith(("p:", "m:failure"))]
    ]
    assert failures.empty, failures.to_string()
    columns = ["m:vi", "m:vi_split", "m:vi_merge", "m:adapted_rand_error", "m:f1", "m:node_hours_per_gigavoxel"]
    assert table[columns].notna().all().all()
    assert (table["objective"] == -table["m:vi"]).all()
    assert (table["m:timestamp_end"] > table["m:timestamp_start"]).all()


def test_selected_model_is_registered_and_deployed(run: Run) -> None:
    model = find_model(run.home, f"{run.campaign}@champion")
    table = pd.read_parquet(run.out / "results.parquet")
    assert model.row["m:vi"] == pytest.approx(float(table.loc[table["trial"] == model.row["trial"], "m:vi"].iloc[0]))
    (segmentation,) = (run.out / "deployed").glob("*[0-9].zarr")
    data = json.loads((run.out / "data.json").read_text())
    assert open_volume(str(segmentation)).shape == tuple(data["test_box"]["shape"])
    assert "one object" in run.output


def test_report_has_the_deployments_score_and_pictures(run: Run) -> None:
    (report,) = run.out.glob("*.html")
    text = report.read_text()
    assert "data:image/png;base64," in text
    records = list((run.home / "sites").glob("*/data/*/deploy/*/evaluation/result.json"))
    scores = json.loads(records[0].read_text())["result"]["scores"]
    assert f"{scores['vi']:.2f}" in text


def test_nothing_is_left_running(run: Run) -> None:
    assert processes_of(run.home) == []


def test_stock_balsam_commands_show_the_campaign(run: Run) -> None:
    subprocess.run([*ENSEMBLE, "service", "start", "--home", str(run.home)], check=True, capture_output=True)
    try:
        exports = subprocess.run(
            [*ENSEMBLE, "service", "env", "--home", str(run.home)], check=True, capture_output=True, text=True
        ).stdout

        def balsam(arguments: str) -> str:
            script = f"{exports}\nbalsam {arguments}"
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        jobs = balsam(f"job ls --tag campaign={run.campaign}")
        assert jobs.count("JOB_FINISHED") >= TRIALS + 5
        trials = balsam(f"job ls --tag campaign={run.campaign} --tag stage=trial")
        assert trials.count("JOB_FINISHED") == len(ended(run.journal))
        assert "quickstart" in balsam("site ls")
        assert "Trial" in balsam("app ls")
    finally:
        subprocess.run([*ENSEMBLE, "service", "stop", "--home", str(run.home)], check=True, capture_output=True)
    assert processes_of(run.home) == []


def test_journal_is_readable_by_the_library(run: Run) -> None:
    assert len(Ledger(run.journal).final_trials()) == TRIALS
