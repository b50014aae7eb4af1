"""The rule that links objects, and what is measured where two subvolumes overlap."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import variation_of_information as reference_vi

from apps.core.errors import ParameterError
from apps.reconciliation.comparing import compare_face, join_pairs, list_objects
from apps.reconciliation.linking import REASONS, LinkRule, apply_rule
from apps.reconciliation.observations import Pairs
from tests.apps.reconciliation.made import pairs_of


def line(*runs: tuple[int, int]) -> NDArray[np.uint32]:
    return np.concatenate([np.full(n, label, np.uint32) for label, n in runs]).reshape(1, 1, -1)


def judge(pairs: Pairs, rule: LinkRule) -> list[str]:
    return [REASONS[reason] for reason in apply_rule(pairs, np.zeros(len(pairs.a), np.int64), rule)]


def test_rule_by_hand() -> None:
    # First: object 1 of 100 voxels, object 2 of 20, 30 voxels of nothing.  Second: 1 is a merger of them that is cut
    # short by 10 voxels; 5 lies where the first has nothing.
    first, second = line((1, 100), (2, 20), (0, 30)), line((7, 60), (8, 30), (9, 20), (0, 10), (5, 30))
    face = compare_face(first, second)
    pairs = face.pairs
    assert list(zip(pairs.a, pairs.b, pairs.shared, strict=True)) == [(1, 7, 60), (1, 8, 30), (1, 9, 10), (2, 9, 10)]
    assert pairs.voxels_a.tolist() == [100, 100, 100, 20]
    assert pairs.voxels_b.tolist() == [60, 30, 20, 20]
    assert (face.voxels, face.both, face.one) == (150, 110, 40)

    def rule(voxels: int, fraction: float, mutual: bool) -> LinkRule:
        return LinkRule(min_overlap_voxels=voxels, min_overlap_fraction=fraction, mutual_maximum=mutual)

    assert judge(pairs, rule(10, 0.0, False)) == [""] * 4
    assert judge(pairs, rule(11, 0.0, False)) == ["", "", "few voxels", "few voxels"]
    small = "small fraction"
    assert judge(pairs, rule(1, 0.4, False)) == ["", small, small, ""]
    # 9 is shared equally by 1 and 2; the first counts, and 1 shares more with 7: so 2 stays alone.
    assert judge(pairs, rule(1, 0.0, True)) == ["", "not the largest", "not the largest", "not the largest"]


def test_a_merger_in_one_subvolume_does_not_merge_the_other() -> None:
    pairs = compare_face(line((1, 300), (2, 200)), line((4, 500))).pairs
    assert judge(pairs, LinkRule()) == ["", "not the largest"]
    assert judge(pairs, LinkRule(mutual_maximum=False)) == ["", ""]


def test_the_largest_is_sought_in_its_own_face() -> None:
    pairs = join_pairs([pairs_of((1, 1, 200), (2, 1, 300)), pairs_of((1, 1, 150), (1, 2, 140))])
    reasons = apply_rule(pairs, np.array([0, 0, 1, 1]), LinkRule(min_overlap_fraction=0.0))
    assert reasons.astype(bool).tolist() == [True, False, False, True]


def test_the_rule_agrees_with_a_plain_one_on_random_pairs() -> None:
    rng = np.random.default_rng(3)
    for seed in range(20):
        cells = np.unique(rng.integers(1, 12, (60, 2)), axis=0)
        rows = [(int(a), int(b), int(rng.integers(1, 30))) for a, b in cells]
        pairs, rule = pairs_of(*rows), LinkRule(min_overlap_voxels=5, min_overlap_fraction=0.15)
        shared = {(a, b): n for a, b, n in rows}
        for (a, b, n), reason in zip(rows, judge(pairs, rule), strict=True):
            best_b = min((k for k in shared if k[0] == a), key=lambda k: (-shared[k], k))
            best_a = min((k for k in shared if k[1] == b), key=lambda k: (-shared[k], k))
            size = max(sum(n for k, n in shared.items() if k[0] == a), sum(n for k, n in shared.items() if k[1] == b))
            linked = n >= 5 and n >= 0.15 * size and best_a == best_b == (a, b)
            assert (reason == "") == linked, (seed, a, b)


def test_vi_is_that_of_scikit_image_where_both_are_filled() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, (2, 6, 7, 8)).astype(np.uint32)
    second = np.where(rng.random(first.shape) < 0.7, first, second)
    filled = (first > 0) & (second > 0)
    assert compare_face(first, second).vi == pytest.approx(sum(reference_vi(first[filled], second[filled])))
    assert compare_face(first, first).vi == 0
    assert compare_face(first, np.zeros_like(first)).vi == 0


def test_objects_are_listed_with_their_voxels() -> None:
    labels = line((9, 2), (0, 3), (4, 5), (7, 1))
    objects = list_objects(labels, labels[..., 1:7])
    assert objects.local.tolist() == [4, 7, 9]
    assert objects.read.tolist() == [5, 1, 2]
    assert objects.written.tolist() == [2, 0, 1]
    nothing = np.zeros((2, 2, 2), np.uint32)
    assert len(list_objects(nothing, nothing).local) == 0


def test_a_rule_out_of_range_is_refused() -> None:
    with pytest.raises(ParameterError, match="min_overlap_voxels"):
        LinkRule(min_overlap_voxels=0)
    with pytest.raises(ParameterError, match="min_overlap_fraction"):
        LinkRule(min_overlap_fraction=1.5)
