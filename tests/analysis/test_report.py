"""The report page."""

from __future__ import annotations

import html.parser
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import tables
from tests.analysis.samples import FAILURES, search_table
from tests.analysis.test_results import trial, write

NAMES = ("vi", "vi_split", "vi_merge", "adapted_rand_error", "filled_fraction", "objects")


def scores(*values: float) -> dict[str, float]:
    return dict(zip(NAMES, values, strict=True))


TRIVIAL = {
    "one_object": scores(2.5, 0.0, 2.5, 0.6, 1.0, 1),
    "nothing": scores(2.5, 0.0, 2.5, 0.6, 0.0, 0),
    "threshold": scores(1.5, 0.9, 0.6, 0.7, 0.4, 9),
}
MODEL = scores(0.75, 0.5, 0.25, 0.65, 0.9, 12)
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order, and collects addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def content(folder: Path) -> analysis.ReportContent:
    curve = folder / "curves.csv"
    pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0], "f1": [0.1, 0.5]}).to_csv(curve, index=False)
    times: dict[str, Any] = {"m:timestamp_start": 1e9, "m:timestamp_end": 1e9 + 60, "p:batch_size": 8}
    file = write(
        folder,
        trial(0, 1.25, **times),
        trial(1, 0.8, 20.0, **times | {"m:curves": str(curve)}),
        trial(2, None, **times | {"m:failure_message": "loss <NaN> at step 7"}),
    )
    table = analysis.load_results(file)
    labels = np.repeat(np.arange(4), 5).reshape(1, 20).repeat(10, axis=0)
    image = np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)
    return analysis.ReportContent(
        title="campaign <c>",
        headline="Trial 1 is the best.",
        trials=table,
        selected=analysis.select(table),
        reason="the smallest VI",
        cost_bound=30.0,
        trivial=TRIVIAL,
        deployment=analysis.AccuracyTable({"the deployed model": MODEL}, TRIVIAL, "all of the volume"),
        pictures=(analysis.Picture("z = 3", image, labels, labels, "a caption"), analysis.Picture("bare", image)),
        costs=pd.DataFrame({"step": ["search"], "node-seconds": [123456.0]}),
        workers=2,
        honest=("A minute of training is not enough.",),
        provenance={"seed": 7},
        commands=(("balsam job ls --tag campaign=c", "its jobs"),),
    )


def test_the_page_is_whole_and_needs_no_other_file(tmp_path: Path) -> None:
    path = analysis.write_report(tmp_path / "report.html", content(tmp_path))
    text = path.read_text()
    page = Page(text)
    assert page.addresses, "it has pictures"
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert len(page.addresses) == 6 + 3 + 1, "six plots, three panels, one bare image"
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    for said in (
        "campaign &lt;c&gt;",
        "Trial 1 is the best.",
        "2 of 3 trials gave a result, 1 failed (diverged)",
        "the smallest VI",
        "loss &lt;NaN&gt; at step 7",
        "failed: diverged",
        "A minute of training is not enough.",
        "balsam job ls --tag campaign=c",
        "123\u2009456",
        "The same in all trials: batch size 8.",
    ):
        assert said in text
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".partial")]


def test_trivial_answers_stand_in_every_accuracy_table(tmp_path: Path) -> None:
    text = (analysis.write_report(tmp_path / "report.html", content(tmp_path))).read_text()
    accuracy = [part for part in text.split("<table")[1:] if "VI (bits)" in part.split("</table>")[0]]
    assert len(accuracy) == 2
    for part in accuracy:
        assert all(name in part for name in tables.TRIVIAL_NAMES.values())


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    given = content(tmp_path)
    first = analysis.write_report(tmp_path / "a.html", given).read_bytes()
    assert analysis.write_report(tmp_path / "b.html", given).read_bytes() == first


def test_the_verdict_follows_from_the_numbers() -> None:
    better = tables.verdict(analysis.AccuracyTable({"the model": MODEL}, TRIVIAL))
    assert better.startswith("The model beats the best trivial answer in VI (bits): 0.750 against 1.500 (components")
    assert "it does not beat the best trivial answer in adapted Rand error: 0.650 against 0.600" in better
    same = tables.verdict(analysis.AccuracyTable({"the model": TRIVIAL["nothing"]}, TRIVIAL))
    assert same.startswith("The model does not beat")


def test_a_table_with_little_in_it(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, trial(0, None)))
    path = analysis.write_report(tmp_path / "r.html", analysis.ReportContent(title="t", headline="h", trials=table))
    Page(path.read_text())
    empty = analysis.ReportContent(title="t", headline="h", trials=table.iloc[:0])
    Page(analysis.write_report(path, empty).read_text())


