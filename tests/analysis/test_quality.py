"""The table of quality, what it says of held sections, and the page."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import pictures
from analysis.plots.quality import measure_against_error, measure_over_sections, states_by_step
from analysis.quality import (
    COLUMNS,
    check_quality_table,
    count_states,
    hold_reasons,
    join_errors,
    load_quality_table,
    named_sections,
    rank_correlations,
    section_states,
    worst_sections,
)
from analysis.quality_page import MOST_HELD, costs_table, headline, held_table
from tests.analysis.test_report import Page

GATES = {"overlap_correlation": ("higher", "", 0.5), "seam_residual": ("lower", "px", 1.0)}


def row(section: int, measure: str | None = None, value: float | None = None, **others: Any) -> dict[str, Any]:
    better, unit, threshold = GATES.get(measure or "", (None, None, None))
    passed = None
    if value is not None and threshold is not None:
        passed = value >= threshold if better == "higher" else value <= threshold
    return {
        "step": "tiles", "stage": "montage", "section": section, "measure": measure, "value": value, "unit": unit,
        "better": better, "threshold": threshold, "passed": passed, "state": "passed", "description": "what it is",
        "faults": None,
    } | others  # fmt: skip


def sample() -> pd.DataFrame:
    """Sections 0 (passed), 1 (held by both measures), 2 (accepted), 3 (failed) of one step; 0 waits at the next."""
    rows = []
    for section, (correlation, residual), state in (
        (0, (0.9, 0.2), "passed"),
        (1, (0.3, 4.0), "held"),
        (2, (0.4, 0.3), "accepted"),
    ):
        rows.append(row(section, "overlap_correlation", correlation, state=state))
        rows.append(row(section, "seam_residual", residual, state=state))
    rows.append(row(3, state="failed", faults="tile <a> is missing"))
    rows.append(row(0, step="volume", stage="alignment", state="waiting"))
    return pd.DataFrame(rows)


def large(count: int) -> pd.DataFrame:
    """Many sections, every tenth of which is held."""
    rows = []
    for section in range(count):
        held = section % 10 == 3
        value = 0.2 if held else 0.8 + 0.001 * (section % 7)
        rows.append(row(section, "overlap_correlation", value, state="held" if held else "passed"))
    return pd.DataFrame(rows)


def test_a_table_survives_csv(tmp_path: Path) -> None:
    table = check_quality_table(sample())
    sample().to_csv(tmp_path / "quality.csv", index=False)
    loaded = load_quality_table(tmp_path / "quality.csv")
    pd.testing.assert_frame_equal(loaded, table)
    assert loaded["passed"].tolist() == [True, True, False, False, False, True, None, None]
    assert loaded["section"].dtype == np.int64 and loaded["value"].dtype == np.float64
    assert list(loaded.loc[6, ["measure", "unit", "faults"]]) == ["", "", "tile <a> is missing"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("state", "fine", "step tiles, section 0: state 'fine'; expected passed, held"),
        ("better", "more", "better 'more'; expected higher, lower"),
        ("section", 1.5, "whole numbers"),
        ("section", None, "whole numbers"),
        ("section", -1, "whole numbers"),
        ("value", "much", "column value"),
        ("passed", "perhaps", "'perhaps'; expected true, false"),
    ],
)
def test_a_wrong_table_is_said(tmp_path: Path, column: str, value: Any, message: str) -> None:
    table = sample().astype({column: object})
    table.loc[0, column] = value
    table.to_csv(tmp_path / "quality.csv", index=False)
    with pytest.raises(analysis.AnalysisError, match=re.escape(message)) as raised:
        load_quality_table(tmp_path / "quality.csv")
    assert "quality.csv" in str(raised.value)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(analysis.AnalysisError, match="no such file"):
        load_quality_table(tmp_path / "none.csv")
    with pytest.raises(analysis.AnalysisError, match="without threshold; expected the columns step"):
        check_quality_table(sample().drop(columns="threshold"))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(analysis.AnalysisError, match="cannot be read as CSV"):
        load_quality_table(tmp_path / "empty.csv")


def test_a_section_has_one_state_and_each_measure_once() -> None:
    with pytest.raises(analysis.AnalysisError, match="section 0: 'overlap_correlation' twice"):
        check_quality_table(pd.concat([sample(), sample().iloc[:1]]))
    table = sample()
    table.loc[1, "state"] = "held"
    with pytest.raises(analysis.AnalysisError, match="section 0: more than one state"):
        check_quality_table(table)


def test_why_sections_are_held() -> None:
    reasons = hold_reasons(sample())
    assert reasons["section"].tolist() == [1, 1]
    assert reasons["reason"].tolist() == [
        "overlap correlation is 0.300; its gate wants at least 0.500",
        "seam residual is 4 px; its gate wants at most 1 px",
    ]
    both = hold_reasons(sample(), ("held", "accepted"))
    assert both[both["state"] == "accepted"]["measure"].tolist() == ["overlap_correlation"]
    assert hold_reasons(sample().iloc[:2]).empty


def test_why_sections_without_a_failing_measure_are_held() -> None:
    table = pd.DataFrame(
        [
            row(0, "seam_residual", None, state="held", passed=False),
            row(1, "seam_residual", 0.1, state="held", faults="no pair could be matched"),
            row(2, state="held"),
        ]
    )
    assert hold_reasons(table)["reason"].tolist() == [
        "seam residual could not be measured; its gate wants at most 1 px",
        "no pair could be matched",
        "held by the workflow; no measure of it failed",
    ]


def test_states_are_counted_by_step() -> None:
    table = check_quality_table(sample())
    counts = count_states(table).set_index("step")
    assert list(counts.index) == ["tiles", "volume"]
    assert list(counts.loc["tiles"]) == ["montage", 4, 1, 1, 1, 1, 0, 0]
    assert list(counts.loc["volume"]) == ["alignment", 1, 0, 0, 0, 0, 0, 1]
    assert section_states(table)["section"].tolist() == [0, 1, 2, 3, 0]
    assert headline(table) == (
        "0 of 4 sections went through tiles and volume. Of the others: 1 held and 1 failed at tiles; 1 waiting at "
        "volume. 1 section accepted by a person."
    )
    assert headline(table[table["state"] == "passed"]) == "1 of 1 section went through tiles."


def test_the_worst_sections_held_ones_first() -> None:
    table = check_quality_table(sample())
    assert worst_sections(table, "tiles", 2) == [1, 2]
    assert worst_sections(table, "tiles", 9) == [1, 2, 0], "section 3 has nothing measured"
    assert worst_sections(table, "volume", 3) == []
    open_ones = check_quality_table(
        pd.DataFrame([row(n, "seam_residual", value) for n, value in enumerate((0.3, 0.9, 0.1))])
    )
    assert worst_sections(open_ones, "tiles", 3) == [1, 0, 2]


def test_rank_correlation_is_one_where_the_order_is_the_same() -> None:
    table = check_quality_table(large(20))
    errors = pd.DataFrame({"step": "tiles", "section": range(20), "error": -(table["value"].to_numpy() ** 3)})
    found = rank_correlations(table, errors)
    assert found.iloc[0]["correlation"] == pytest.approx(1.0) and found.iloc[0]["sections"] == 20
    errors["error"] *= -1
    assert rank_correlations(table, errors).iloc[0]["correlation"] == pytest.approx(-1.0)
    # By hand: ranks 1 2 3 against 1 3 2 have a correlation of 1/2.
    three = check_quality_table(pd.DataFrame([row(n, "seam_residual", n / 10) for n in range(3)]))
    errors = pd.DataFrame({"step": "tiles", "section": range(3), "error": [1.0, 3.0, 2.0]})
    assert rank_correlations(three, errors).iloc[0]["correlation"] == pytest.approx(0.5)
    assert np.isnan(rank_correlations(three, errors.assign(error=1.0)).iloc[0]["correlation"])
    assert rank_correlations(three, errors.assign(step="other")).empty
    with pytest.raises(analysis.AnalysisError, match="without error"):
        rank_correlations(three, errors.drop(columns="error"))


def test_numbers_in_words() -> None:
    assert named_sections([7, 3, 5, 6, 12]) == "3, 5–7, 12"
    assert named_sections(range(0, 40, 2), most=3) == "0, 2, 4 and 17 more"
    assert named_sections([]) == ""


def accept(step: str, sections: Any) -> str:
    return f"accept {step} {','.join(map(str, sections))}"


def test_held_sections_have_their_command() -> None:
    found = held_table(check_quality_table(sample()), accept)
    assert found is not None
    assert [line.cells for line in found.rows] == [
        ("1", "tiles", "held", "overlap correlation", "0.300", "at least 0.500", "accept tiles 1"),
        ("", "", "", "seam residual", "4 px", "at most 1 px", ""),
        ("2", "tiles", "accepted", "overlap correlation", "0.400", "at least 0.500", ""),
    ]
    assert held_table(check_quality_table(sample().iloc[:2])) is None
    many = held_table(check_quality_table(large(1000)), accept)
    assert many is not None and len(many.rows) == MOST_HELD
    assert many.notes == (
        "And of tiles, not shown: sections 603, 613, 623, 633, 643, 653, 663, 673, 683, 693, 703, 713 and 28 more.",
    )


def test_costs_are_summed() -> None:
    lines = (analysis.StepLine("a", "montage", 4, 3, 1, 0, 60.0), analysis.StepLine("b", "alignment", 2, 0, 0, 1, 0.0))
    table = costs_table(lines)
    assert table is not None
    assert table.rows[0].cells == ("a", "montage", "4", "3", "1", "0", "60", "20")
    assert table.rows[1].cells[-1] == "–"
    assert table.rows[2].cells == ("all", "", "6", "3", "1", "1", "60", "")
    assert costs_table(()) is None


def test_a_plot_says_what_its_gate_held() -> None:
    figure = measure_over_sections(check_quality_table(large(2000)))
    axes = figure.axes[0]
    assert axes.get_ylabel() == "overlap correlation"
    drawn = {str(made.get_label()): np.asarray(made.get_offsets()) for made in axes.collections}
    assert drawn["held"][:, 0].tolist() == list(range(3, 2000, 10)) and len(drawn["passed"]) == 1800
    (line,) = [line for line in axes.lines if line.get_label() == "worst that passes"]
    assert (np.asarray(line.get_ydata()) == 0.5).all()
    assert 1 <= len(axes.texts) <= 8, "held sections are named together where they are many"


@pytest.mark.parametrize("count", [1, 16, 2000])
def test_names_of_held_sections_do_not_overlap(count: int) -> None:
    table = large(count)
    if count < 20:
        table["state"], table["value"], table["passed"] = "held", 0.1, False
    figure = measure_over_sections(check_quality_table(table))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [said.get_window_extent(canvas.get_renderer()) for said in figure.axes[0].texts]
    assert boxes and all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    legend = figure.legends[0].get_window_extent(canvas.get_renderer())
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1


def test_plots_of_odd_values() -> None:
    rows = [row(n, "seam_residual", value, state="held") for n, value in enumerate((0.0, 0.1, 5000.0, None))]
    figure = measure_over_sections(check_quality_table(pd.DataFrame(rows)))
    assert figure.axes[0].get_yscale() == "symlog", "0 is shown, and so is what is far beyond the threshold"
    assert any(made.get_label() == "no value" for made in figure.axes[0].collections)
    alike = [row(n, "folds", 0.0, better="lower", threshold=0.0) for n in range(4)]
    low, high = measure_over_sections(check_quality_table(pd.DataFrame(alike))).axes[0].get_ylim()
    assert low < 0 < high and high >= 1
    infinite = [row(0, "seam_residual", np.inf, state="held"), row(1, "seam_residual", None)]
    pictures.figure_uri(measure_over_sections(check_quality_table(pd.DataFrame(infinite))))


def test_a_single_held_section_of_many_is_seen() -> None:
    table = check_quality_table(large(2000))
    figure = states_by_step(table)
    left, right = figure.axes[0].get_xlim()
    held = [made for made in figure.axes[0].collections if made.get_zorder() == 4]
    widths = [np.ptp(np.asarray(path.vertices)[:, 0]) for made in held for path in made.get_paths()]
    assert len(widths) == 200 and min(widths) >= 0.0025 * (right - left)
    errors = pd.DataFrame({"step": "tiles", "section": range(2000), "error": 1.0})
    joined = join_errors(table, errors)
    assert np.shape(measure_against_error(joined).axes[0].collections[0].get_offsets()) == (2000, 2)


def test_the_page_is_whole_and_needs_no_other_file(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    page = analysis.QualityPage(
        title="pipeline <p>",
        table=sample(),
        accept=accept,
        steps=(analysis.StepLine("tiles", "montage", 4, 3, 1, 0, 60.0),),
        pictures=(analysis.QualityPicture("section 1", "before and after", (tmp_path / "p.png").read_bytes()),),
        missing_pictures=("section 2: no picture (gone).",),
        errors=pd.DataFrame({"step": "tiles", "section": range(3), "error": [0.1, 5.0, 0.7]}),
        honest=("A phantom is no tissue.",),
        provenance={"seed": 7},
        commands=(("balsam job ls --tag campaign=p", "its jobs"),),
    )
    path = analysis.write_quality_page(tmp_path / "quality.html", page)
    text = path.read_text()
    addresses = Page(text).addresses
    assert len(addresses) == 1 + 1 + 2 + 2, "states, a picture, two measures, two against the true error"
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    for said in (
        "pipeline &lt;p&gt;", "accept tiles 1", "tile &lt;a&gt; is missing", "before and after", "no picture (gone)",
        "A phantom is no tissue.", "balsam job ls --tag campaign=p", "rank correlation with the true error",
        "its gate wants at least 0.500", "node time (s)", "--accent",
    ):  # fmt: skip
        assert said in text
    assert analysis.write_quality_page(tmp_path / "again.html", page).read_bytes() == path.read_bytes()
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".partial")]


def test_a_page_with_little_on_it(tmp_path: Path) -> None:
    for table in (pd.DataFrame(columns=list(COLUMNS)), sample().iloc[:0], sample().iloc[-1:], sample().iloc[6:7]):
        page = analysis.QualityPage(title="t", table=table)
        text = analysis.write_quality_page(tmp_path / "page.html", page).read_text()
        Page(text)
        assert "Held by a gate" not in text and "Jobs and time" not in text
    assert "No section has been through a step yet." in analysis.quality_page.render_quality_page(
        analysis.QualityPage(title="t", table=sample().iloc[:0])
    )


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    wrong = analysis.QualityPage(title="t", table=sample(), pictures=(analysis.QualityPicture("p", "", b"JFIF"),))
    with pytest.raises(analysis.AnalysisError, match="picture 'p': 4 bytes that are no PNG"):
        analysis.write_quality_page(path, wrong)
    assert path.read_text() == "old"
    with pytest.raises(analysis.AnalysisError, match="cannot be written"):
        analysis.write_quality_page(tmp_path / "none" / "page.html", analysis.QualityPage("t", sample()))
