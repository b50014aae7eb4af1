"""Poses and springs of many sections, from points that are known exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from apps.alignment.poses import Pair, between, solve_poses
from apps.alignment.settings import SolveSettings
from apps.alignment.springs import residuals, solve_springs
from apps.alignment.transforms import IDENTITY, Grid, Mesh, Points, Rigid, fit_rigid, section_grid

CENTRE = np.array([64.0, 64.0])
SETTINGS = SolveSettings(anchor=1e-6, stiffness=1e-3)


def poses(count: int) -> list[Rigid]:
    rng = np.random.default_rng(3)
    drawn = [Rigid(float(rng.uniform(-0.3, 0.3)), tuple(rng.uniform(-20, 20, 2))) for _ in range(count)]
    return [IDENTITY, *drawn[1:]]


def pair(a: int, b: int, truth: list[Rigid], wrong: int = 0) -> Pair:
    """Points of the sections a and b that lie at the same places of the block, `wrong` of them far off."""
    block = np.random.default_rng(a * 100 + b).uniform(0, 128, (80, 2))
    first, second = truth[a].inverse()(block), truth[b].inverse()(block)
    rigid = fit_rigid(first, second, np.ones(80))
    second[:wrong] += 25
    return Pair(a, b, first, second, np.ones(80), rigid)


def same(found: Rigid, expected: Rigid) -> bool:
    points = CENTRE * np.array([[0], [1], [2]])
    return bool(np.abs(found(points) - expected(points)).max() < 0.05)


def test_poses_are_recovered_over_a_gap_and_in_spite_of_wrong_matches() -> None:
    truth = poses(6)
    pairs = [pair(*p, truth, wrong=10) for p in ((0, 1), (0, 2), (1, 2), (2, 4), (2, 5), (4, 5))]
    found = solve_poses([0, 1, 2, 4, 5], pairs, {}, CENTRE, SETTINGS)
    assert all(same(found[n], truth[n]) for n in (0, 1, 2, 4, 5))


def test_fixed_poses_stay_and_place_the_others() -> None:
    truth = poses(4)
    moved = Rigid(0.5, (100.0, 3.0))
    fixed = {0: moved.after(truth[0]), 1: moved.after(truth[1])}
    found = solve_poses([2, 3], [pair(0, 2, truth), pair(1, 2, truth), pair(2, 3, truth)], fixed, CENTRE, SETTINGS)
    assert found[0] == fixed[0]
    assert all(same(found[n], moved.after(truth[n])) for n in (2, 3))


def test_parts_that_nothing_connects_are_held_together() -> None:
    truth = poses(4)
    found = solve_poses([0, 1, 2, 3], [pair(0, 1, truth), pair(2, 3, truth)], {}, CENTRE, SETTINGS)
    assert same(found[2], found[1])
    assert same(found[2].inverse().after(found[3]), truth[2].inverse().after(truth[3]))


def test_rigid_anchor_pulls_sections_to_where_they_were() -> None:
    truth = [IDENTITY, *(Rigid(0.0, (1.0 * n, 0.0)) for n in range(1, 20))]
    pairs = [pair(n, n + 1, truth) for n in range(19)]
    free = solve_poses(range(20), pairs, {}, CENTRE, SETTINGS)
    held = solve_poses(range(20), pairs, {}, CENTRE, SolveSettings(rigid_anchor=1.0))
    assert free[19].shift[0] == pytest.approx(19, abs=0.01)
    assert abs(held[10].shift[0]) < 0.5


def test_a_section_between_two_lies_half_way() -> None:
    found = between((3, Rigid(0.0, (0.0, 0.0))), (5, Rigid(0.2, (0.0, 0.0))), 4, CENTRE)
    assert found.angle == pytest.approx(0.1)
    assert between((3, IDENTITY), (6, Rigid(0.0, (3.0, -6.0))), 4, CENTRE).shift == pytest.approx((1.0, -2.0))


def bend(amplitude: float, wave: float) -> Callable[[Points], Points]:
    def displacement(points: Points) -> Points:
        y, x = points.T * 2 * np.pi / wave
        return amplitude * np.stack([np.sin(x), np.cos(y)], axis=1)

    return displacement


def bent_pair(a: int, b: int, bends: list[Callable[[Points], Points]]) -> Pair:
    """Points on a grid of section a, and the same of section b, where bends say how far p is from its place."""
    y, x = np.mgrid[8:128:16, 8:128:16].astype(float)
    first = np.stack([y.ravel(), x.ravel()], axis=1)
    place = first + bends[a](first)
    second = place.copy()
    for _ in range(30):
        second = place - bends[b](second)
    return Pair(a, b, first, second, np.ones(len(first)), IDENTITY)


BENDS = [bend(0.0, 1.0), bend(2.0, 300.0), bend(-1.5, 250.0), bend(1.0, 400.0)]


def flat(count: int) -> dict[int, Mesh]:
    return {n: Mesh(IDENTITY, section_grid((129, 129), 16.0)) for n in range(count)}


def test_springs_bring_matched_points_together() -> None:
    pairs = [bent_pair(a, b, BENDS) for a, b in ((0, 1), (1, 2), (0, 2), (2, 3), (1, 3))]
    before = flat(4)
    after = solve_springs(before, {}, pairs, SETTINGS)
    for p in pairs:
        assert residuals(p, before).max() > 0.5
        assert residuals(p, after).max() < 0.1
    assert all(mesh.folds() == 0 for mesh in after.values())


def test_a_fixed_section_is_not_bent_and_others_follow_it() -> None:
    fixed = {0: Mesh(IDENTITY, Grid(0.0, 16.0, np.full((9, 9, 2), 5.0)))}
    pairs = [bent_pair(0, 1, BENDS)]
    after = solve_springs({1: flat(2)[1]}, fixed, pairs, SETTINGS)
    assert list(after) == [1]
    assert residuals(pairs[0], fixed | after).max() < 0.1


def test_wrong_matches_do_not_pull() -> None:
    good = bent_pair(0, 1, BENDS)
    second = good.second.copy()
    second[27] += [30.0, -30.0]
    spoilt = Pair(0, 1, good.first, second, good.weight, IDENTITY)
    after = solve_springs(flat(2), {}, [spoilt], SolveSettings(iterations=8))
    assert np.delete(residuals(spoilt, after), 27).max() < 1.0


def test_without_matches_nothing_bends() -> None:
    after = solve_springs(flat(1), {}, [], SETTINGS)
    assert not after[0].grid.values.any()


def test_error_does_not_grow_along_the_stack() -> None:
    """Every pair errs by a tenth of a pixel in one direction: the anchors keep that from becoming a slant."""
    flat_pair = bent_pair(0, 1, [BENDS[0], BENDS[0]])
    ripple = 0.1 * np.stack([np.sin(flat_pair.first[:, 1] / 20), np.zeros(64)], axis=1)
    pairs = [Pair(n, n + 1, flat_pair.first, flat_pair.second + ripple, flat_pair.weight, IDENTITY) for n in range(59)]
    after = solve_springs(flat(60), {}, pairs, SolveSettings())
    size = [float(np.abs(after[n].grid.values).max()) for n in range(60)]
    assert max(size) < 1.5
    assert max(size[20:40]) < 0.5
