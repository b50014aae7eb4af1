"""Metrics beside the reference implementations: funlib.evaluate, em_erl, CREMI's scripts, scikit-image, scikit-learn.

What the first three say of the cases in evaluation_references.json was computed once with their own code, as the file's
`provenance` tells; the other two are asked here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import adapted_rand_error, variation_of_information
from sklearn.metrics import mutual_info_score, precision_recall_fscore_support
from sklearn.metrics.cluster import pair_confusion_matrix

from apps.evaluation.edges import match_segments, score_edges
from apps.evaluation.metrics import score
from apps.evaluation.run_length import score_run_length
from apps.evaluation.skeletons import Skeletons

REFERENCES = json.loads(Path(__file__).with_name("evaluation_references.json").read_text())
RUN_LENGTHS, SEGMENTATIONS = REFERENCES["run_lengths"], REFERENCES["segmentations"]

run_lengths = pytest.mark.parametrize("case", RUN_LENGTHS, ids=range(len(RUN_LENGTHS)))
segmentations = pytest.mark.parametrize("case", SEGMENTATIONS, ids=range(len(SEGMENTATIONS)))


def skeletons_of(case: dict[str, Any]) -> tuple[Skeletons, NDArray[np.int64], tuple[float, float, float]]:
    skeletons = Skeletons(np.array(case["nodes"], float), np.array(case["label"]), np.array(case["edges"]))
    z, y, x = case["voxel_size_nm"]
    return skeletons, np.array(case["segment"]), (z, y, x)


def volumes_of(case: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array(case["truth"]).reshape(case["shape"]), np.array(case["found"]).reshape(case["shape"])


@run_lengths
def test_run_length_equals_funlib(case: dict[str, Any]) -> None:
    skeletons, segment, size = skeletons_of(case)
    ours = score_run_length(skeletons, segment, size)
    theirs = case["funlib"]
    assert ours.erl_nm == pytest.approx(theirs["erl"], rel=1e-6), "their lengths are float32"
    assert ours.split_edges == theirs["split_edges"]


@run_lengths
@pytest.mark.parametrize("merge_nodes", [1, 2])
def test_strict_run_length_equals_em_erl(case: dict[str, Any], merge_nodes: int) -> None:
    skeletons, segment, size = skeletons_of(case)
    ours = score_run_length(skeletons, segment, size, merge_nodes)
    theirs = case["em_erl"]
    expected = theirs["erl_by_merge_threshold"][str(merge_nodes)]
    assert ours.strict_erl_nm == pytest.approx(expected, rel=1e-12)
    assert ours.truth_erl_nm == pytest.approx(theirs["truth_erl"], rel=1e-12)
    assert ours.strict_nerl == pytest.approx(expected / theirs["truth_erl"], rel=1e-12)


def test_the_cases_of_run_lengths_have_every_kind_of_edge() -> None:
    """Else the agreement above would say little."""
    of_funlib = [case["funlib"] for case in RUN_LENGTHS]
    for kind in ("split_edges", "omitted_edges", "merged_edges"):
        assert sum(theirs[kind] > 0 for theirs in of_funlib) >= 3
    strict = [case["em_erl"]["erl_by_merge_threshold"] for case in RUN_LENGTHS]
    assert any(0 < theirs["1"] < 0.9 * case["erl"] for theirs, case in zip(strict, of_funlib, strict=True))
    assert any(theirs["1"] < theirs["2"] for theirs in strict)


@segmentations
def test_variation_of_information_equals_funlib_and_cremi(case: dict[str, Any]) -> None:
    ours = score(*volumes_of(case))
    for theirs in (case["funlib"], case["cremi"]):
        assert ours.vi_split == pytest.approx(theirs["voi_split"], abs=1e-12)
        assert ours.vi_merge == pytest.approx(theirs["voi_merge"], abs=1e-12)


@segmentations
def test_rand_is_that_of_pairs_of_different_voxels(case: dict[str, Any]) -> None:
    """funlib and CREMI count a voxel's pair with itself, scikit-image does not: exactly so much is the difference."""
    truth, found = volumes_of(case)
    ours = score(truth, found)
    error, _, _ = adapted_rand_error(truth, found)
    assert ours.adapted_rand_error == pytest.approx(error, abs=1e-12)
    count = int((truth != 0).sum())
    _, in_truth = np.unique(truth[truth != 0], return_counts=True)
    _, in_found = np.unique(found[truth != 0], return_counts=True)
    pairs_of_truth, pairs_of_found = (float((sizes**2).sum()) - count for sizes in (in_truth, in_found))
    together = ours.rand_recall * pairs_of_truth
    theirs = case["funlib"]
    assert (together + count) / (pairs_of_truth + count) == pytest.approx(theirs["rand_split"], abs=1e-12)
    assert (together + count) / (pairs_of_found + count) == pytest.approx(theirs["rand_merge"], abs=1e-12)


