"""Joining, SWC and the table, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.skeletons.lines import Cleaning, Line, decode, encode, joined
from apps.skeletons.swc import to_swc
from apps.skeletons.ticks import without_ticks

pytest.importorskip("kimimaro", reason="the extra `skeletons` is not installed")

SIZE = (30.0, 8.0, 10.0)


def path(first: int, last: int, radius: float) -> bytes:
    """A straight line along x in row 5 of plane 2."""
    x = np.arange(first, last + 1)
    voxels = np.stack([np.full_like(x, 2), np.full_like(x, 5), x], axis=1)
    edges = np.stack([np.arange(len(x) - 1), np.arange(1, len(x))], axis=1)
    return encode(voxels, np.full(len(x), radius), edges)


def test_ends_in_the_same_voxel_become_one_node_with_the_smaller_radius() -> None:
    line = joined([path(10, 16, 40.0), path(0, 10, 30.0)], SIZE, Cleaning(0, 0))
    assert line is not None
    order = np.argsort(line.nodes[:, 2])
    assert line.nodes[order] == pytest.approx(np.array([[2, 5, x] for x in range(17)]), abs=1e-4)
    assert line.radius_nm[order].tolist() == [30.0] * 11 + [40.0] * 6
    assert len(line.edges) == 16
    assert line.length_nm(SIZE) == pytest.approx(160, abs=1e-3)


def test_short_pieces_go_and_near_ones_are_connected() -> None:
    assert joined([path(0, 4, 10.0)], SIZE, Cleaning(100, 0)) is None
    assert joined([], SIZE, Cleaning(0, 0)) is None
    line = joined([path(0, 10, 30.0), path(13, 20, 30.0)], SIZE, Cleaning(0, 0))
    assert line is not None
    assert line.length_nm(SIZE) == pytest.approx(200, abs=1e-3), "a gap of 30 nm is less than both radii"


def test_damaged_bytes_are_named_so() -> None:
    with pytest.raises(DataError, match="damaged"):
        decode(path(0, 4, 1.0)[:-1])


def test_swc_has_parents_first_and_the_right_unit() -> None:
    nodes = np.array([[0, 0, 2], [0, 0, 1], [0, 0, 0], [1, 0, 1], [9, 9, 9], [9, 9, 8]], float)
    line = Line(nodes, np.full(6, 500, np.float32), np.array([[0, 1], [1, 2], [3, 1], [4, 5]]))
    rows = [row.split() for row in to_swc(line, SIZE, "micrometer").splitlines() if row[0] != "#"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert [row[6] for row in rows] == ["-1", "1", "2", "2", "-1", "5"]
    assert rows[0][1:6] == ["0", "0.025", "0.004", "0.015", "0.5"], "xyz of the middle of voxel (0, 0, 2), in um"
    assert to_swc(line, SIZE, "nanometer").splitlines()[1].split()[2:6] == ["25", "4", "15", "500"]
    far = Line(nodes + 400_000, line.radius_nm, line.edges)
    rows = [row.split() for row in to_swc(far, SIZE, "micrometer").splitlines() if row[0] != "#"]
    assert rows[0][2:5] == ["4000.025", "3200.004", "12000.015"], "voxels are told apart far from the corner too"
    assert to_swc(far, SIZE, "nanometer").splitlines()[1].split()[2:5] == ["4000025", "3200004", "12000015"]


def comb(teeth: dict[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A spine of 20 steps of 10 along x, and teeth along y: at which node, of how many steps."""
    places = [(float(10 * x), 0.0, 0.0) for x in range(21)]
    edges = [(x, x + 1) for x in range(20)]
    for at, steps in teeth.items():
        for step in range(1, steps + 1):
            edges.append((at if step == 1 else len(places) - 1, len(places)))
            places.append((10.0 * at, 10.0 * step, 0.0))
    return np.array(places), np.array(edges)


def test_ticks_go_and_the_tree_stays_whole() -> None:
    """Between teeth that have gone the spine is as short as a tick, but is none."""
    places, edges = comb({8: 3, 10: 3, 12: 3, 14: 6})
    kept = without_ticks(places, edges, 45)
    assert kept[:21].all()
    assert kept[21:].tolist() == [False] * 9 + [True] * 6


def test_the_shortest_tick_goes_first_and_the_rest_runs_on() -> None:
    """Two ends of 40 and 30 at one node: with the shorter one gone the longer one is the end of the spine."""
    places, edges = comb({16: 3})
    kept = without_ticks(places, edges, 45)
    assert kept[:21].all()
    assert not kept[21:].any()
    assert without_ticks(places, edges, 29).all()


def test_a_line_without_branches_is_no_tick() -> None:
    places, edges = comb({})
    assert without_ticks(places, edges, 1000).all()
