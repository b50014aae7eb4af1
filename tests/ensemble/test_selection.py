"""Selecting under a budget, and the report of searches, from the command line; the table is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ensemble.search.table
from apps.core.errors import ParameterError
from ensemble.campaigns import Campaign, create_campaign, plan_campaign
from ensemble.cli.main import COMMANDS, _run
from ensemble.report import write_search_report
from ensemble.selection import Budget, select_trial
from tests.analysis.samples import search_table
from tests.ensemble.samples import campaign_data

VI, COST = "m:vi", "m:node_hours_per_gigavoxel"


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """A campaign with 40 trials of a search with rungs."""
    made = create_campaign(tmp_path, plan_campaign("demo"))
    made.save_data(campaign_data())
    show(monkeypatch, search_table(40, rungs=3, workers=4))
    return made


def show(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame) -> None:
    monkeypatch.setattr(ensemble.search.table, "campaign_table", lambda campaign: table)


def call(capsys: pytest.CaptureFixture[str], campaign: Campaign, command: str, *arguments: str) -> tuple[int, str, str]:
    home = str(campaign.folder.parent.parent)
    code = _run([command, campaign.name, "--home", home, *arguments], debug=False)
    captured = capsys.readouterr()
    return code or 0, captured.out, captured.err


def test_a_budget_for_a_volume_bounds_the_cost(campaign: Campaign) -> None:
    # 1e-6 mm^3 of (10 nm)^3 voxels are a gigavoxel.
    budget = Budget(1e-6, (10.0, 10.0, 10.0), 17.0)
    assert budget.voxels == pytest.approx(1e9)
    found = select_trial(campaign, VI, True, COST, None, budget)
    same = select_trial(campaign, VI, True, COST, 17.0)
    assert found.row == same.row and found.row["job_status"] == "DONE"
    assert found.pick is not None and found.pick.node_hours == pytest.approx(found.row[COST])
    assert "1e-06 mm^3 at 10x10x10 nm (zyx) within 17 node-hours, which is" in found.reason
    assert same.pick is None
    with pytest.raises(ParameterError, match="a bound on the cost and a budget: give one"):
        select_trial(campaign, VI, True, COST, 1.0, budget)
    with pytest.raises(ParameterError, match=r"campaign demo: no finished trial has .* it takes"):
        select_trial(campaign, VI, True, COST, None, Budget(1.0, (10.0, 10.0, 10.0), 1.0))


@pytest.mark.parametrize(
    ("volume", "size", "hours"), [(0.0, 10.0, 1.0), (1.0, 0.0, 1.0), (1.0, 10.0, 0.0), (1.0, 10.0, float("nan"))]
)
def test_budgets_that_cannot_be_are_refused(volume: float, size: float, hours: float) -> None:
    with pytest.raises(ParameterError, match=r"expected .*positive number"):
        Budget(volume, (size, 10.0, 10.0), hours)


def test_select_says_how_sure_it_is(campaign: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, campaign, "select", "--volume-mm3", "1e-6", "--node-hours", "25")
    assert code == 0
    assert "at 10x10x10 nm" in out, "the campaign's own voxel size"
    assert "node-hours at the measured speed; within the budget at" in out
    code, out, _ = call(
        capsys, campaign, "select", "--volume-mm3", "1e-6", "--node-hours", "25", "--voxel-size", "40,6,6"
    )
    assert code == 0 and "at 40x6x6 nm" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--volume-mm3", "1"], "give both --volume-mm3 and --node-hours"),
        (["--node-hours", "1"], "give both --volume-mm3 and --node-hours"),
        (["--volume-mm3", "-1", "--node-hours", "1"], "volume of -1.0 mm^3: expected a positive number"),
        (["--volume-mm3", "1", "--node-hours", "5", "--max-cost", "3"], "give one of them"),
        (["--volume-mm3", "1", "--node-hours", "5", "--voxel-size", "6,6"], "expected three numbers Z,Y,X"),
        (["--metric", "era"], "'m:era' is not a column"),
    ],
)
def test_select_refuses(
    campaign: Campaign, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, err = call(capsys, campaign, "select", *arguments)
    assert code == 2
    assert message in err


def test_the_report_of_a_search(campaign: Campaign, tmp_path: Path) -> None:
    selection = select_trial(campaign, VI, True, COST, None, Budget(1e-6, (10.0, 10.0, 10.0), 25.0))
    path = write_search_report(campaign, selection=selection)
    assert path == campaign.folder / "report.html"
    text = path.read_text()
    for said in (
        "variants were evaluated in search s; the best VI (bits) is",
        selection.reason.split(":")[0],
        "chance of being the best",
        "Trials that were stopped early have the values of their own budget, not of the full one (900).",
        "generated phantom",
    ):
        assert said in text


def test_the_report_of_a_search_without_results(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(COMMANDS, "report", ("ensemble.cli.results:report", "A page on the searches."))
    waiting = search_table(5).drop(columns=[VI, COST, "m:objects", "m:wall_seconds", "m:node_seconds"])
    waiting["job_status"], waiting["objective"], waiting["m:failure"] = "RUNNING", np.nan, None
    show(monkeypatch, waiting)
    out = tmp_path / "page.html"
    code, said, err = call(capsys, campaign, "report", "--out", str(out))
    assert code == 0 and said.strip() == str(out)
    assert "nothing is selected" in err
    assert "no trial has finished yet" in out.read_text()
    code, _, err = call(capsys, campaign, "report", "--metric", "era")
    assert code == 2 and "'m:era' is not a column" in err
    code, _, err = call(capsys, campaign, "report", "--out", str(tmp_path / "none" / "page.html"))
    assert code == 2 and "cannot be written" in err
    show(monkeypatch, waiting.iloc[:0])
    code, _, err = call(capsys, campaign, "report")
    assert code == 2 and "no trials yet; run a search first" in err
    page = campaign.folder / "report.html"  # as a pipeline writes it
    page.write_text("of a pipeline")
    code, _, err = call(capsys, campaign, "report")
    assert code == 2 and f"its report is {page}" in err and page.read_text() == "of a pipeline"


def test_a_search_without_vi_is_reported_by_its_objective(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    table = search_table(20).drop(columns=[VI, "m:vi_split", COST])
    show(monkeypatch, table)
    text = write_search_report(campaign).read_text()
    assert "the best objective is" in text
    assert "nothing segmented" not in text, "trivial answers are of VI"
