"""Plots of a connectome: degrees, weights, the matrix, the graph drawn, triads, and where the synapses are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.connectome import Connectome
from analysis.plots.style import BLUE, FONT_SIZE, GREY, ORANGE, dot_size, figure, legend

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_DRAWN, MOST_IN_MATRIX = 120, 600
_MOST_NAMED, _NAMED = 60, 8  # up to so many neurons all carry their id, of more only so many
_MATRIX_POINTS = 270.0  # side of the matrix, points
_RARE = 0.002  # a share that a linear axis does not show
_EMPTY_TRIADS = ("003", "012", "102")  # fewer than two of the three pairs are wired

Places = dict[int, NDArray[np.float64]]


def degrees(connectome: Connectome) -> Figure:
    """Of all wired neurons, how many have so many partners or more; and of the edges, so many synapses or more."""
    made, (left, right) = figure(9.0, 3.0, columns=2)
    wired = connectome.wired
    for column, colour, name in (
        ("in_degree", BLUE, "get synapses from"),
        ("out_degree", ORANGE, "make synapses onto"),
    ):
        _or_more(left, wired[column].to_numpy(), colour, name)
    left.set(xlabel="so many neurons, or more", ylabel="share of the neurons that")
    legend(left)
    _or_more(right, connectome.edges["synapses"].to_numpy(), GREY, "")
    right.set(xlabel="so many synapses, or more", ylabel="share of the edges with")
    return made


def matrix(connectome: Connectome, most: int) -> Figure:
    """Synapses from the neuron of each row onto that of each column, neurons that belong together side by side."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.ticker import MaxNLocator

    graph = connectome.graph(most)
    order = _groups(graph)
    place = {node: row for row, node in enumerate(order)}
    table = np.zeros((len(order), len(order)))
    for pre, post, weight in graph.edges(data="weight"):
        table[place[pre], place[post]] = weight
    made, axes = figure(5.2, 4.6)
    axes.grid(False)
    strongest = max(float(table.max(initial=0)), 1.0)
    blues = LinearSegmentedColormap.from_list("synapses", ["#8db8e8", BLUE, "#0a2340"])
    if len(order) <= 150:
        shown = np.ma.masked_equal(table, 0)
        drawn = axes.imshow(shown, cmap=blues, norm=LogNorm(1, max(strongest, 1.001)), interpolation="nearest")
    else:  # in a matrix of thousands a cell is less than a pixel, and would not be seen
        rows, columns = np.nonzero(table)
        drawn = axes.scatter(
            columns, rows, c=table[rows, columns], s=max(2.2, _MATRIX_POINTS / len(order)) ** 2, marker="s",
            linewidth=0, cmap=blues, norm=LogNorm(1, max(strongest, 1.001)),
        )  # fmt: skip
        axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set(xlabel="neuron after (post)", ylabel="neuron before (pre)")
    bar = made.colorbar(drawn, ax=axes, shrink=0.8)
    _whole_ticks(bar, strongest)
    bar.set_label("synapses", size=FONT_SIZE + 1)
    return made


def drawing(connectome: Connectome, most: int) -> Figure:
    """The graph of the neurons with most partners: dots as large as they have synapses, arrows from pre to post."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    graph = connectome.graph(most)
    places = _layout(graph)
    made, axes = figure(9.0, 6.2)
    axes.set_axis_off()
    axes.set_aspect("equal")
    rows = connectome.wired.set_index("id")
    share = rows["out_synapses"] / rows["synapses"].clip(lower=1)
    strongest = max((weight for _, _, weight in graph.edges(data="weight")), default=1)
    most_synapses = int(rows["synapses"].max())
    areas = {node: 18.0 + 160.0 * count / most_synapses for node, count in rows["synapses"].items() if node in graph}
    faint = min(0.6, max(0.12, 80 / max(graph.number_of_edges(), 1)))
    for pre, post, weight in graph.edges(data="weight"):
        if pre == post:
            continue
        axes.annotate(
            "", xy=places[post], xytext=places[pre],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.16,head_length=0.3", "color": "#5c6472",
                "linewidth": 0.5 + 1.7 * (weight / strongest), "alpha": faint,
                "shrinkA": areas[pre] ** 0.5 / 2, "shrinkB": areas[post] ** 0.5 / 2,
                "connectionstyle": "arc3,rad=0.08",
            },
        )  # fmt: skip
    colours = LinearSegmentedColormap.from_list("balance", [BLUE, "#e9e4da", ORANGE])
    nodes = list(graph)
    at = np.array([places[node] for node in nodes]).reshape(-1, 2)
    axes.scatter(
        at[:, 0], at[:, 1], s=[areas[node] for node in nodes], c=[float(share[node]) for node in nodes], cmap=colours,
        vmin=0, vmax=1, edgecolor="#1d2330", linewidth=0.5, zorder=3,
    )  # fmt: skip
    named = list(connectome.wired["id"].head(_NAMED)) if len(nodes) > _MOST_NAMED else nodes
    for node in named:
        axes.annotate(
            str(node), places[node], xytext=(0, areas[node] ** 0.5 / 2 + 1), textcoords="offset points", ha="center",
            va="bottom", fontsize=FONT_SIZE - 2, zorder=4,
        )  # fmt: skip
    axes.margins(0.04)
    bar = made.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, shrink=0.4, aspect=14, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["gets all", "half", "makes all"], fontsize=FONT_SIZE)
    bar.set_label("its synapses", size=FONT_SIZE + 1)
    return made


def synapse_map(connectome: Connectome) -> Figure:
    """Where the synapses are, seen along z and along y, in micrometres (voxels where their size is not known)."""
    made, panels = figure(9.0, 3.6, columns=2)
    table, size = connectome.synapses, connectome.summary["voxel_size_nm"]
    scale = dict(zip("zyx", np.array(size) / 1000 if size else np.ones(3), strict=True))
    unit = "µm" if size else "voxels"
    drawn: Any = None
    for axes, down in zip(panels, "yz", strict=True):
        drawn = axes.scatter(
            table["x"] * scale["x"], table[down] * scale[down], c=table["confidence"], cmap="viridis", vmin=0, vmax=1,
            s=dot_size(len(table), 22), linewidth=0, alpha=0.9,
        )  # fmt: skip
        axes.set(xlabel=f"x ({unit})", ylabel=f"{down} ({unit})")
        axes.set_aspect("equal", adjustable="datalim")
        axes.invert_yaxis()
    bar = made.colorbar(drawn, ax=list(panels), shrink=0.8)
    bar.set_label("confidence", size=FONT_SIZE + 1)
    bar.ax.tick_params(labelsize=FONT_SIZE)
    return made


def triads(census: dict[str, int]) -> Figure:
    """How often three neurons are wired in each way of two pairs or more, by Davis and Leinhardt's names."""
    made, axes = figure(6.2, 2.9)
    shown = {name: count for name, count in census.items() if name not in _EMPTY_TRIADS}
    axes.bar(range(len(shown)), list(shown.values()), color=BLUE, width=0.7)
    axes.set_xticks(range(len(shown)), list(shown), rotation=60, fontsize=FONT_SIZE)
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("triads")
    if max(shown.values(), default=0) > 20:
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
    return made


