"""A connectome as the stage `connectome` writes it, read back for plots and pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.errors import AnalysisError

if TYPE_CHECKING:
    import networkx as nx

NEURON_COLUMNS = (
    "id", "voxels", "volume_um3", "in_degree", "out_degree", "in_synapses", "out_synapses", "component"
)  # fmt: skip
EDGE_COLUMNS = ("pre", "post", "synapses", "confidence")
SYNAPSE_COLUMNS = ("id", "z", "y", "x", "pre", "post", "confidence")


@dataclass(frozen=True)
class Connectome:
    """Tables of a connectome.

    Attributes:
        neurons: a row an object, `NEURON_COLUMNS`; component 0 has no synapse.
        edges: a row an ordered pair of neurons, `EDGE_COLUMNS`.
        synapses: a row a synapse, `SYNAPSE_COLUMNS` and more; places in voxels.
        summary: the stage's summary.json.
    """

    neurons: pd.DataFrame
    edges: pd.DataFrame
    synapses: pd.DataFrame
    summary: dict[str, Any]

    @property
    def wired(self) -> pd.DataFrame:
        """Neurons with a synapse, those of most partners first."""
        wired = self.neurons[self.neurons["component"] > 0]
        partners = wired["in_degree"] + wired["out_degree"]
        synapses = wired["in_synapses"] + wired["out_synapses"]
        return wired.assign(partners=partners, synapses=synapses).sort_values(
            ["partners", "synapses", "id"], ascending=[False, False, True], kind="stable"
        )

    def graph(self, most: int | None = None) -> nx.DiGraph:
        """The graph, nodes ascending; with `most`, of so many neurons of most partners and the edges between them."""
        import networkx as nx

        kept = set(self.wired["id"].head(most).tolist() if most is not None else self.wired["id"].tolist())
        graph = nx.DiGraph()
        graph.add_nodes_from(sorted(kept))
        columns = (self.edges[name].tolist() for name in ("pre", "post", "synapses"))
        graph.add_weighted_edges_from((a, b, n) for a, b, n in zip(*columns, strict=True) if {a, b} <= kept)
        return graph


def load_connectome(folder: str | Path) -> Connectome:
    """Read the folder.  Raises AnalysisError where a file is missing, damaged or lacks what this module names."""
    home = Path(folder)
    tables = {}
    for name, columns in (("neurons", NEURON_COLUMNS), ("edges", EDGE_COLUMNS), ("synapses", SYNAPSE_COLUMNS)):
        file = home / f"{name}.parquet"
        if not file.is_file():
            raise AnalysisError(f"{file}: no such file; expected the folder that the stage connectome has written")
        try:
            tables[name] = pd.read_parquet(file)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise AnalysisError(f"{file}: is no Parquet table ({error})") from error
        missing = [column for column in columns if column not in tables[name]]
        if missing:
            raise AnalysisError(f"{file}: lacks the columns {', '.join(missing)}; expected {', '.join(columns)}")
    file = home / "summary.json"
    try:
        summary = json.loads(file.read_text())
        _ = summary["graph"]["neurons"], summary["synapses"]["kept"], summary["parameters"], summary["voxel_size_nm"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(f"{file}: is no summary of a connectome ({error!r})") from error
    return Connectome(**tables, summary=summary)
