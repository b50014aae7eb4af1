"""Two `ensemble search run --shared` on a real Balsam service, one of which is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from apps.core.progress import silent
from apps.phantom.stage import PhantomParameters
from apps.phantom.stage import run as make_phantom
from ensemble import service
from ensemble.campaigns import open_campaign
from ensemble.job_requests import fetch_jobs
from ensemble.search.ledger import TrialState
from ensemble.search.run import SearchRun
from ensemble.search.seats import held_seats
from tests.conftest import RunningService

TRIALS = 14
# Trials that only take time, and are the better the larger x.
SEARCH = """
from deephyper.hpo import HpProblem
from apps.simulation.stage import SimulationParameters
from ensemble.search import Search

problem = HpProblem()
problem.add_hyperparameter((0.0, 1.0), "x")
search = Search(
    problem=problem,
    parameters=lambda trial: SimulationParameters(
        seconds=0.5 * trial.budget, objectives=(trial.configuration["x"] + trial.budget,)
    ),
    objective=lambda result: result["objectives"][0],
    stage="simulation",
    optimizer="random",
    rungs=(1, 3),
)
"""

pytestmark = [pytest.mark.slow, pytest.mark.service]


def test_two_drivers_share_a_search_and_one_finishes_it(balsam_service: RunningService, tmp_path: Path) -> None:
    home = balsam_service.home
    file = tmp_path / "timed.py"
    file.write_text(SEARCH)
    volumes = make_phantom(PhantomParameters(output=str(tmp_path / "em"), shape=(24, 60, 48), seed=3), silent)
    command = [sys.executable, "-m", "ensemble.cli.main", "search", "run", str(file), "--campaign", "shared"]
    command += ["--site", balsam_service.site.name, "--workers", "2", "--trials", str(TRIALS), "--home", str(home)]
    command += ["--data", volumes.image, "--labels", volumes.labels, "--shared"]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    try:
        journal = home / "campaigns" / "shared" / "searches" / "timed" / "journal.jsonl"
        deadline = time.monotonic() + 120
        while not {0, 1} <= {event["driver"] for event in events(journal) if event["event"] == "submitted"}:
            ended = [driver for driver in drivers if driver.poll() is not None]
            assert not ended, ended[0].communicate()[0]
            assert time.monotonic() < deadline, "not both drivers have submitted trials"
            time.sleep(0.1)
        assert held_seats(journal.parent) == [0, 1]
        drivers[0].send_signal(signal.SIGKILL)  # at once: the search is not long, and a command takes seconds to start
        alone = [argument for argument in command if argument != "--shared"]
        refused = subprocess.run(alone, capture_output=True, text=True, timeout=60)
        assert (refused.returncode, "--shared" in refused.stderr) == (2, True), refused.stderr
        output, _ = drivers[1].communicate(timeout=180)
    finally:
        for driver in drivers:
            driver.kill()
            driver.wait()
    assert drivers[1].returncode == 0, output
    campaign = open_campaign(home, "shared")
    ledger = SearchRun(campaign, "timed").ledger()
    assert len(ledger.trials) == TRIALS
    assert {trial.state for trial in ledger.trials} <= {TrialState.DONE, TrialState.STOPPED}
    assert {trial.suggested_by for trial in ledger.trials} == {0, 1}
    assert any(event["event"] == "taken over" for event in events(journal))
    # Every attempt that the journal knows is one job of Balsam, and there is no other.
    submitted = sorted(
        f"search/timed/trial-{e['trial']:04d}/rung-{e['rung']}/attempt-{e['attempt']}"
        for e in events(journal)
        if e["event"] == "submitted"
    )
    service.connect(home)
    jobs = fetch_jobs({"tags": [f"campaign:{campaign.name}", f"campaign_uid:{campaign.uid}"]})
    keys = sorted(str(job["tags"]["task"]) for job in jobs)
    assert [key for key in keys if key.startswith("search/")] == submitted
    assert len(set(keys)) == len(keys), "the data was prepared once"


def events(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of the journal that speak of trials."""
    text = journal.read_text() if journal.is_file() else ""
    found = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [event for event in found if "trial" in event]