def _or_more(axes: Axes, values: NDArray[Any], colour: str, name: str) -> None:
    """The share of the values that are so large or larger; both axes logarithmic where the largest ones are rare."""
    from matplotlib.ticker import MaxNLocator

    steps, counts = np.unique(values[values > 0], return_counts=True)
    if not len(steps):
        return
    share = counts[::-1].cumsum()[::-1] / len(values)
    axes.plot(steps, share, marker="o", markersize=3.5, linewidth=1.2, color=colour, label=name)
    if share[-1] < _RARE:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _groups(graph: nx.DiGraph) -> list[int]:
    """The nodes, group by group (Louvain communities of the weighted graph), the largest first."""
    import networkx as nx

    if not graph.number_of_edges():
        return list(graph)
    undirected = nx.Graph()
    undirected.add_nodes_from(graph)
    for pre, post, weight in graph.edges(data="weight"):
        before = undirected.get_edge_data(pre, post, {"weight": 0})["weight"]
        undirected.add_edge(pre, post, weight=before + weight)
    groups = nx.community.louvain_communities(undirected, seed=0)
    ordered = sorted(groups, key=lambda group: (-len(group), min(group)))
    return [node for group in ordered for node in sorted(group, key=lambda node: (-graph.degree(node), node))]


def _layout(graph: nx.DiGraph) -> Places:
    """A place for every node: each component by springs, in a square of its own, the squares side by side in rows."""
    import networkx as nx

    parts = sorted(nx.weakly_connected_components(graph), key=lambda part: (-len(part), min(part)))
    squares = []
    for part in parts:
        piece = nx.Graph(graph.subgraph(sorted(part)).to_undirected())
        places = nx.spring_layout(piece, seed=0, weight=None, iterations=200) if len(part) > 1 else {min(part): (0, 0)}
        squares.append({node: np.asarray(place, np.float64) for node, place in places.items()})
    sides = [1.0 + 2.0 * len(part) ** 0.5 for part in parts]
    return _shelve(squares, sides)


def _shelve(squares: Sequence[Places], sides: Sequence[float]) -> Places:
    """Layouts within -1 to 1 put into squares of those sides, largest first, row below row, as wide as 1.5 heights."""
    width = max([*sides, (1.6 * sum(side**2 for side in sides)) ** 0.5]) if sides else 1.0
    placed: Places = {}
    x = y = height = 0.0
    for square, side in zip(squares, sides, strict=True):
        if x and x + side > width * 1.001:
            x, y, height = 0.0, y - height, 0.0
        middle = np.array([x + side / 2, y - side / 2])
        placed |= {node: middle + place * (side / 2 - 0.5) for node, place in square.items()}
        x, height = x + side, max(height, side)
    return placed


def _whole_ticks(bar: Any, largest: float) -> None:
    """Ticks of a logarithmic scale of counts at whole numbers."""
    ticks = sorted({1, *(n for power in range(7) for n in (10**power, 2 * 10**power, 5 * 10**power) if n <= largest)})
    if largest > 1.3 * ticks[-1]:
        ticks.append(int(largest))
    bar.set_ticks(ticks, labels=[str(n) for n in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=FONT_SIZE)