def without_result(state: str, failure: str | None) -> pd.DataFrame:
    """Trials of which none has a value."""
    table = search_table(30)
    table["job_status"], table["m:vi"], table["m:failure"] = state, np.nan, failure
    return table


@pytest.mark.parametrize(
    ("table", "plots"),
    [
        # scatter, trajectory, hypervolume, importance, parallel, utilisation, outcomes, and objectives or rungs
        (search_table(30, objectives=3), 8),
        (search_table(30, rungs=3), 8),
        (without_result("FAILED", "bug"), 2),
        (without_result("RUNNING", None), 2),
    ],
    ids=["three objectives", "rungs", "all failed", "all running"],
)
def test_tables_of_every_kind_have_a_page(tmp_path: Path, table: pd.DataFrame, plots: int) -> None:
    given = analysis.ReportContent(title="t", headline="h", trials=table, trivial=TRIVIAL)
    text = analysis.write_report(tmp_path / "r.html", given).read_text()
    assert len(Page(text).addresses) == plots


def test_four_thousand_trials_make_a_small_page(tmp_path: Path) -> None:
    table = search_table(4000, rungs=3, objectives=2, workers=512)
    pick = analysis.select_under_budget(table, 1e9, 20.0)
    given = analysis.ReportContent(title="t", headline="h", trials=table, selected=pick.row, pick=pick)
    path = analysis.write_report(tmp_path / "r.html", given)
    assert path.stat().st_size < 700_000
    text = path.read_text()
    Page(text)
    for said in (
        "stopped at a smaller budget",
        "chance of being the best",
        "is to be expected of it",
        "bad configuration",
    ):
        assert said in text


def test_failures_are_told_by_kind() -> None:
    table = search_table(120)
    shown = tables.failures_table(table)
    assert shown is not None
    assert [row.cells[0] for row in shown.rows] == sorted(kind.replace("_", " ") for kind in FAILURES)
    assert sum(int(row.cells[1]) for row in shown.rows) == table["m:failure"].notna().sum()
    assert "diverged at step 15" in next(row for row in shown.rows if row.cells[0] == "diverged").cells[2]
    long = table.assign(**{"m:failure_message": "x" * 5000})
    cut = tables.failures_table(long)
    assert cut is not None and len(cut.rows[0].cells[2]) == tables.LONGEST_MESSAGE
    assert tables.failures_table(table[table["job_status"] == "DONE"]) is None


def test_stopped_trials_come_below_finished_ones() -> None:
    table = search_table(30, rungs=3)
    table.loc[table["job_status"] == "STOPPED", "m:vi"] = 0.01  # of a smaller budget: no reason to lead
    shown = tables.trials_table(table, None, "m:vi", True, "m:node_hours_per_gigavoxel", {})
    states = [row.cells[1].split(":")[0] for row in shown.rows]
    assert states == sorted(states, key=["done", "stopped", "failed"].index)
    assert "budget" in shown.heads
    counted = tables.count_states(table)
    assert f"{states.count('stopped')} stopped at a smaller budget" in counted
    assert "not ended" in tables.count_states(table.assign(job_status="PAUSED"))


def test_long_tables_are_cut(tmp_path: Path) -> None:
    table = analysis.load_results(write(tmp_path, *(trial(i, 1.0 + i / 100) for i in range(60))))
    shown = tables.trials_table(table, None, "m:vi", True, "m:node_hours_per_gigavoxel", {})
    assert len(shown.rows) == tables.LARGEST_TABLE
    assert shown.rows[0].cells[0] == "0"
    assert "The best 40 of 60 trials" in shown.notes[0]


def test_an_unwritable_place_and_a_bad_picture_leave_nothing(tmp_path: Path) -> None:
    given = content(tmp_path)
    with pytest.raises(analysis.AnalysisError, match="cannot be written"):
        analysis.write_report(tmp_path / "missing" / "report.html", given)
    bad = analysis.Picture("z = 9", np.zeros((4, 4)), np.zeros((4, 5), int))
    with pytest.raises(analysis.AnalysisError, match="picture 'z = 9': labels of shape"):
        analysis.write_report(tmp_path / "report.html", replace(given, pictures=(bad,)))
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (12345, "12\u2009345"),
        (0.0, "0"),
        (0.00041234, "0.000412"),
        (1.23456, "1.235"),
        (45.678, "45.7"),
        (1234.5, "1\u2009234"),
        (3.2e9, "3.2e+09"),
        ("adam", "adam"),
    ],
)
def test_cells(value: Any, text: str) -> None:
    assert tables.text(value) == text