@segmentations
def test_cremi_takes_predicted_zeros_apart(case: dict[str, Any]) -> None:
    """CREMI's Rand error is funlib's where nothing is predicted 0, and another one elsewhere."""
    truth, found = volumes_of(case)
    same = case["cremi"]["precision"] == pytest.approx(case["funlib"]["rand_merge"], abs=1e-12)
    assert same == bool((found[truth != 0] != 0).all())


@segmentations
def test_equals_scikit_learn(case: dict[str, Any]) -> None:
    """Entropies from mutual information, and pairs from the pair confusion matrix."""
    truth, found = volumes_of(case)
    labelled = truth != 0
    ours = score(truth, found)
    flat, other = truth[labelled], found[labelled]
    shared = mutual_info_score(flat, other) / np.log(2)
    assert ours.vi_split == pytest.approx(mutual_info_score(other, other) / np.log(2) - shared, abs=1e-9)
    assert ours.vi_merge == pytest.approx(mutual_info_score(flat, flat) / np.log(2) - shared, abs=1e-9)
    (_, only_found), (only_truth, both) = pair_confusion_matrix(flat, other)
    assert ours.rand_precision == pytest.approx(both / (both + only_found), abs=1e-12)
    assert ours.rand_recall == pytest.approx(both / (both + only_truth), abs=1e-12)
    split, merge = variation_of_information(truth, found, ignore_labels=(0,))
    assert (ours.vi_split, ours.vi_merge) == (pytest.approx(split, abs=1e-12), pytest.approx(merge, abs=1e-12))


@pytest.mark.parametrize("seed", range(4))
def test_edges_equal_scikit_learn(seed: int) -> None:
    """Presence as a binary classification of all ordered pairs, weights as the overlap of two matrices."""
    rng = np.random.default_rng(seed)
    neurons = 9
    labels = np.arange(1, neurons + 1, dtype=np.uint64).repeat(4).reshape(1, 6, 6)
    found = rng.integers(1, neurons + 1, (40, 2)).astype(np.uint64)
    truth = np.where(rng.random((40, 1)) < 0.6, found, rng.integers(1, neurons + 1, (40, 2)).astype(np.uint64))
    matrices = []
    for edges in (found, truth):
        matrix = np.zeros((neurons, neurons), np.int64)
        np.add.at(matrix, tuple(edges.astype(np.int64).T - 1), 1)
        np.fill_diagonal(matrix, 0)
        matrices.append(matrix)
    ours, theirs = matrices
    scores = score_edges(found * 1000, truth, match_segments(labels, labels * 1000)).by_overlap
    precision, recall, f1, _ = precision_recall_fscore_support(theirs.ravel() > 0, ours.ravel() > 0, average="binary")
    presence = scores.presence
    assert (presence.precision, presence.recall, presence.f1) == pytest.approx((precision, recall, f1))
    common = int(np.minimum(ours, theirs).sum())
    assert scores.weight.matched == common
    assert (scores.weight.precision, scores.weight.recall) == pytest.approx(
        (common / ours.sum(), common / theirs.sum())
    )
