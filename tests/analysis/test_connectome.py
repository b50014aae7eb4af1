"""The page of a connectome, from what the stage writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.connectome import load_connectome
from analysis.connectome_page import (
    counts_table,
    edges_table,
    headline,
    hubs_table,
    kept_table,
    main,
    render_connectome_page,
    write_connectome_page,
)
from analysis.errors import AnalysisError
from analysis.plots import connectome as plots
from apps.connectome.stage import ConnectomeParameters, run
from apps.core.progress import silent
from apps.synapses.table import write_synapses
from tests.apps.connectome.samples import synapses

BIG = 2**53 + 1


def make(folder: Path, *pairs: tuple[int, int], confidence: tuple[float, ...] = (), **more: object) -> Path:
    write_synapses(folder / "found.parquet", synapses(*pairs, confidence=confidence))
    parameters = {"synapses": str(folder / "found.parquet"), "output": str(folder / "connectome"), **more}
    return Path(run(ConnectomeParameters.from_json(parameters), silent).output)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pairs = ((1, 2), (1, 2), (2, 1), (2, 3), (3, 4), (4, 2), (7, BIG), (1, 0), (9, 1))
    return make(tmp_path, *pairs, confidence=(*[0.8] * 8, 0.1), min_confidence=0.5)


def test_tables_by_hand(folder: Path) -> None:
    connectome = load_connectome(folder)
    assert headline(connectome) == "7 synapses make 6 directed edges between 6 of 6 neurons."
    rows = {row.cells[0]: row.cells[1] for row in counts_table(connectome).rows}
    assert (rows["reciprocity"], rows["weak components"], rows["strong components"]) == ("0.333", "2", "3")
    assert rows["synapses of an edge"] == "1.167"
    first, *others = edges_table(connectome).rows
    assert first.cells == ("1", "2", "2", "0.800", "yes")
    assert [row.cells[:2] for row in others] == [("2", "1"), ("2", "3"), ("3", "4"), ("4", "2"), ("7", str(BIG))]
    assert hubs_table(connectome).rows[0].cells[:5] == ("2", "2", "2", "3", "2")
    kept = {row.cells[0]: row.cells[1] for row in kept_table(connectome).rows}
    assert kept == {
        "left out: a confidence below 0.5": "1",
        "left out: a partner is not known": "1",
        "in the graph": "7",
    }


def test_the_page_needs_no_other_file(folder: Path) -> None:
    path = write_connectome_page(folder, title="A <small> one")
    assert path == folder / "page.html"
    page = path.read_text()
    assert "A &lt;small&gt; one" in page
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert str(BIG) in page
    assert "min_confidence" in page


def test_large_graphs_are_cut_and_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in rng.integers(1, 200, (500, 2)) if a != b]
    connectome = load_connectome(make(tmp_path, *pairs, triad_edges=10))
    monkeypatch.setattr(plots, "MOST_DRAWN", 10)
    monkeypatch.setattr(plots, "MOST_IN_MATRIX", 160)
    graph = connectome.graph(10)
    wired = connectome.wired
    assert set(graph) == set(wired["id"].head(10))
    assert wired["partners"].is_monotonic_decreasing
    page = render_connectome_page(connectome, tmp_path)
    assert "The graph of the 10 neurons of most partners" in page
    assert "Synapses between the 160 neurons of most partners" in page
    assert "Triads were not counted" in page
    assert "more, in edges.parquet" in page
    assert page.count("data:image/png;base64,") == 4


def test_the_drawing_keeps_components_apart(folder: Path) -> None:
    graph = load_connectome(folder).graph()
    places = plots._layout(graph)
    one, other = (np.array([places[node] for node in part]) for part in ((1, 2, 3, 4), (7, BIG)))
    assert one.max(axis=0)[0] < other.min(axis=0)[0] or one.min(axis=0)[1] > other.max(axis=0)[1]
    assert len({tuple(place) for place in places.values()}) == 6
    assert all(np.array_equal(places[node], again) for node, again in plots._layout(graph).items())


def test_nothing_found(tmp_path: Path) -> None:
    page = write_connectome_page(make(tmp_path)).read_text()
    assert "No synapse joins any of the 0 neurons." in page
    assert "data:image/png" not in page


def test_neurons_onto_themselves_have_no_arrow(tmp_path: Path) -> None:
    connectome = load_connectome(make(tmp_path, (1, 1), (1, 2), autapses=True))
    arrows = [text for text in plots.drawing(connectome, 10).axes[0].texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 1


def test_what_is_no_connectome_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path)
    assert main([str(folder), "--output", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a.html")
    assert main([str(tmp_path / "none")]) == 2
    assert "neurons.parquet: no such file; expected the folder" in capsys.readouterr().err
    (folder / "summary.json").write_text(json.dumps({"graph": {}}))
    with pytest.raises(AnalysisError, match=r"summary.json: is no summary of a connectome"):
        load_connectome(folder)
    edges = folder / "edges.parquet"
    edges.write_text("no Parquet")
    with pytest.raises(AnalysisError, match=r"edges.parquet: is no Parquet table"):
        load_connectome(folder)
    pd.DataFrame({"pre": [1]}).to_parquet(edges)
    with pytest.raises(AnalysisError, match=r"edges.parquet: lacks the columns post, synapses, confidence"):
        load_connectome(folder)
