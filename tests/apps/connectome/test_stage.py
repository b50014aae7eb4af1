"""The connectome stage: what it writes, again and again, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from apps.connectome.stage import ConnectomeParameters, run
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.synapses.table import read_synapses, write_synapses
from tests.apps.connectome.samples import synapses

LARGE = 2**40 + 3
FILES = ["edges.parquet", "graph.graphml", "neurons.parquet", "summary.json", "synapses.parquet"]


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    """Slabs 1, 2, 3 and LARGE of 8, 16, 24 and 32 voxels, and an object 4 of one voxel, with five synapses."""
    labels = np.zeros((2, 4, 12), np.uint64)
    for number, width, start in ((1, 1, 0), (2, 2, 1), (3, 3, 3), (LARGE, 4, 6)):
        labels[:, :, start : start + width] = number
    labels[0, 0, 11] = 4
    write_volume(tmp_path / "segmentation.zarr", labels, (40.0, 10.0, 10.0))
    table = synapses((1, 2), (1, 2), (2, LARGE), (3, 4), (3, 1), confidence=(0.9, 0.7, 0.8, 0.9, 0.1))
    write_synapses(tmp_path / "synapses.parquet", table)
    return {
        "synapses": str(tmp_path / "synapses.parquet"),
        "segmentation": str(tmp_path / "segmentation.zarr"),
        "output": str(tmp_path / "connectome"),
        "min_voxels": 2,
        "min_confidence": 0.5,
    }


def test_what_is_written(inputs: dict[str, Any]) -> None:
    result = run(ConnectomeParameters(**inputs), silent)
    folder = Path(result.output)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert parquet.read_table(result.neurons).to_pydict() == {
        "id": [1, 2, 3, LARGE],
        "voxels": [8, 16, 24, 32],
        "volume_um3": [pytest.approx(voxels * 4000 / 1e9) for voxels in (8, 16, 24, 32)],
        "in_degree": [0, 1, 0, 1],
        "out_degree": [1, 1, 0, 0],
        "in_synapses": [0, 2, 0, 1],
        "out_synapses": [2, 1, 0, 0],
        "component": [1, 1, 0, 1],
    }
    edges = parquet.read_table(result.edges)
    assert edges.schema.field("pre").type == pa.uint64()
    assert edges.to_pydict() == {
        "pre": [1, 2],
        "post": [2, LARGE],
        "synapses": [2, 1],
        "confidence": [pytest.approx(0.8), pytest.approx(0.8)],
    }
    assert read_synapses(result.synapses).id.tolist() == [1, 2, 3]
    graph = nx.read_graphml(result.graph, node_type=int)
    assert dict(graph.edges) == {
        (1, 2): {"weight": 2, "confidence": pytest.approx(0.8)},
        (2, LARGE): {"weight": 1, "confidence": pytest.approx(0.8)},
    }
    assert graph.nodes[LARGE]["voxels"] == 32
    summary = json.loads(Path(result.summary).read_text())
    assert (summary["neurons"], summary["graph"]["neurons"], summary["voxel_size_nm"]) == (4, 3, [40, 10, 10])
    assert (result.neuron_count, result.connected_count, result.synapse_count, result.edge_count) == (4, 3, 3, 2)
    assert (result.reciprocity, result.weak_components) == (0, 1)
    assert (result.kept.low_confidence, result.kept.small_partner) == (1, 1)


def test_again_and_from_other_rows_the_same_bytes(inputs: dict[str, Any], tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "connectome").iterdir()}

    run(ConnectomeParameters(**inputs), silent)
    first = contents()
    table = read_synapses(inputs["synapses"])
    write_synapses(inputs["synapses"], table.take(np.array([4, 2, 0, 3, 1])))
    run(ConnectomeParameters(**inputs), silent)
    assert contents() == first


def test_sizes_from_a_table_or_none(inputs: dict[str, Any], tmp_path: Path) -> None:
    objects = tmp_path / "objects.parquet"
    parquet.write_table(pa.table({"object": [1, 2, 3, 4, LARGE], "voxels": [8, 16, 24, 1, 32]}), objects)
    plain = {"synapses": inputs["synapses"], "output": inputs["output"]}
    result = run(ConnectomeParameters(**plain, objects=str(objects), voxel_size_nm=(40.0, 10.0, 10.0)), silent)
    assert parquet.read_table(result.neurons)["volume_um3"].to_pylist()[0] == pytest.approx(8 * 4000 / 1e9)
    assert result.neuron_count == result.connected_count == 5
    result = run(ConnectomeParameters(**plain, objects=str(objects)), silent)
    assert parquet.read_table(result.neurons)["volume_um3"].to_pylist() == [None] * 5
    result = run(ConnectomeParameters(**plain), silent)
    neurons = parquet.read_table(result.neurons)
    assert neurons["id"].to_pylist() == [1, 2, 3, 4, LARGE]
    assert neurons["voxels"].to_pylist() == [None] * 5
    assert "voxels" not in nx.read_graphml(result.graph, node_type=int).nodes[1]


def test_no_synapse_at_all(inputs: dict[str, Any]) -> None:
    write_synapses(inputs["synapses"], synapses())
    result = run(ConnectomeParameters(**inputs), silent)
    assert (result.neuron_count, result.synapse_count, result.edge_count, result.reciprocity) == (4, 0, 0, None)
    assert parquet.read_table(result.edges).num_rows == 0
    assert len(nx.read_graphml(result.graph)) == 0


def test_a_csv_of_the_truth_is_read(inputs: dict[str, Any], tmp_path: Path) -> None:
    names = ["id", "pre", "post", *(f"{p}{a}" for p in ("", "pre_", "post_", "direction_") for a in "zyx"), "diameter"]
    rows = [[1, 2, 3, *range(12), 20], [2, 3, 2, *range(12), 20]]
    text = "\n".join(",".join(map(str, row)) for row in [names, *rows]) + "\n"
    (tmp_path / "synapses.csv").write_text(text)
    result = run(ConnectomeParameters(**{**inputs, "synapses": str(tmp_path / "synapses.csv")}), silent)
    assert (result.edge_count, result.reciprocity) == (2, 1)


def test_bad_input_is_named(inputs: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "thesis"
    kept.mkdir()
    (kept / "chapter.txt").write_text("years of work")
    (kept / "summary.json").write_text('{"chapters": 1}')
    other = tmp_path / "other.zarr"
    write_volume(other, np.full((2, 4, 12), 9, np.uint8), (40.0, 10.0, 10.0))
    for change, words in (
        ({"output": str(kept)}, "thesis: is there already and is no connectome"),
        ({"output": str(kept / "chapter.txt")}, "chapter.txt: is there already"),
        ({"synapses": str(tmp_path / "none.parquet")}, "none.parquet: no such file"),
        ({"segmentation": str(other)}, "are no objects of the segmentation"),
        ({"segmentation": str(tmp_path / "none.zarr")}, "none.zarr: no such volume"),
    ):
        with pytest.raises(DataError, match=words):
            run(ConnectomeParameters(**{**inputs, **change}), silent)
    assert (kept / "chapter.txt").read_text() == "years of work"
    assert not Path(inputs["output"]).exists()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"objects": "o.parquet"}, "are both given"),
        ({"segmentation": None}, "min_voxels: is given without segmentation or objects"),
        ({"min_confidence": 1.5}, "min_confidence"),
        ({"voxel_size_nm": (0.0, 1.0, 1.0)}, "expected positive sizes"),
    )
    for change, words in cases:
        with pytest.raises(ParameterError, match=words):
            ConnectomeParameters(**{**inputs, **change})


def test_a_failure_leaves_the_old_one(inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(ConnectomeParameters(**inputs), silent)
    before = Path(result.summary).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apps.connectome.stage.write_graphml", fail)
    with pytest.raises(DataError, match="No space left"):
        run(ConnectomeParameters(**{**inputs, "min_confidence": 0.0}), silent)
    assert Path(result.summary).read_bytes() == before
    assert [path.name for path in Path(result.output).parent.glob(".connectome*")] == []
