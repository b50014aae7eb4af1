"""The wiring against the true one: by hand, with splits and mergers, and in the stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import write_volume
from apps.evaluation.edges import EdgeScores, WiringScores, match_segments, score_edges
from apps.evaluation.stage import EvaluationParameters, EvaluationResult, run
from apps.synapses.table import SynapseTable, write_synapses
from tests.apps.connectome.samples import synapses

Pairs = list[tuple[int, int]]


def runs(*of: tuple[int, int]) -> NDArray[np.uint64]:
    """(label, voxels) one after the other, as a zyx array."""
    return np.concatenate([np.full(count, label, np.uint64) for label, count in of]).reshape(1, 1, -1)


def scores(found: Pairs, truth: Pairs, labels: NDArray[Any], segmentation: NDArray[Any]) -> WiringScores:
    ours, theirs = (np.array(pairs, np.uint64).reshape(-1, 2) for pairs in (found, truth))
    return score_edges(ours, theirs, match_segments(labels, segmentation))


def counts(one: EdgeScores) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """(found, truth, matched) of edges, and of synapses."""
    presence, weight = one.presence, one.weight
    return (presence.found, presence.truth, presence.matched), (weight.found, weight.truth, weight.matched)


LABELS = runs((1, 10), (2, 10), (3, 10), (4, 10))
TRUTH: Pairs = [(1, 2), (1, 2), (2, 3), (3, 4)]


def test_perfect_whatever_the_ids() -> None:
    big = LABELS * 2**50
    result = scores([(a * 2**50, b * 2**50) for a, b in TRUTH], TRUTH, LABELS, big)
    assert counts(result.by_overlap) == counts(result.one_to_one) == ((3, 3, 3), (4, 4, 4))
    assert result.by_overlap.weight.f1 == 1
    assert (result.segments, result.segments_of_no_neuron) == (4, 0)


def test_direction_and_weight_by_hand() -> None:
    # One of two synapses of 1 -> 2, one the wrong way round, and one invented; 3 -> 4 is found twice.
    found: Pairs = [(1, 2), (3, 2), (4, 1), (3, 4), (3, 4)]
    result = scores(found, TRUTH, LABELS, LABELS)
    assert counts(result.by_overlap) == ((4, 3, 2), (5, 4, 2))
    assert result.by_overlap.presence.precision == 2 / 4
    assert result.by_overlap.presence.recall == pytest.approx(2 / 3)


def test_a_split_neuron() -> None:
    # Neuron 1 is in segments 11 (7 voxels) and 12 (3): the synapses of its smaller part are lost as segmented.
    segmentation = runs((11, 7), (12, 3), (2, 10), (3, 10), (4, 10))
    result = scores([(11, 2), (12, 2), (2, 3), (3, 4)], TRUTH, LABELS, segmentation)
    assert counts(result.by_overlap) == ((3, 3, 3), (4, 4, 4))
    assert counts(result.one_to_one) == ((4, 3, 3), (4, 4, 3))


def test_a_merger() -> None:
    # Segment 9 is neurons 2 (10 voxels) and 3 (9): it is called 2, and the edges of 3 are wrong.
    segmentation = runs((1, 10), (9, 19), (5, 1), (4, 10))
    result = scores([(1, 9), (1, 9), (9, 9), (9, 4)], TRUTH, LABELS, segmentation)
    assert counts(result.by_overlap) == ((2, 3, 1), (3, 4, 2))
    assert counts(result.one_to_one) == counts(result.by_overlap)


def test_a_synapse_between_two_parts_of_a_neuron() -> None:
    # As put together it is of the neuron onto itself, and no edge; as segmented it is a false one.
    segmentation = runs((11, 7), (12, 3), (2, 30))
    result = scores([(11, 12)], [(1, 2)], LABELS, segmentation)
    assert counts(result.by_overlap) == ((0, 1, 0), (0, 1, 0))
    assert counts(result.one_to_one) == ((1, 1, 0), (1, 1, 0))
    assert result.by_overlap.presence.precision is None


def test_a_segment_of_no_neuron_has_false_edges() -> None:
    labels, segmentation = runs((1, 10), (0, 5), (2, 10)), runs((1, 10), (1000, 5), (2, 10))
    result = scores([(1, 2), (1, 1000), (77, 1000)], [(1, 2)], labels, segmentation)
    assert counts(result.by_overlap) == ((3, 1, 1), (3, 1, 1))
    assert (result.segments, result.segments_of_no_neuron) == (4, 2)


def test_what_is_not_known_is_no_edge() -> None:
    result = scores([(0, 2), (1, 0), (2, 2)], [(1, 2), (0, 1), (3, 3)], LABELS, LABELS)
    assert counts(result.by_overlap) == ((0, 1, 0), (0, 1, 0))
    nothing = scores([], [], LABELS, LABELS)
    assert nothing.one_to_one.weight.f1 is None


def test_matches_and_ties() -> None:
    labels = runs((2, 5), (1, 5), (3, 4), (3, 4), (0, 9))
    segmentation = runs((7, 10), (8, 4), (6, 4), (5, 9))
    found = match_segments(labels, segmentation)
    assert found.segments.tolist() == [6, 7, 8]
    assert found.neurons.tolist() == [3, 1, 3], "of equal overlaps the smallest label"
    assert found.main.tolist() == [True, True, False], "of equal parts the smallest id"
    none = match_segments(labels, np.zeros_like(segmentation))
    assert len(none.segments) == 0
    assert score_edges(np.array([[4, 5]], np.uint64), np.array([[1, 2]], np.uint64), none).segments_of_no_neuron == 2
    with pytest.raises(DataError, match="expected the truth's shape"):
        match_segments(labels, segmentation[..., 1:])


SIZE = (10.0, 10.0, 10.0)


def save(folder: Path, name: str, table: SynapseTable) -> str:
    write_synapses(folder / name, table)
    return str(folder / name)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """Rows 1 to 4 of ten voxels along y, in a segmentation that puts 3 and 4 together and is shifted by 5 along x."""
    labels = np.zeros((10, 40, 60), np.uint32)
    for number in range(4):
        labels[:, 10 * number : 10 * number + 10] = number + 1
    segmentation = labels.astype(np.uint64) * 100
    segmentation[labels == 4] = 300
    write_volume(tmp_path / "labels.zarr", labels, SIZE)
    write_volume(tmp_path / "found.zarr", segmentation[:, :, 5:], SIZE)
    return {
        "labels": str(tmp_path / "labels.zarr"),
        "segmentation": str(tmp_path / "found.zarr"),
        "segmentation_offset": [0, 0, 5],
        "baselines": False,
    }


def placed(table: SynapseTable, rows: Pairs) -> SynapseTable:
    """The table with its points in those rows of labels (1 to 4), every cleft between them."""
    points = table.points.copy()
    points[:, :, 1] = 10 * np.array(rows) - 5
    centre = table.centre.copy()
    centre[:, 1] = points[:, :, 1].mean(axis=1)
    return replace(table, centre=centre, points=points)


def evaluate(case: dict[str, Any], **change: Any) -> EvaluationResult:
    return run(EvaluationParameters.from_json({**case, **change}), silent)


def test_in_the_stage(case: dict[str, Any], tmp_path: Path) -> None:
    # The first lies at x = 2, outside of the segmentation; the others every ten voxels.
    rows: Pairs = [(1, 2), (1, 2), (2, 3), (3, 4), (2, 1)]
    truth = placed(synapses(*rows), rows)
    segments: Pairs = [(100 * a, 100 * min(b, 3)) for a, b in rows]
    found = placed(synapses(*segments), rows)
    tables = {
        "synapses": save(tmp_path, "found.parquet", found),
        "true_synapses": save(tmp_path, "truth.parquet", truth),
    }
    result = evaluate(case, **tables)
    assert result.synapses is not None
    assert (result.synapses.clefts.truth, result.synapses.partners.f1, result.synapses.direction) == (4, 1, 1)
    assert result.wiring is not None
    assert counts(result.wiring.by_overlap) == ((3, 4, 3), (3, 4, 3)), "3 -> 4 is lost in the merger"
    inner = evaluate(case, **tables, box=Box.of((0, 0, 25), (10, 40, 20)).to_dict())
    assert inner.synapses is not None
    assert (inner.synapses.clefts.found, inner.synapses.clefts.truth) == (2, 2)

    wrong = placed(synapses(*segments), [(b, a) for a, b in rows])
    turned = evaluate(case, synapses=save(tmp_path, "w.parquet", wrong), true_synapses=tables["true_synapses"])
    assert turned.synapses is not None
    assert (turned.synapses.clefts.f1, turned.synapses.partners.f1, turned.synapses.direction) == (1, 0, 0)

    far = replace(found, centre=found.centre + np.array([0, 3, 0]))
    tables["synapses"] = save(tmp_path, "far.parquet", far)
    for distance, matched in ((31.0, 4), (29.0, 0)):
        shifted = evaluate(case, **tables, synapse_distance_nm=distance)
        assert shifted.synapses is not None
        assert shifted.synapses.clefts.matched == matched
    finer = evaluate(case, **tables, synapse_distance_nm=29.0, voxel_size_nm=[9.0, 9.0, 9.0])
    assert finer.synapses is not None
    assert finer.synapses.clefts.matched == 4


def test_without_a_segmentation_only_the_synapses_are_scored(case: dict[str, Any], tmp_path: Path) -> None:
    rows: Pairs = [(1, 2), (2, 3)]
    path = save(tmp_path, "truth.parquet", placed(synapses(*rows), rows))
    result = evaluate({"labels": case["labels"]}, synapses=path, true_synapses=path)
    assert result.synapses is not None
    assert result.synapses.partners.f1 == 1
    assert (result.wiring, result.scores) == (None, None)
    assert evaluate(case).synapses is None


def test_bad_input_is_named(case: dict[str, Any], tmp_path: Path) -> None:
    away = synapses((1, 2))
    away = replace(away, centre=away.centre + 1000)
    path, gone = save(tmp_path, "away.parquet", away), str(tmp_path / "none.parquet")
    for one, other in (("synapses", "true_synapses"), ("true_synapses", "synapses")):
        with pytest.raises(ParameterError, match=f"^{one}: is missing; give the synapses"):
            EvaluationParameters.from_json({**case, other: path}).check()
    with pytest.raises(DataError, match=r"away.parquet: has no synapse in the box"):
        evaluate(case, synapses=path, true_synapses=path)
    with pytest.raises(DataError, match=r"none.parquet: no such file"):
        evaluate(case, synapses=gone, true_synapses=path)
    with pytest.raises(ParameterError, match="synapse_distance_nm"):
        evaluate(case, synapses=path, true_synapses=path, synapse_distance_nm=0.0)
