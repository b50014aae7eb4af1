"""The solver: which supervoxel is of which object, with its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError
from apps.core.progress import silent
from apps.reconciliation import batches
from apps.reconciliation.linking import LinkRule
from apps.reconciliation.observations import Observations
from apps.reconciliation.solution import Solution, SolutionRecord, Summary
from apps.reconciliation.solving import Rules, solve
from tests.apps.reconciliation.made import VOXEL_SIZE, digest, observe, sv

LOOSE = LinkRule(min_overlap_voxels=10, min_overlap_fraction=0.0, mutual_maximum=False)
# Three subvolumes in a row.  The second has gaps in its ids; object 3 of the first touches nothing.
ROW = observe(
    [[1, 2, 3], [2, 5, 9], [1]],
    {(0, 1): [(1, 5, 40), (2, 5, 8), (2, 9, 30)], (1, 2): [(2, 1, 5), (9, 1, 25)]},
)


def answer(
    observations: Observations, folder: Path, rule: LinkRule = LOOSE, cut: Any = (), forbidden: Any = (), **more: Any
) -> tuple[Summary, dict[int, int]]:
    """(what was counted, the object of each supervoxel)."""
    folder.mkdir()
    pairs = [np.array(list(given), np.uint64).reshape(-1, 2) for given in (cut, forbidden)]
    summary = solve(observations, Rules(rule, *pairs), folder, silent, **more)
    solution = Solution(folder, SolutionRecord(identity="", rules="", voxel_size_nm=VOXEL_SIZE, summary=summary))
    found: dict[int, int] = {}
    for number in range(len(observations)):
        local, objects = solution.mapping(number)
        found |= {sv(number, int(a)): int(b) for a, b in zip(local, objects, strict=True)}
    return summary, found


def test_a_row_by_hand(tmp_path: Path) -> None:
    summary, objects = answer(ROW, tmp_path / "solution")
    assert objects == {
        1: 1,
        2: 2,
        3: 3,
        sv(1, 2): sv(1, 2),
        sv(1, 5): 1,
        sv(1, 9): 2,
        sv(2, 1): 2,
    }, "an object has the smallest id of its supervoxels"
    assert (summary.observations, summary.links, summary.supervoxels, summary.objects) == (5, 3, 7, 4)
    assert (summary.both_voxels, summary.linked_voxels, summary.faces) == (108, 95, 2)
    assert summary.worst_face == (1, 2)
    assert summary.worst_agreement == pytest.approx(25 / 30)
    assert summary.mean_vi == pytest.approx(0.5)
    links = pd.read_parquet(tmp_path / "solution" / "links.parquet")
    assert links["a"].tolist() == [1, 2, 2, sv(1, 2), sv(1, 9)]
    assert links["b"].tolist() == [sv(1, 5), sv(1, 5), sv(1, 9), sv(2, 1), sv(2, 1)]
    assert links["a"].dtype == links["b"].dtype == np.uint64
    assert links["reason"].tolist() == ["", "few voxels", "", "few voxels", ""]
    assert links["linked"].tolist() == [True, False, True, False, True]
    assert list(zip(links["subvolume_a"], links["subvolume_b"], strict=True)) == [(0, 1)] * 3 + [(1, 2)] * 2
    table = pd.read_parquet(tmp_path / "solution" / "objects.parquet")
    assert table.to_dict("list") == {
        "object": [1, 2, 3, sv(1, 2)],
        "supervoxels": [2, 3, 1, 1],
        "own_voxels": [20, 30, 10, 10],
    }
    seams = pd.read_parquet(tmp_path / "solution" / "seams.parquet")
    assert seams["agreement"].tolist() == pytest.approx([70 / 78, 25 / 30])
    assert seams["links"].tolist() == [2, 1]


def test_a_cut_undoes_a_merge(tmp_path: Path) -> None:
    _, objects = answer(ROW, tmp_path / "solution", cut=[(sv(1, 9), sv(2, 1))])
    assert objects[sv(2, 1)] == sv(2, 1)
    assert objects[sv(1, 9)] == 2
    links = pd.read_parquet(tmp_path / "solution" / "links.parquet")
    assert links["reason"].tolist() == ["", "few voxels", "", "few voxels", "cut"]


@pytest.mark.parametrize("pair", [(1, 3), (sv(1, 9), sv(2, 2)), (sv(8, 1), sv(9, 1)), (1, sv(2, 1))])
def test_a_cut_of_what_is_no_link_is_named(tmp_path: Path, pair: tuple[int, int]) -> None:
    with pytest.raises(DataError, match=f"cut: the supervoxels {pair[0]} and {pair[1]} share no voxels"):
        answer(ROW, tmp_path / "solution", cut=[pair])


def test_forbidden_supervoxels_stay_apart(tmp_path: Path) -> None:
    summary, objects = answer(ROW, tmp_path / "one", forbidden=[(2, sv(2, 1))])
    assert objects[2] == objects[sv(1, 9)] == 2, "the stronger of the two links between them is kept"
    assert objects[sv(2, 1)] == sv(2, 1)
    assert (summary.refused, summary.links) == (1, 2)
    links = pd.read_parquet(tmp_path / "one" / "links.parquet")
    assert links["reason"].tolist() == ["", "few voxels", "", "few voxels", "forbidden"]
    assert objects[sv(1, 5)] == 1
    free, same = answer(ROW, tmp_path / "two", forbidden=[(1, 2)])
    assert (free.refused, same) == (0, answer(ROW, tmp_path / "three")[1])
    with pytest.raises(DataError, match=f"forbidden: there is no supervoxel {sv(1, 3)}"):
        answer(ROW, tmp_path / "four", forbidden=[(1, sv(1, 3))])


def random_row(rng: np.random.Generator, subvolumes: int = 14) -> tuple[Observations, nx.Graph[int]]:
    """Subvolumes in a row, with gaps in the ids of every third; and the graph of the links of at least 10 voxels."""
    graph: nx.Graph[int] = nx.Graph()
    objects = []
    for number in range(subvolumes):
        count = int(rng.integers(0, 12))
        ids = np.arange(1, count + 1) * (3 if number % 3 == 0 else 1)
        objects.append(ids.tolist())
        graph.add_nodes_from(sv(number, i) for i in ids.tolist())
    faces = {}
    for number in range(subvolumes - 1):
        for other in {number + 1, min(number + 4, subvolumes - 1)}:
            rows = [
                (a, b, int(rng.integers(1, 16))) for a in objects[number] for b in objects[other] if rng.random() < 0.15
            ]
            faces[number, other] = rows
            graph.add_edges_from((sv(number, a), sv(other, b)) for a, b, n in rows if n >= 10)
    return observe(objects, faces), graph


def test_random_rows_agree_with_networkx_whatever_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        observations, graph = random_row(np.random.default_rng(seed))
        expected = {node: min(part) for part in nx.connected_components(graph) for node in part}
        hashes = set()
        for size, window in ((3, 7), (40, 50), (1 << 20, 1 << 20)):
            monkeypatch.setattr(batches.read_batches, "__defaults__", (size,))
            folder = tmp_path / f"{seed}-{size}"
            summary, found = answer(observations, folder, window=window)
            assert found == expected
            assert summary.links == graph.number_of_edges()
            assert summary.objects == nx.number_connected_components(graph)
            hashes.add(digest(folder / "mapping") + digest_of(folder / "objects.parquet"))
        assert len(hashes) == 1


def digest_of(table: Path) -> str:
    return pd.read_parquet(table).to_json()


def test_nothing_to_reconcile(tmp_path: Path) -> None:
    summary, objects = answer(observe([[], [], []], {(0, 1): [], (1, 2): []}), tmp_path / "solution")
    assert objects == {}
    assert (summary.objects, summary.observations, summary.worst_agreement, summary.agreement) == (0, 0, None, None)
    alone, _ = answer(observe([[1, 2]], {}), tmp_path / "alone")
    assert (alone.objects, alone.faces) == (2, 0)
