"""Thresholds and union-find, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from apps.agglomeration.merging import Edges, MergeRule, judge, merge, relabelled

NONE = np.zeros((0, 2), np.uint64)


def edges_of(*rows: tuple[int, int, float], recovered: float = 0.9, deleted: float = 0.0) -> Edges:
    """Edges (a, b, iou) that are good otherwise."""
    a, b, iou = (np.array(column) for column in zip(*rows, strict=True))
    n = len(rows)
    return Edges(
        a.astype(np.uint64), b.astype(np.uint64), np.ones(n, bool), iou, np.full(n, recovered), np.full(n, deleted)
    )


def pairs(*rows: tuple[int, int]) -> np.ndarray:
    return np.array(rows, np.uint64).reshape(-1, 2)


def refusals(edges: Edges, rule: MergeRule | None = None) -> list[str]:
    verdicts = np.array(["scored"] * len(edges.a), object)
    return judge(edges, rule or MergeRule(), verdicts).tolist()


def merged(edges: Edges, forbidden: np.ndarray = NONE, cut: np.ndarray = NONE) -> tuple[dict[int, int], list[str]]:
    done = merge(edges, np.array(refusals(edges), object), forbidden, cut)
    return dict(zip(done.base.tolist(), done.object.tolist(), strict=True)), done.refused.tolist()


@pytest.mark.parametrize(
    ("iou", "recovered", "deleted", "why"),
    [
        (0.81, 0.6, 0.0199, ""),
        (0.8, 0.9, 0.0, "iou"),
        (0.9, 0.599, 0.0, "recovered"),
        (0.9, 0.9, 0.02, "deleted"),
        (0.1, 0.1, 0.9, "iou"),
    ],
)
def test_the_published_thresholds(iou: float, recovered: float, deleted: float, why: str) -> None:
    assert refusals(edges_of((1, 2, iou), recovered=recovered, deleted=deleted)) == [why]


def test_what_was_not_scored_keeps_its_verdict() -> None:
    none = np.array([np.nan])
    edges = Edges(np.array([1], np.uint64), np.array([2], np.uint64), np.array([False]), none, none, none)
    assert judge(edges, MergeRule(), np.array(["weak"], object)).tolist() == ["weak"]


def test_links_close_transitively_onto_the_smallest_id() -> None:
    big = 1 << 50
    mapping, _ = merged(edges_of((big, big + 3, 0.9), (3, big, 0.9), (7, 8, 0.85), (8, 9, 0.5)))
    assert mapping == {big: 3, big + 3: 3, 8: 7}


def test_the_order_of_edges_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    rows = [
        (int(a), int(a + d), float(i)) for a, d, i in zip(*rng.integers(1, 60, (2, 80)), rng.random(80), strict=True)
    ]
    forbidden = pairs(*{(a, a + 20) for a in range(1, 60, 3)})
    expected, _ = merged(edges_of(*rows), forbidden)
    for seed in range(3):
        shuffled = [rows[n] for n in np.random.default_rng(seed).permutation(len(rows))]
        assert merged(edges_of(*shuffled), forbidden)[0] == expected


def test_a_cut_pair_is_not_merged_on_its_own_evidence() -> None:
    mapping, refused = merged(edges_of((1, 2, 0.9), (2, 3, 0.9)), cut=pairs((3, 2)))
    assert (mapping, refused) == ({2: 1}, ["", "cut"])


def test_a_forbidden_pair_is_kept_apart_by_its_weakest_link() -> None:
    rows = (1, 2, 0.95), (2, 3, 0.82), (3, 4, 0.9), (10, 11, 0.81)
    mapping, refused = merged(edges_of(*rows), forbidden=pairs((4, 1)))
    assert mapping == {2: 1, 4: 3, 11: 10}
    assert refused == ["", "forbidden", "", ""]


def test_forbidden_pairs_hold_through_chains() -> None:
    """1 and 9 may not meet, whichever way their parts come together."""
    rows = (1, 5, 0.9), (5, 6, 0.99), (6, 9, 0.95), (1, 6, 0.85)
    mapping, _ = merged(edges_of(*rows), forbidden=pairs((1, 9), (40, 41)))
    assert mapping.get(9, 9) != mapping.get(1, 1)
    assert mapping == {6: 5, 9: 5}


def test_ids_are_replaced_and_the_others_are_not() -> None:
    base, objects = np.array([5, 1 << 60], np.uint64), np.array([2, 3], np.uint64)
    ids = np.array([[0, 5], [6, 1 << 60]], np.uint64)
    assert relabelled(ids, base, objects).tolist() == [[0, 2], [6, 3]]
    assert relabelled(ids.astype(np.uint64), base[:0], objects[:0]).tolist() == ids.tolist()


def test_no_edge_is_no_merger() -> None:
    empty = np.zeros(0)
    none = Edges(empty.astype(np.uint64), empty.astype(np.uint64), empty.astype(bool), empty, empty, empty)
    done = merge(none, np.zeros(0, object), NONE, NONE)
    assert len(done.base) == 0
