"""Stage `connectome`: the weighted directed graph of neurons and synapses, its tables, GraphML and measures.

A neuron is an object of the segmentation; an edge goes from the neuron before the cleft (pre) to the one after it
(post), and its weight is the number of their synapses.  Measures are networkx's.  The page with pictures is drawn from
what this stage writes: `python -m analysis.connectome_page FOLDER`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from apps.connectome.graph import Measures, NodeTable, build_graph, measure, node_table, write_graphml
from apps.connectome.objects import Objects, count_voxels, read_objects
from apps.connectome.wiring import Edges, Kept, choose_synapses, join_edges
from apps.core.errors import DataError, ParameterError
from apps.core.files import folder_in_the_making
from apps.core.parameters import Parameters, Result, write_json
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import VoxelSize, open_volume
from apps.synapses.table import SynapseTable, read_synapses, write_synapses

NEURONS, SYNAPSES, EDGES, GRAPH, SUMMARY = (
    "neurons.parquet",
    "synapses.parquet",
    "edges.parquet",
    "graph.graphml",
    "summary.json",
)


class ConnectomeParameters(Parameters, frozen=True, kw_only=True):
    """Which synapses, between which objects, and which of them count."""

    synapses: Annotated[str, Meta(description="table of synapses with their partners, Parquet (or CSV)")]
    segmentation: Annotated[
        str | None, Meta(description="the segmentation of the partners: voxels of every object are counted in it")
    ] = None
    objects: Annotated[
        str | None,
        Meta(description="instead of it, a Parquet table of its objects with the columns object (or id) and voxels"),
    ] = None
    voxel_size_nm: Annotated[
        VoxelSize | None, Meta(description="zyx, for volumes of neurons; by default the segmentation's")
    ] = None
    output: Annotated[str, Meta(min_length=1, description="folder to write; one that this stage has made is replaced")]
    min_confidence: Annotated[
        float, Meta(ge=0.0, le=1.0, description="synapses of a lower confidence are left out")
    ] = 0.0
    min_voxels: Annotated[
        int, Meta(ge=0, description="objects of fewer voxels are no neurons; their synapses are left out")
    ] = 0
    min_synapses: Annotated[
        int, Meta(ge=1, description="pairs of neurons (in that direction) with fewer synapses have no edge")
    ] = 1
    autapses: Annotated[bool, Meta(description="keep synapses of a neuron onto itself")] = False
    hubs: Annotated[int, Meta(ge=0, description="how many neurons with the most partners the summary names")] = 10
    triad_edges: Annotated[
        int, Meta(ge=0, description="triads are counted in graphs of so many edges or fewer; it takes minutes there")
    ] = 200_000

    def check(self) -> None:
        if self.segmentation is not None and self.objects is not None:
            raise ParameterError("segmentation and objects: are both given; expected one of them")
        if self.min_voxels and self.segmentation is None and self.objects is None:
            raise ParameterError("min_voxels: is given without segmentation or objects; give one, to know sizes by")
        if self.voxel_size_nm is not None and not min(self.voxel_size_nm) > 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")


class ConnectomeResult(Result, frozen=True, kw_only=True):
    """Where the connectome is, and how large."""

    output: Annotated[str, Meta(description="the folder")]
    neurons: Annotated[str, Meta(description="Parquet: a row for every neuron")]
    synapses: Annotated[str, Meta(description="Parquet: the synapses that count, with the columns of the table given")]
    edges: Annotated[str, Meta(description="Parquet: pre, post, synapses (the weight), confidence (mean)")]
    graph: Annotated[str, Meta(description="GraphML")]
    summary: Annotated[str, Meta(description="JSON: all that is here, with lists")]
    neuron_count: Annotated[int, Meta(description="objects of min_voxels or more")]
    connected_count: Annotated[int, Meta(description="neurons with a synapse that counts")]
    synapse_count: Annotated[int, Meta(description="synapses that count")]
    edge_count: Annotated[int, Meta(description="ordered pairs of neurons")]
    reciprocity: Annotated[float | None, Meta(description="share of the edges that also run back; null: no edge")]
    weak_components: Annotated[int, Meta(description="parts that no synapse joins")]
    kept: Annotated[Kept, Meta(description="what became of the synapses of the table")]


def run(parameters: ConnectomeParameters, report: Reporter) -> ConnectomeResult:
    """Read, choose, join, measure; then write the folder, which is there whole or not at all.

    Raises DataError where a file is missing or not what it should be, a partner is no object of the segmentation, or
    the output folder holds something else.
    """
    output = Path(parameters.output)
    _check_output(output)
    table = read_synapses(parameters.synapses)
    objects, voxel_size = _read_sizes(parameters, report)
    report(0, 3, "joining synapses")
    chosen, kept = choose_synapses(
        table,
        objects,
        parameters.min_confidence,
        parameters.min_voxels,
        parameters.min_synapses,
        parameters.autapses,
    )
    edges = join_edges(chosen)
    graph = build_graph(edges)
    neurons = _neurons(objects, chosen, parameters.min_voxels)
    report(1, 3, "measuring the graph")
    measures = measure(graph, parameters.hubs, parameters.triad_edges)
    report(2, 3, "writing")
    nodes = node_table(graph, neurons.ids)
    columns = _neuron_columns(neurons, nodes, objects is not None, voxel_size)
    with folder_in_the_making(output) as folder:
        _write_parquet(folder / NEURONS, columns)
        write_synapses(folder / SYNAPSES, chosen)
        _write_parquet(folder / EDGES, _edge_columns(edges))
        write_graphml(folder / GRAPH, graph, _attributes(columns))
        write_json(folder / SUMMARY, _summary(parameters, measures, kept, len(neurons.ids), voxel_size))
    report(3, 3, "done")
    return ConnectomeResult(
        output=str(output),
        neurons=str(output / NEURONS),
        synapses=str(output / SYNAPSES),
        edges=str(output / EDGES),
        graph=str(output / GRAPH),
        summary=str(output / SUMMARY),
        neuron_count=len(neurons.ids),
        connected_count=measures.neurons,
        synapse_count=kept.kept,
        edge_count=measures.edges,
        reciprocity=measures.reciprocity,
        weak_components=measures.weak_components,
        kept=kept,
    )


def _check_output(output: Path) -> None:
    """A folder that this stage has not made is never replaced."""
    ours = all((output / name).is_file() for name in (NEURONS, SYNAPSES, EDGES, GRAPH, SUMMARY))
    if output.exists() and not ours and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: is there already and is no connectome; give another output, or remove it first")


def _read_sizes(parameters: ConnectomeParameters, report: Reporter) -> tuple[Objects | None, VoxelSize | None]:
    """The objects, where their sizes are known, and the voxel size."""
    if parameters.objects is not None:
        return read_objects(parameters.objects), parameters.voxel_size_nm
    if parameters.segmentation is None:
        return None, parameters.voxel_size_nm
    volume = open_volume(parameters.segmentation)
    objects = count_voxels(volume, lambda done, total: report(done, total, "counting voxels of objects"))
    return objects, parameters.voxel_size_nm or volume.voxel_size_nm


def _neurons(objects: Objects | None, chosen: SynapseTable, min_voxels: int) -> Objects:
    """The rows of the table of neurons; without sizes, those that have a synapse, of 0 voxels."""
    if objects is None:
        ids = np.unique(chosen.partners)
        return Objects(ids, np.zeros(len(ids), np.int64))
    large = objects.voxels >= min_voxels
    return Objects(objects.ids[large], objects.voxels[large])


def _neuron_columns(neurons: Objects, nodes: NodeTable, sized: bool, voxel_size: VoxelSize | None) -> dict[str, Any]:
    import pyarrow as pa

    count = len(neurons.ids)
    um3 = neurons.voxels * (float(np.prod(voxel_size)) / 1e9) if sized and voxel_size else None
    return {
        "id": pa.array(neurons.ids),
        "voxels": pa.array(neurons.voxels) if sized else pa.nulls(count, pa.int64()),
        "volume_um3": pa.array(um3) if um3 is not None else pa.nulls(count, pa.float64()),
        "in_degree": pa.array(nodes.in_degree),
        "out_degree": pa.array(nodes.out_degree),
        "in_synapses": pa.array(nodes.in_synapses),
        "out_synapses": pa.array(nodes.out_synapses),
        "component": pa.array(nodes.component),
    }


def _edge_columns(edges: Edges) -> dict[str, Any]:
    return {"pre": edges.pre, "post": edges.post, "synapses": edges.synapses, "confidence": edges.confidence}


def _attributes(columns: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Attributes of the graph's nodes: what is known of neurons that have a synapse."""
    names = [name for name in columns if name != "id"]
    values = {name: columns[name].to_pylist() for name in names}
    return {
        node: {name: values[name][row] for name in names if values[name][row] is not None}
        for row, node in enumerate(columns["id"].to_pylist())
        if values["component"][row]
    }


def _summary(
    parameters: ConnectomeParameters, measures: Measures, kept: Kept, neurons: int, voxel_size: VoxelSize | None
) -> dict[str, Any]:
    return {
        "neurons": neurons,
        "voxel_size_nm": voxel_size,
        "synapses": kept.to_dict(),
        "graph": measures.to_dict(),
        "parameters": parameters.to_dict(),
    }


def _write_parquet(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


STAGE = Stage(
    name="connectome",
    summary="Join synapses into the wiring graph of neurons: tables, GraphML, degree, reciprocity, motifs, components.",
    parameters=ConnectomeParameters,
    result=ConnectomeResult,
    run=run,
    example={
        "synapses": "synapses/synapses.parquet",
        "segmentation": "agglomerated/segmentation.zarr",
        "output": "connectome",
        "min_confidence": 0.5,
        "min_voxels": 1000,
    },
)
