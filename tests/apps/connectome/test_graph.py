"""The graph's measures: on graphs small enough to count, and against computations without networkx."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from apps.connectome.graph import build_graph, components, measure, node_table, write_graphml
from apps.connectome.wiring import join_edges
from tests.apps.connectome.samples import synapses

BIG = 2**63 + 11


def test_a_small_graph_by_hand() -> None:
    # 1 -> 2 (twice), 2 -> 1, 2 -> 3, 1 -> 3, and apart from them 7 -> 8.
    graph = build_graph(join_edges(synapses((1, 2), (2, 1), (1, 2), (2, 3), (7, 8), (1, 3))))
    found = measure(graph, hubs=1)
    assert (found.neurons, found.edges, found.synapses) == (5, 5, 6)
    assert found.density == 5 / 20
    assert found.reciprocity == 2 / 5
    assert found.in_degree == ((0, 1), (1, 3), (2, 1))
    assert found.out_degree == ((0, 2), (1, 1), (2, 2))
    assert found.synapses_of_an_edge == ((1, 4), (2, 1))
    assert (found.weak_components, found.largest_weak_component) == (2, 3)
    assert (found.strong_components, found.largest_strong_component) == (4, 2)
    assert found.triads is not None
    # Three neurons of which one pair is mutual and both of it reach the third: 120U; 7 and 8 with any other: 012.
    assert {name: count for name, count in found.triads.items() if count} == {"120U": 1, "102": 2, "012": 7}
    hub = found.hubs[0]
    assert (hub.id, hub.in_degree, hub.out_degree, hub.in_synapses, hub.out_synapses) == (1, 1, 2, 1, 3)
    assert len(found.hubs) == 1


def test_components_are_numbered_by_size_and_then_by_id() -> None:
    graph = build_graph(join_edges(synapses((9, 8), (4, 5), (20, 30), (30, 10))))
    assert components(graph) == {10: 1, 20: 1, 30: 1, 4: 2, 5: 2, 8: 3, 9: 3}
    table = node_table(graph, np.array([4, 6, 30], np.uint64))
    assert table.component.tolist() == [2, 0, 1]
    assert (table.in_degree.tolist(), table.out_degree.tolist()) == ([0, 0, 1], [1, 0, 1])


def test_nothing_to_measure() -> None:
    found = measure(build_graph(join_edges(synapses())))
    assert (found.neurons, found.edges, found.reciprocity, found.hubs) == (0, 0, None, ())
    assert (found.weak_components, found.largest_strong_component, found.density) == (0, 0, 0)


def test_a_neuron_onto_itself_is_no_pair() -> None:
    found = measure(build_graph(join_edges(synapses((1, 1), (1, 2), (2, 1)))))
    assert (found.edges, found.reciprocity, found.density) == (3, 1, 1)
    assert found.triads is not None
    only = measure(build_graph(join_edges(synapses((1, 1)))))
    assert (only.edges, only.reciprocity) == (1, None)


def test_triads_are_left_out_of_large_graphs() -> None:
    graph = build_graph(join_edges(synapses((1, 2), (2, 3))))
    assert measure(graph, triad_edges=1).triads is None
    assert measure(graph, triad_edges=2).triads is not None


def random_pairs(seed: int, neurons: int = 14, count: int = 60) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(1, neurons + 1, (count, 2))
    return [(int(a), int(b)) for a, b in pairs if a != b]


def adjacency(pairs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Weights between the neurons that occur, by ascending id."""
    _, place = np.unique(np.array(pairs), return_inverse=True)
    a, b = place.reshape(-1, 2).T
    size = int(place.max()) + 1
    matrix: NDArray[np.int64] = coo_matrix((np.ones(len(a), np.int64), (a, b)), shape=(size, size)).toarray()
    return matrix


@pytest.mark.parametrize("seed", range(3))
def test_equals_computations_without_networkx(seed: int) -> None:
    pairs = random_pairs(seed)
    weights = adjacency(pairs)
    joined = weights > 0
    found = measure(build_graph(join_edges(synapses(*pairs))), hubs=100)
    size = len(weights)
    assert (found.neurons, found.edges, found.synapses) == (size, joined.sum(), len(pairs))
    assert found.density == pytest.approx(joined.sum() / (size * (size - 1)))
    assert found.reciprocity == pytest.approx((joined & joined.T).sum() / joined.sum())
    for histogram, degrees in ((found.in_degree, joined.sum(0)), (found.out_degree, joined.sum(1))):
        assert dict(histogram) == {k: int((degrees == k).sum()) for k in set(degrees.tolist())}
    for connection, parts, largest in (
        ("weak", found.weak_components, found.largest_weak_component),
        ("strong", found.strong_components, found.largest_strong_component),
    ):
        number, part = connected_components(joined, connection=connection)
        assert (parts, largest) == (number, np.bincount(part).max())
    total = joined.sum(0) + joined.sum(1)
    assert [hub.in_degree + hub.out_degree for hub in found.hubs] == sorted(total.tolist(), reverse=True)


@pytest.mark.parametrize("seed", range(2))
def test_triads_equal_those_counted_three_by_three(seed: int) -> None:
    """By the definition: mutual, asymmetric and empty pairs of each three neurons (Davis and Leinhardt's names)."""
    joined = adjacency(random_pairs(seed)) > 0
    counts: dict[str, int] = {}
    for three in itertools.combinations(range(len(joined)), 3):
        pairs = [(joined[a, b], joined[b, a]) for a, b in itertools.combinations(three, 2)]
        mutual = sum(a and b for a, b in pairs)
        empty = sum(not a and not b for a, b in pairs)
        name = f"{mutual}{3 - mutual - empty}{empty}"
        counts[name] = counts.get(name, 0) + 1
    found = measure(build_graph(join_edges(synapses(*random_pairs(seed))))).triads
    assert found is not None
    by_pairs: dict[str, int] = {}
    for name, count in found.items():
        by_pairs[name[:3]] = by_pairs.get(name[:3], 0) + count
    assert {name: count for name, count in by_pairs.items() if count} == counts


def test_graphml_keeps_ids_exactly(tmp_path: Path) -> None:
    pairs = ((2**53 + 1, 5), (2**53 + 1, 5), (5, BIG))
    graph = build_graph(join_edges(synapses(*pairs, confidence=(0.5, 1.0, 0.25))))
    attributes: dict[int, dict[str, Any]] = {5: {"voxels": 2**40 + 1, "volume_um3": 0.125}}
    write_graphml(tmp_path / "a.graphml", graph, attributes)
    read = nx.read_graphml(tmp_path / "a.graphml", node_type=int)
    assert set(read) == {5, 2**53 + 1, BIG}
    assert read.is_directed()
    assert read.edges[2**53 + 1, 5] == {"weight": 2, "confidence": 0.75}
    assert read.edges[5, BIG] == {"weight": 1, "confidence": 0.25}
    assert read.nodes[5] == attributes[5]
    write_graphml(tmp_path / "b.graphml", graph, attributes)
    assert (tmp_path / "a.graphml").read_bytes() == (tmp_path / "b.graphml").read_bytes()
    assert not any("voxels" in data for _, data in graph.nodes(data=True)), "the graph is as it was"
