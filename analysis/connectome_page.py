"""The page of a connectome: its graph drawn, its degrees, its strongest edges, in one HTML file.

    python -m analysis.connectome_page FOLDER [--output FILE] [--title TITLE]

FOLDER is what the stage `connectome` wrote; the page is FOLDER/page.html by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import pictures
from analysis.connectome import Connectome, load_connectome
from analysis.errors import AnalysisError
from analysis.page import render_page, save_page
from analysis.tables import Row, Table, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE, PAGE = "connectome.html.j2", "page.html"
MOST_EDGES = 25

_REASONS = {
    "low_confidence": "left out: a confidence below {min_confidence}",
    "unknown_partner": "left out: a partner is not known",
    "autapses": "left out: of a neuron onto itself",
    "small_partner": "left out: a partner of fewer than {min_voxels} voxels",
    "weak": "left out: between neurons with fewer than {min_synapses} synapses in that direction",
    "kept": "in the graph",
}


@dataclass(frozen=True)
class _Content:
    """What the base template shows."""

    title: str
    honest: tuple[str, ...] = ()
    commands: tuple[tuple[str, str], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plot:
    """A figure with its caption."""

    uri: str
    caption: str


def write_connectome_page(folder: str | Path, path: str | Path | None = None, title: str = "Connectome") -> Path:
    """Write the page of the connectome in `folder` to `path`, FOLDER/page.html by default; returns where it is.

    Raises AnalysisError where the folder is no connectome, or the file cannot be written.
    """
    connectome = load_connectome(folder)
    return save_page(path or Path(folder) / PAGE, render_connectome_page(connectome, folder, title))


def render_connectome_page(connectome: Connectome, folder: str | Path, title: str = "Connectome") -> str:
    """The page as HTML text, that needs no other file."""
    summary = connectome.summary
    return render_page(
        TEMPLATE,
        content=_Content(title, _honest(connectome), _commands(folder), summary["parameters"]),
        headline=headline(connectome),
        counts=counts_table(connectome),
        plots=_plots(connectome),
        edges=edges_table(connectome),
        hubs=hubs_table(connectome),
        kept=kept_table(connectome),
    )


def headline(connectome: Connectome) -> str:
    """How large the graph is, in words."""
    summary, graph = connectome.summary, connectome.summary["graph"]
    if not graph["edges"]:
        return f"No synapse joins any of the {text(summary['neurons'])} neurons."
    return (
        f"{text(graph['synapses'])} synapses make {text(graph['edges'])} directed edges between "
        f"{text(graph['neurons'])} of {text(summary['neurons'])} neurons."
    )


def counts_table(connectome: Connectome) -> Table:
    """The measures that are one number each."""
    graph = connectome.summary["graph"]
    edges, neurons = graph["edges"], graph["neurons"]
    weak, strong = (text(graph[f"largest_{kind}_component"]) for kind in ("weak", "strong"))
    rows = [
        ("density", graph["density"], "edges of all ordered pairs of two neurons with a synapse"),
        ("reciprocity", graph["reciprocity"], "share of the edges that also run back"),
        ("synapses of an edge", graph["synapses"] / edges if edges else None, "on average"),
        ("partners of a neuron", 2 * edges / neurons if neurons else None, "before and after it, on average"),
        ("weak components", graph["weak_components"], f"the largest has {weak} neurons"),
        ("strong components", graph["strong_components"], f"the largest has {strong} neurons"),
    ]
    return Table(("", "", ""), tuple(Row((name, text(value), meaning)) for name, value, meaning in rows))


def edges_table(connectome: Connectome) -> Table:
    """The edges of the most synapses."""
    order = ["synapses", "confidence", "pre", "post"]
    first = connectome.edges.sort_values(order, ascending=[False, False, True, True], kind="stable").head(MOST_EDGES)
    back = set(zip(connectome.edges["pre"], connectome.edges["post"], strict=True))
    columns = (first[name].tolist() for name in ("pre", "post", "synapses", "confidence"))
    rows = [
        Row((str(pre), str(post), text(synapses), text(mean), "yes" if (post, pre) in back else "no"))
        for pre, post, synapses, mean in zip(*columns, strict=True)
    ]
    left = len(connectome.edges) - len(rows)
    notes = (f"And {text(left)} more, in edges.parquet.",) if left else ()
    return Table(("from (pre)", "to (post)", "synapses", "mean confidence", "also back"), tuple(rows), notes)


def hubs_table(connectome: Connectome) -> Table:
    """The neurons that the summary names, with their sizes."""
    sizes = connectome.neurons.set_index("id")["volume_um3"]
    heads = ("neuron", "gets from", "makes onto", "synapses got", "synapses made", "PageRank", "volume (µm³)")
    names = ("in_degree", "out_degree", "in_synapses", "out_synapses", "pagerank")
    hubs = connectome.summary["graph"]["hubs"]
    rows = [Row((str(hub["id"]), *(text(hub[name]) for name in names), text(sizes.get(hub["id"])))) for hub in hubs]
    return Table(heads, tuple(rows))


def kept_table(connectome: Connectome) -> Table:
    """What became of the synapses of the table."""
    counts, parameters = connectome.summary["synapses"], connectome.summary["parameters"]
    rows = [
        Row((said.format(**parameters), text(counts[name])), "selected" if name == "kept" else "")
        for name, said in _REASONS.items()
        if counts[name] or name == "kept"
    ]
    return Table((f"of {text(counts['given'])} synapses", ""), tuple(rows))


def _plots(connectome: Connectome) -> dict[str, _Plot | None]:
    """By name; none at all of a graph without edges."""
    from analysis.plots import connectome as plots

    graph = connectome.summary["graph"]
    if not graph["edges"]:
        return {}
    neurons, census = graph["neurons"], graph["triads"]
    cells = _first(neurons, plots.MOST_IN_MATRIX)
    return {
        "drawing": _plot(
            plots.drawing(connectome, plots.MOST_DRAWN),
            f"The graph of {_first(neurons, plots.MOST_DRAWN)}: an arrow runs from pre to post, the wider the more "
            "synapses; a neuron is the larger the more it has. Where it is drawn says nothing of where it lies.",
        ),
        "matrix": _plot(
            plots.matrix(connectome, plots.MOST_IN_MATRIX),
            f"Synapses between {cells}; those that are much wired to each other stand side by side.",
        ),
        "triads": _plot(plots.triads(census), "How often three neurons are wired in each of the ways of two pairs or "
                        "more. The digits count mutual, one-way and missing pairs; the letter is Davis and Leinhardt's."
                        ) if census else None,
        "degrees": _plot(plots.degrees(connectome), "Partners of a neuron, and synapses of an edge, cumulated."),
        "map": _plot(plots.synapse_map(connectome), "Clefts, seen along z and along y."),
    }  # fmt: skip


def _plot(figure: Figure, caption: str) -> _Plot:
    return _Plot(pictures.figure_uri(figure), caption)


def _first(count: int, most: int) -> str:
    return f"all {text(count)} neurons" if count <= most else f"the {text(most)} neurons of most partners"


def _honest(connectome: Connectome) -> tuple[str, ...]:
    said = [
        "Every figure is of the segmentation as it is: a merger gives one neuron the partners of two, a split makes "
        "two neurons of one, and a neurite that leaves the volume has its other partners elsewhere.",
        "How sure a synapse is, and how many were missed, is not in these numbers; the stage evaluation scores clefts, "
        "partners and edges where the truth is known.",
    ]
    if connectome.summary["graph"]["triads"]:
        said.append("Triads are counts; whether one is frequent can only be said beside what chance would give.")
    elif connectome.summary["graph"]["edges"]:
        said.append("Triads were not counted, as the graph has more edges than the parameter triad_edges allows.")
    return tuple(said)


def _commands(folder: str | Path) -> tuple[tuple[str, str], ...]:
    home = Path(folder)
    read = f"import networkx; print(networkx.read_graphml('{home / 'graph.graphml'}', node_type=int))"
    return (
        (f'python -c "{read}"', "the graph, as any program that reads GraphML can have it"),
        (f"python -c \"import pandas; print(pandas.read_parquet('{home / 'neurons.parquet'}'))\"", "all neurons"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.connectome_page", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what the stage connectome wrote")
    parser.add_argument("--output", type=Path, help="the page; FOLDER/page.html by default")
    parser.add_argument("--title", default="Connectome")
    options = parser.parse_args(arguments)
    try:
        print(write_connectome_page(options.folder, options.output, options.title))
    except AnalysisError as error:
        print(f"connectome_page: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
