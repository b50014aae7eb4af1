"""Union-find over a file, and links refused for the sake of forbidden pairs."""

from __future__ import annotations

import itertools
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray

from apps.reconciliation import union as module
from apps.reconciliation.keeping_apart import Links, refuse_links
from apps.reconciliation.union import UnionFind


def roots(find: UnionFind) -> list[int]:
    return np.concatenate([[], *(block for _, block in find.roots())]).astype(int).tolist()


def test_groups_by_hand(tmp_path: Path) -> None:
    find = UnionFind(tmp_path / "parents", 7)
    find.union(np.array([4, 5]), np.array([1, 2]))
    find.union(np.array([1]), np.array([3]))
    assert find.find(np.array([3, 4, 6])).tolist() == [1, 1, 6]
    assert roots(find) == [0, 1, 2, 1, 1, 2, 6]
    assert roots(UnionFind(tmp_path / "none", 0)) == []


@pytest.mark.parametrize("links", [300, 900, 1500])
def test_any_order_and_batches_give_the_components_of_networkx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", 64)
    rng = np.random.default_rng(links)
    ends = rng.integers(0, 1000, (links, 2))
    graph: nx.Graph[int] = nx.Graph(ends.tolist())
    expected = np.arange(1000)
    for component in nx.connected_components(graph):
        expected[list(component)] = min(component)
    for batch in (1, 7, links):
        rng.shuffle(ends)
        find = UnionFind(tmp_path / "parents", 1000)
        for start in range(0, links, batch):
            find.union(ends[start : start + batch, 0], ends[start : start + batch, 1])
        assert roots(find) == expected.tolist()


def test_a_long_chain_takes_few_rounds(tmp_path: Path) -> None:
    count = 1 << 17
    chain = np.random.default_rng(0).permutation(count - 1)
    find = UnionFind(tmp_path / "parents", count)
    for part in np.array_split(chain, 3):
        find.union(part + 1, part)
    assert not any(roots(find))


def refuse(links: list[tuple[int, int, int]], forbidden: list[tuple[int, int]]) -> list[tuple[int, int]]:
    a, b, shared = np.array(links).T
    refused = refuse_links(Links(a, b, shared), np.array(forbidden).reshape(-1, 2))
    return [(link[0], link[1]) for link, no in zip(links, refused, strict=True) if no]


def test_the_weakest_link_between_a_forbidden_pair_is_refused() -> None:
    chain = [(0, 1, 50), (1, 2, 20), (2, 3, 40)]
    assert refuse(chain, [(0, 3)]) == [(1, 2)]
    assert refuse(chain, [(0, 1)]) == [(0, 1)], "even the strongest, where it is the pair itself"
    assert refuse(chain, [(0, 2), (1, 3)]) == [(1, 2)]
    assert refuse([(0, 1, 30), (1, 2, 30)], [(0, 2)]) == [(1, 2)], "of equal links the first is taken"
    assert refuse([*chain, (0, 3, 10)], [(0, 3)]) == [(1, 2), (0, 3)], "a detour is closed as well"


def partition(links: NDArray[np.int64], count: int) -> list[int]:
    graph: nx.Graph[int] = nx.empty_graph(count)
    graph.add_edges_from(links[:, :2].tolist())
    group = [0] * count
    for number, component in enumerate(nx.connected_components(graph)):
        for node in component:
            group[node] = number
    return group


def test_refusals_separate_all_pairs_and_no_link_is_refused_in_vain() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        ends = np.array(list(itertools.combinations(range(14), 2)))[rng.permutation(91)[:30]]
        links = np.column_stack([ends, rng.integers(1, 9, 30)])
        forbidden = np.array(list(itertools.combinations(range(14), 2)))[rng.permutation(91)[:6]]
        refused = refuse_links(Links(*links.T), forbidden)
        group = partition(links[~refused], 14)
        assert all(group[a] != group[b] for a, b in forbidden)
        for number in np.flatnonzero(refused):
            kept = ~refused
            kept[number] = True
            again = partition(links[kept], 14)
            assert any(again[a] == again[b] for a, b in forbidden)
        order = rng.permutation(30)
        shuffled = refuse_links(Links(*links[order].T), forbidden)
        assert np.array_equal(shuffled, refused[order]), "the order in which links are given does not count"
