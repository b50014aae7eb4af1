"""The wiring graph and its measures, all by networkx: degrees, reciprocity, components, triads, hubs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.connectome.objects import Ids
from apps.connectome.wiring import Edges
from apps.core.parameters import Result

Histogram = tuple[tuple[int, int], ...]
_HISTOGRAM = "as pairs (value, how many)"


class Hub(Result, frozen=True, kw_only=True):
    """A neuron of many partners."""

    id: Annotated[int, Meta(description="its object")]
    in_degree: Annotated[int, Meta(description="neurons that it gets synapses from")]
    out_degree: Annotated[int, Meta(description="neurons that it makes synapses onto")]
    in_synapses: Annotated[int, Meta(description="synapses that it gets")]
    out_synapses: Annotated[int, Meta(description="synapses that it makes")]
    pagerank: Annotated[float, Meta(description="PageRank by synapses, the sum over all neurons being 1")]


class Measures(Result, frozen=True, kw_only=True):
    """What the graph of the neurons that have a synapse looks like."""

    neurons: Annotated[int, Meta(description="neurons with a synapse: the nodes")]
    edges: Annotated[int, Meta(description="ordered pairs of neurons with a synapse")]
    synapses: Annotated[int, Meta(description="of all edges: the sum of the weights")]
    density: Annotated[float, Meta(description="edges of all ordered pairs of two neurons")]
    reciprocity: Annotated[float | None, Meta(description="share of the edges that also run back; null: no edge")]
    in_degree: Annotated[Histogram, Meta(description=f"neurons that a neuron gets synapses from, {_HISTOGRAM}")]
    out_degree: Annotated[Histogram, Meta(description=f"neurons that a neuron makes synapses onto, {_HISTOGRAM}")]
    synapses_of_an_edge: Annotated[Histogram, Meta(description=f"weights, {_HISTOGRAM}")]
    weak_components: Annotated[int, Meta(description="parts that no synapse joins, whatever its direction")]
    largest_weak_component: Annotated[int, Meta(description="neurons of the largest")]
    strong_components: Annotated[int, Meta(description="parts within which every neuron reaches every other")]
    largest_strong_component: Annotated[int, Meta(description="neurons of the largest")]
    triads: Annotated[
        dict[str, int] | None,
        Meta(description="how often each of the 16 ways to wire three neurons is there; null where not counted"),
    ]
    hubs: Annotated[tuple[Hub, ...], Meta(description="neurons of the most partners, most first")]


@dataclass(frozen=True)
class NodeTable:
    """Degrees of nodes, in the order of the ids that were asked for.

    Attributes:
        in_degree, out_degree: int64 [n], partners.
        in_synapses, out_synapses: int64 [n].
        component: int64 [n], number of the weak component, the largest being 1; 0 for an id that is no node.
    """

    in_degree: NDArray[np.int64]
    out_degree: NDArray[np.int64]
    in_synapses: NDArray[np.int64]
    out_synapses: NDArray[np.int64]
    component: NDArray[np.int64]


def build_graph(edges: Edges) -> nx.DiGraph:
    """The graph: nodes are ids (plain int), ascending; edges carry `weight` (synapses) and `confidence` (mean)."""
    graph = nx.DiGraph()
    graph.add_nodes_from(np.unique(np.concatenate([edges.pre, edges.post])).tolist())
    rows = zip(edges.pre.tolist(), edges.post.tolist(), edges.synapses.tolist(), edges.confidence.tolist(), strict=True)
    graph.add_edges_from((a, b, {"weight": weight, "confidence": mean}) for a, b, weight, mean in rows)
    return graph


def components(graph: nx.DiGraph) -> dict[int, int]:
    """For every node the number of its weak component: 1 is the largest, of equal ones that with the smallest id."""
    parts = sorted(nx.weakly_connected_components(graph), key=lambda part: (-len(part), min(part)))
    return {node: number for number, part in enumerate(parts, 1) for node in part}


def node_table(graph: nx.DiGraph, ids: Ids) -> NodeTable:
    """Degrees and components of `ids`; those that are no nodes have 0 everywhere."""
    part = components(graph)
    columns = (
        dict(graph.in_degree()),
        dict(graph.out_degree()),
        dict(graph.in_degree(weight="weight")),
        dict(graph.out_degree(weight="weight")),
        part,
    )
    keys = ids.tolist()
    return NodeTable(*(np.array([column.get(key, 0) for key in keys], np.int64) for column in columns))


def measure(graph: nx.DiGraph, hubs: int = 10, triad_edges: int = 200_000) -> Measures:
    """All measures; triads only in a graph of `triad_edges` or fewer, as their time grows with edges and degree."""
    weak = [len(part) for part in nx.weakly_connected_components(graph)]
    strong = [len(part) for part in nx.strongly_connected_components(graph)]
    # networkx divides by the number of edges, and counts triads of simple graphs.
    plain = graph if not nx.number_of_selfloops(graph) else _without_loops(graph)
    weights = [weight for _, _, weight in graph.edges(data="weight")]
    return Measures(
        neurons=graph.number_of_nodes(),
        edges=graph.number_of_edges(),
        synapses=sum(weights),
        density=float(nx.density(plain)),
        reciprocity=float(nx.overall_reciprocity(plain)) if plain.number_of_edges() else None,
        in_degree=_histogram(degree for _, degree in graph.in_degree()),
        out_degree=_histogram(degree for _, degree in graph.out_degree()),
        synapses_of_an_edge=_histogram(weights),
        weak_components=len(weak),
        largest_weak_component=max(weak, default=0),
        strong_components=len(strong),
        largest_strong_component=max(strong, default=0),
        triads=nx.triadic_census(plain) if plain.number_of_edges() <= triad_edges else None,
        hubs=_hubs(graph, hubs),
    )


def write_graphml(path: str | Path, graph: nx.DiGraph, attributes: dict[int, dict[str, Any]]) -> None:
    """Write GraphML: a node's name is its id in digits; `attributes` of nodes (int, float) go with it."""
    labelled = graph.copy()
    nx.set_node_attributes(labelled, attributes)
    # Not `write_graphml`, which takes lxml where it is installed: the bytes would depend on the environment.
    nx.write_graphml_xml(labelled, str(path))


def _without_loops(graph: nx.DiGraph) -> nx.DiGraph:
    plain = graph.copy()
    plain.remove_edges_from(list(nx.selfloop_edges(plain)))
    return plain


def _histogram(values: Iterable[int]) -> Histogram:
    return tuple(sorted(Counter(values).items()))


def _hubs(graph: nx.DiGraph, most: int) -> tuple[Hub, ...]:
    rank = nx.pagerank(graph, weight="weight") if graph.number_of_nodes() else {}
    first = sorted(graph, key=lambda node: (-graph.degree(node), -graph.degree(node, weight="weight"), node))
    return tuple(
        Hub(
            id=node,
            in_degree=graph.in_degree(node),
            out_degree=graph.out_degree(node),
            in_synapses=graph.in_degree(node, weight="weight"),
            out_synapses=graph.out_degree(node, weight="weight"),
            pagerank=round(rank[node], 9),
        )
        for node in first[:most]
    )
