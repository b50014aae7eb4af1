"""Positions from offsets: exact where they agree, unmoved by those that lie, honest about tiles that nothing holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apps.montage.brightness import equalise
from apps.montage.offsets import Look
from apps.montage.solve import Solution, solve

GRID = [(i, j) for i in range(4) for j in range(5)]
PAIRS = np.array(
    [(a, b) for a, b in itertools.combinations(range(20), 2) if sum(abs(np.subtract(GRID[a], GRID[b]))) == 1]
)


def offsets_of(true: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    exact = true[PAIRS[:, 1]] - true[PAIRS[:, 0]]
    return exact + noise * np.random.default_rng(seed).standard_normal(exact.shape)


def stage_and_truth(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    stage = 100.0 * np.array(GRID)
    return stage, stage + np.random.default_rng(seed).uniform(-20, 20, stage.shape)


def rms(solution: Solution, true: np.ndarray) -> float:
    error = solution.positions - true
    return float(np.sqrt(np.mean((error - error.mean(axis=0)) ** 2)))


def test_offsets_that_agree_give_the_truth_with_the_stages_mean() -> None:
    stage, true = stage_and_truth()
    solution = solve(stage, PAIRS, offsets_of(true), np.full(len(PAIRS), 0.1), 3.0)
    assert rms(solution, true) < 1e-4
    assert np.allclose(solution.positions.mean(axis=0), stage.mean(axis=0))
    assert solution.used.all() and solution.connected.all() and solution.residuals.max() < 1e-4


@pytest.mark.parametrize("seed", range(8))
def test_wrong_offsets_are_rejected_and_no_others(seed: int) -> None:
    """A wrong pair shows where each of its tiles has two more pairs; at a corner either of two could be to blame."""
    stage, true = stage_and_truth(seed)
    rng = np.random.default_rng(seed)
    offsets = offsets_of(true, 0.1, seed)
    wrong: list[int] = []
    for pair in rng.permutation(len(PAIRS)):
        if not np.isin(PAIRS[pair], [0, 4, 15, 19, *PAIRS[wrong].ravel()]).any() and len(wrong) < 4:
            wrong.append(int(pair))
    offsets[wrong] += rng.choice([-1, 1], (len(wrong), 2)) * rng.uniform(8, 40, (len(wrong), 2))
    solution = solve(stage, PAIRS, offsets, np.full(len(PAIRS), 0.1), 3.0)
    assert sorted(np.flatnonzero(~solution.used)) == sorted(wrong)
    assert rms(solution, true) < 0.15 and solution.residuals[wrong].min() > 3


def test_of_two_pairs_that_contradict_each_other_the_surer_one_is_kept() -> None:
    """The corner tile 0 has two pairs, to tiles 1 and 5."""
    stage, true = stage_and_truth(2)
    offsets = offsets_of(true, 0.05)
    wrong = int(np.flatnonzero((PAIRS == (0, 5)).all(axis=1))[0])
    offsets[wrong] += (12.0, -9.0)
    spreads = np.full(len(PAIRS), 0.1)
    spreads[wrong] = 0.4
    solution = solve(stage, PAIRS, offsets, spreads, 3.0)
    assert list(np.flatnonzero(~solution.used)) == [wrong] and rms(solution, true) < 0.1


def test_tiles_that_nothing_holds_stay_where_the_stage_put_them() -> None:
    stage, true = stage_and_truth(1)
    held = ~np.isin(PAIRS, [0, 18, 19]).any(axis=1) | (PAIRS == (18, 19)).all(axis=1)
    solution = solve(stage, PAIRS[held], offsets_of(true)[held], np.full(held.sum(), 0.1), 3.0)
    assert list(np.flatnonzero(~solution.connected)) == [0, 18, 19]
    assert np.allclose(solution.positions[0], stage[0])
    assert np.allclose(solution.positions[18:].mean(axis=0), stage[18:].mean(axis=0))
    assert np.allclose(solution.positions[19] - solution.positions[18], true[19] - true[18])


def test_without_pairs_all_stay() -> None:
    stage, _ = stage_and_truth()
    solution = solve(stage, np.zeros((0, 2), np.intp), np.zeros((0, 2)), np.zeros(0), 3.0)
    assert np.array_equal(solution.positions, stage) and solution.connected.sum() == 1


def test_a_thousand_tiles_take_no_dense_matrix() -> None:
    n = 50
    stage = np.array([(100.0 * i, 100.0 * j) for i in range(n) for j in range(n)])
    true = stage + np.random.default_rng(0).uniform(-20, 20, stage.shape)
    index = np.arange(n * n).reshape(n, n)
    pairs = np.concatenate(
        [
            np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1),
            np.stack([index[:-1].ravel(), index[1:].ravel()], 1),
        ]
    )
    solution = solve(stage, pairs, true[pairs[:, 1]] - true[pairs[:, 0]], np.ones(len(pairs)), 3.0)
    assert rms(solution, true) < 1e-3


def test_brightness_and_contrast_become_alike() -> None:
    """Three tiles in a row that show one scene of mean 100 and spread 20 with gains 1, 2, 0.5 and shifts 0, 10, -20."""
    gains, shifts = np.array([1.0, 2.0, 0.5]), np.array([0.0, 10.0, -20.0])
    looks = [
        Look(100 * gains[a] + shifts[a], 20 * gains[a], 100 * gains[b] + shifts[b], 20 * gains[b])
        for a, b in ((0, 1), (1, 2))
    ]
    found = equalise(3, np.array([(0, 1), (1, 2)]), looks)
    seen = (100 * gains + shifts - found.pivot) * found.gain + found.pivot + found.brightness
    assert np.ptp(found.gain * gains) < 0.05 and np.ptp(seen) < 2
    nothing = equalise(2, np.zeros((0, 2), np.intp), [])
    assert np.array_equal(nothing.gain, [1, 1]) and np.array_equal(nothing.brightness, [0, 0])
