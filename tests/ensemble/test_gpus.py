"""Which GPUs this machine has, and which of them a virtual node."""

from __future__ import annotations

from pathlib import Path

import pytest

from ensemble.gpus import machine_gpus, share_of_node


@pytest.mark.parametrize(
    ("named", "expected"),
    [("2,0", ["2", "0"]), (" GPU-3f2a , 1", ["GPU-3f2a", "1"]), ("", []), ("-1", []), ("1,-1,2", ["1"])],
)
def test_those_that_cuda_would_see(
    named: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "0000:17:00.0").mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine_gpus(tmp_path) == expected


def test_all_of_them_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine_gpus(tmp_path / "no driver") == []
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        (tmp_path / bus).mkdir()
    assert machine_gpus(tmp_path) == ["0", "1"]


@pytest.mark.parametrize(
    ("gpus", "nodes", "expected"),
    [
        ("", 2, [[], []]),
        ("01", 2, [["0"], ["1"]]),
        ("01234", 2, [["0", "2", "4"], ["1", "3"]]),
        ("01", 5, [["0"], ["1"], ["0"], ["1"], ["0"]]),
    ],
)
def test_shares(gpus: str, nodes: int, expected: list[list[str]]) -> None:
    assert [share_of_node(list(gpus), node, nodes) for node in range(nodes)] == expected
