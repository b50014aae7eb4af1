"""The clocks of simulated nodes, and how busy they say the nodes were."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.simulation.clocks import ClockFile, Span, all_busy_since, utilisation

SPANS = [Span("a", 1, 0.0, 10.0), Span("b", 2, 2.0, 6.0), Span("c", 1, 11.0, 12.0)]


def test_a_second_line_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    file, reader = ClockFile.of_site(tmp_path), ClockFile.of_site(tmp_path)
    reader.read()
    assert reader.spans == []
    file.append(Span("b", 1, 2.0, 50.0))
    file.append(Span("a", 1, 1.0, 9.0, True))
    reader.read()
    assert reader.spans == [Span("a", 1, 1.0, 9.0, True), Span("b", 1, 2.0, 50.0)]
    file.append(Span("b", 1, 2.0, 3.0))  # ended early
    file.append(Span("b", 1, 7.0, 8.0))  # started again
    reader.read()
    assert reader.spans[1:] == [Span("b", 1, 2.0, 3.0), Span("b", 1, 7.0, 8.0)]


def test_a_line_that_is_being_written_is_read_later(tmp_path: Path) -> None:
    path = tmp_path / "clocks.jsonl"
    reader = ClockFile(path)
    path.write_text('["a", 1, 1.0, 2.0, false]\n["b", 1, ')
    reader.read()
    assert [span.job for span in reader.spans] == ["a"]
    with path.open("a") as stream:
        stream.write("3.0, 4.0, false]\n")
    reader.read()
    assert [span.job for span in reader.spans] == ["a", "b"]


def test_when_all_nodes_had_work() -> None:
    assert all_busy_since(SPANS, 1) == 0.0
    assert all_busy_since(SPANS, 3) == 2.0
    assert all_busy_since(SPANS, 4) == 11.0
    assert all_busy_since(SPANS, 5) is None


def test_utilisation_by_hand() -> None:
    assert utilisation(SPANS, 3, 2.0, 12.0) == pytest.approx((8 + 2 * 4 + 1) / (3 * 10))
    assert utilisation(SPANS, 3, 5.0, 5.0) == 0.0
