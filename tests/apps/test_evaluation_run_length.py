"""Expected run length: by hand, against a direct reading of its definition, and in the stage."""

from __future__ import annotations

from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, write_volume
from apps.evaluation.run_length import RunLength, score_run_length
from apps.evaluation.skeletons import Skeletons, load_skeletons
from apps.evaluation.stage import EvaluationParameters, run

UNIT = (1.0, 1.0, 1.0)


def lines(*counts: int, step: float = 10.0) -> Skeletons:
    """Skeletons 1, 2, ... that are straight lines along x of so many nodes, `step` voxels apart."""
    nodes = [(0.0, float(n), step * i) for n, count in enumerate(counts) for i in range(count)]
    label = np.repeat(np.arange(1, len(counts) + 1), counts)
    edges = [(i, i + 1) for i in range(len(label) - 1) if label[i] == label[i + 1]]
    return Skeletons(np.array(nodes), label, np.array(edges, np.int64).reshape(-1, 2))


def found(skeletons: Skeletons, *segment: int, **more: Any) -> RunLength:
    return score_run_length(skeletons, np.array(segment), UNIT, **more)


def test_perfect_whatever_the_ids() -> None:
    result = score_run_length(lines(4, 2), np.array([7] * 4 + [2**63] * 2, np.uint64), UNIT)
    assert (result.nerl, result.correct_fraction, result.skeletons) == (1, 1, 2)
    assert result.erl_nm == result.strict_erl_nm == result.truth_erl_nm == pytest.approx((30**2 + 10**2) / 40)
    assert result.length_nm == 40


def test_a_split_by_hand() -> None:
    # 10, a cut of 10, and 20 of 40: (10^2 + 20^2) / 40.
    result = found(lines(5), 3, 3, 4, 4, 4)
    assert result.erl_nm == pytest.approx(500 / 40)
    assert result.nerl == pytest.approx(500 / 1600)
    assert (result.split_edges, result.split_fraction) == (1, 0.25)


def test_a_merger_by_hand() -> None:
    # Segment 9 holds all of skeleton 2 and the first half of skeleton 1, whose other half still counts.
    result = found(lines(5, 3), 9, 9, 9, 4, 4, 9, 9, 9)
    assert result.erl_nm == pytest.approx(10**2 / 60)
    assert (result.strict_erl_nm, result.strict_nerl) == (0, 0), "both skeletons have a part in the merger"
    assert (result.merged_fraction, result.split_fraction) == (pytest.approx(40 / 60), pytest.approx(10 / 60))
    assert (result.merging_segments, result.merged_skeletons) == (1, 2)
    assert found(lines(5, 3), *[1] * 8).erl_nm == 0, "one object for everything"


def test_an_omission_by_hand() -> None:
    result = found(lines(5), 3, 3, 0, 3, 3)
    assert result.omitted_fraction == 0.5
    assert result.erl_nm == pytest.approx((10 + 10) ** 2 / 40), "what one segment holds counts together"
    nothing = found(lines(3, 3), *[0] * 6)
    assert (nothing.erl_nm, nothing.merging_segments, nothing.merged_skeletons) == (0, 0, 0), "0 merges nothing"


def test_pieces_of_one_skeleton_are_one_skeleton() -> None:
    two = lines(2, 2)
    one = Skeletons(two.nodes, np.ones(4, np.int64), two.edges)
    assert found(one, 5, 5, 5, 5).erl_nm == 20
    assert found(one, 5, 5, 6, 6).nerl == pytest.approx(0.5)


def test_a_merger_takes_so_many_nodes() -> None:
    skeletons = lines(5, 3)
    segment = [9, 9, 9, 9, 9, 9, 4, 4]  # one node of skeleton 2
    assert found(skeletons, *segment).merged_skeletons == 2
    tolerant = found(skeletons, *segment, merge_nodes=2)
    assert (tolerant.merged_skeletons, tolerant.merging_segments) == (0, 0)
    assert tolerant.erl_nm == pytest.approx((40**2 + 10**2) / 60)


def test_a_node_without_an_edge_can_merge() -> None:
    skeletons = lines(3, 1)
    assert found(skeletons, 1, 1, 1, 1).erl_nm == 0
    assert found(skeletons, 1, 1, 1, 2).skeletons == 1


def test_lengths_are_in_nanometres() -> None:
    skeletons = Skeletons(np.array([[0, 0, 0], [1, 2, 0]], float), np.array([1, 1]), np.array([[0, 1]]))
    result = score_run_length(skeletons, np.array([1, 1]), (40.0, 10.0, 10.0))
    assert result.erl_nm == pytest.approx(sqrt(40**2 + 20**2))


