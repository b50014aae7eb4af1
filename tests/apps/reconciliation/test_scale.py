"""What the benchmark of many observations generates: consistent, and solved to as many objects as it says."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from apps.reconciliation.batches import read_batches
from benchmarks.reconciliation_scale import CASES, OBJECTS, Lattice


def test_a_lattice_has_as_many_objects_as_it_says() -> None:
    lattice = Lattice((2, 3, 18))
    graph: nx.Graph[int] = nx.Graph()
    for batch in read_batches(lattice, 10_000):
        key = (batch.face() << 48) | (batch.pairs.a.astype(np.int64) << 24) | batch.pairs.b
        assert (np.diff(key) > 0).all(), "ordered by face, a, b"
        a, b = (ids[batch.pairs.shared > 999] for ids in batch.supervoxels())
        graph.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
        assert batch.faces.both.sum() == batch.pairs.shared.sum()
    alone = len(lattice) * OBJECTS - graph.number_of_nodes()
    assert nx.number_connected_components(graph) + alone == lattice.expected_objects()


@pytest.mark.parametrize("name", list(CASES))
def test_the_cases_find_them(tmp_path: Path, name: str) -> None:
    # Each case compares what it finds with what the lattice says.
    assert CASES[name](Lattice((2, 2, 3)), tmp_path)["observations"] > 10_000