def definition(skeletons: Skeletons, segment: NDArray[Any], whole_skeletons: bool) -> float:
    """The mean over points of the run length, edge by edge in plain Python.

    whole_skeletons: where a skeleton has a part in a merging segment, all of it scores 0 (em_erl's convention).
    """
    label, places = skeletons.label.tolist(), skeletons.nodes
    holds: dict[int, set[int]] = {}
    for skeleton, owner in zip(label, segment.tolist(), strict=True):
        holds.setdefault(owner, set()).add(skeleton)
    merging = {owner for owner, those in holds.items() if len(those) > 1 and owner}
    tainted = set().union(*(holds[owner] for owner in merging)) if merging else set()
    runs: dict[tuple[int, int], float] = {}
    total = 0.0
    for a, b in skeletons.edges.tolist():
        length = float(np.linalg.norm(places[a] - places[b]))
        total += length
        owner, skeleton = int(segment[a]), label[a]
        bad = owner in merging or (whole_skeletons and skeleton in tainted)
        if owner and owner == int(segment[b]) and not bad:
            runs[skeleton, owner] = runs.get((skeleton, owner), 0.0) + length
    return sum(length * length for length in runs.values()) / total


def random_case(seed: int, splits: bool) -> tuple[Skeletons, NDArray[Any]]:
    """Branched skeletons, and segments that split (at will), merge and miss them."""
    rng = np.random.default_rng(seed)
    label: list[int] = []
    edges: list[tuple[int, int]] = []
    parts: list[tuple[int, int]] = []
    for skeleton, count in enumerate(rng.integers(2, 20, 12), 1):
        first = len(label)
        for i in range(count):
            label.append(skeleton)
            parts.append((skeleton, int(i * 3 // count) if splits else 0))
            if i:
                edges.append((first + int(rng.integers(0, i)), first + i))
    names = {part: int(rng.integers(1, 40)) for part in parts}
    segment = [names[part] if rng.random() > 0.1 else 0 for part in parts]
    nodes = rng.random((len(label), 3)) * 100
    return Skeletons(nodes, np.array(label), np.array(edges)), np.array(segment)


@pytest.mark.parametrize("seed", range(10))
def test_equals_the_definition(seed: int) -> None:
    skeletons, segment = random_case(seed, splits=True)
    result = score_run_length(skeletons, segment, UNIT)
    assert result.erl_nm == pytest.approx(definition(skeletons, segment, whole_skeletons=False))
    assert result.strict_erl_nm == pytest.approx(definition(skeletons, segment, whole_skeletons=True))
    assert result.truth_erl_nm == pytest.approx(definition(skeletons, skeletons.label, whole_skeletons=False))
    fractions = result.correct_fraction, result.split_fraction, result.merged_fraction, result.omitted_fraction
    assert sum(fractions) == pytest.approx(1)
    assert 0 < result.nerl < 1
    assert result.merging_segments > 0


@pytest.mark.parametrize("seed", range(5))
def test_the_two_conventions_agree_where_what_has_merged_is_not_split(seed: int) -> None:
    skeletons, segment = random_case(seed, splits=False)
    result = score_run_length(skeletons, segment, UNIT)
    assert result.erl_nm == result.strict_erl_nm == pytest.approx(definition(skeletons, segment, whole_skeletons=True))
    assert result.merging_segments > 0


def test_the_values_that_funlib_evaluate_is_tested_with() -> None:
    places = np.array([[0, 0, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], float)
    two = Skeletons(places, np.array([1, 1, 1, 2, 2]), np.array([[0, 1], [1, 2], [3, 4]]))
    one = Skeletons(places[:3], two.label[:3], two.edges[:2])
    assert found(one, 10, 10, 10).erl_nm == pytest.approx(2 * sqrt(2))
    assert found(one, 10, 10, 20).erl_nm == pytest.approx(sqrt(2) / 2)
    assert found(two, 10, 10, 30, 20, 40).erl_nm == pytest.approx(2 / 3 * sqrt(2) / 2)
    assert found(two, 10, 10, 10, 10, 10).erl_nm == 0


def test_what_lies_outside_the_box_takes_no_part() -> None:
    skeletons = lines(5)
    inside = skeletons.within(Box.of((0, 0, 6), (1, 1, 30)))  # the nodes at 10, 20 and 30
    assert inside.nodes[:, 2].tolist() == [4, 14, 24]
    assert inside.edges.tolist() == [[0, 1], [1, 2]]
    volume = np.zeros((1, 1, 30), np.uint64)
    volume[0, 0, 14] = 5
    assert inside.sample(volume).tolist() == [0, 5, 0]
    nodes = np.array([[-0.4, 0, 0], [-0.6, 0, 0], [0, 0, 9.4], [0, 0, 9.6]])
    edge = Skeletons(nodes, np.ones(4, int), np.zeros((0, 2), int))
    assert edge.within(Box.of((0, 0, 0), (1, 1, 10))).nodes[:, 2].tolist() == [0, 9.4]


def save(path: Path, skeletons: Skeletons, **change: Any) -> str:
    arrays = {"nodes": skeletons.nodes, "label": skeletons.label, "edges": skeletons.edges, "radius": np.ones(3)}
    np.savez(path, **{**arrays, **change})
    return str(path)


def test_in_the_stage(tmp_path: Path) -> None:
    labels = np.zeros((3, 4, 50), np.uint32)
    labels[:, 0], labels[:, 1] = 1, 2
    segmentation = labels[:, :, 5:].astype(np.uint64) * 7
    segmentation[:, 0, 25:] = 3
    write_volume(tmp_path / "labels.zarr", labels, (40.0, 8.0, 8.0))
    write_volume(tmp_path / "found.zarr", segmentation, (40.0, 8.0, 8.0))
    parameters = {
        "segmentation": str(tmp_path / "found.zarr"),
        "segmentation_offset": [0, 0, 5],
        "labels": str(tmp_path / "labels.zarr"),
        "skeletons": save(tmp_path / "skeletons.npz", lines(5, 5)),
        "size_classes": [100, 1000],
        "part_voxels": 10,
    }
    result = run(EvaluationParameters.from_json(parameters), silent)
    # Nodes at 10, 20, 30 and 40: of the first skeleton 10 to 20 is in one segment, and 30 to 40 in another.
    assert result.run_length is not None
    assert result.run_length.erl_nm == pytest.approx((2 * 80**2 + 240**2) / 480)
    assert result.run_length.split_edges == 1
    assert result.labels_run_length is not None
    assert result.labels_run_length.nerl == 1
    assert [(row.objects, row.splits) for row in result.by_size] == [(0, 0), (2, 1), (0, 0)]
    finer = run(EvaluationParameters.from_json({**parameters, "voxel_size_nm": [1, 1, 1]}), silent).run_length
    assert finer is not None
    assert finer.erl_nm == pytest.approx(result.run_length.erl_nm / 8)
    # Labels of a size that nobody told say 1 nm; the segmentation's is the one that is known.
    write_volume(tmp_path / "unsized.zarr", labels, UNKNOWN_VOXEL_SIZE)
    unsized = {**parameters, "labels": str(tmp_path / "unsized.zarr")}
    assert run(EvaluationParameters.from_json(unsized), silent).run_length == result.run_length
    plain = run(EvaluationParameters.from_json({k: parameters[k] for k in list(parameters)[:3]}), silent)
    assert (plain.run_length, plain.labels_run_length, plain.by_size) == (None, None, ())
    assert plain.scores == result.scores


def test_bad_skeletons_are_named(tmp_path: Path) -> None:
    good = lines(3, 2)
    assert len(load_skeletons(save(tmp_path / "good.npz", good)).edges) == 3
    cases: list[tuple[dict[str, Any], str]] = [
        ({"nodes": good.nodes[:4]}, r"nodes of shape \(4, 3\)"),
        ({"nodes": good.nodes * np.nan}, "expected 5 finite places"),
        ({"label": good.label - 1}, "expected one whole number over 0"),
        ({"label": good.label.astype(float)}, "dtype float64"),
        ({"label": np.array(1)}, r"label of shape \(\)"),
        ({"label": np.array([1, 1, 2, 2, 2])}, "joins nodes of two labels"),
        ({"edges": np.array([[0, 5]])}, "expected numbers from 0 to 4"),
        ({"edges": np.array([0, 1])}, "expected pairs"),
        ({"edges": np.array([[0, 1], [1, 0]])}, "an edge is given twice"),
    ]
    for change, words in cases:
        with pytest.raises(DataError, match=words):
            load_skeletons(save(tmp_path / "bad.npz", good, **change))
    np.savez(tmp_path / "bad.npz", nodes=good.nodes)
    (tmp_path / "text.npz").write_text("no archive")
    for name, words in (("none", "no such file"), ("bad", "label"), ("text", "is not an .npz")):
        with pytest.raises(DataError, match=f"{name}.npz: .*{words}"):
            load_skeletons(str(tmp_path / f"{name}.npz"))


def test_bad_parameters_are_named(tmp_path: Path) -> None:
    labels, found = str(tmp_path / "labels.zarr"), str(tmp_path / "found.zarr")
    for path, shape in product((labels, found), ((2, 2, 4),)):
        write_volume(path, np.ones(shape, np.uint32), UNIT)
    good = {"labels": labels, "segmentation": found}
    for change, words in (
        ({"size_classes": (100, 10)}, "expected ascending sizes"),
        ({"size_classes": (10,), "segmentation": None}, "size_classes: is given without segmentation"),
        ({"skeletons": "s.npz", "segmentation": None}, "skeletons: is given without segmentation"),
        ({"voxel_size_nm": (0.0, 1.0, 1.0)}, "expected positive sizes"),
        ({"merge_nodes": 0}, "merge_nodes"),
    ):
        with pytest.raises(ParameterError, match=words):
            EvaluationParameters(**{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="their edges have no length"):
        point = Skeletons(np.zeros((2, 3)), np.array([1, 1]), np.array([[0, 1]]))
        score_run_length(point, np.array([1, 1]), UNIT)
    away = save(tmp_path / "away.npz", Skeletons(lines(3).nodes + 100, lines(3).label, lines(3).edges))
    with pytest.raises(DataError, match=r"away.npz: .*has no edge in the box 0:2,0:2,0:4"):
        run(EvaluationParameters(skeletons=away, baselines=False, **good), silent)  # type: ignore[arg-type]
