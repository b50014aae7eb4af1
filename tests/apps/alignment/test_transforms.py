"""Rigid motions and meshes, by hand-computed cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

from apps.alignment.transforms import (
    IDENTITY,
    Grid,
    Mesh,
    Rigid,
    fit_rigid,
    fit_rigid_robustly,
    section_grid,
)

POINTS = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 20.0], [7.0, 5.0], [-3.0, 8.0]])


def test_a_quarter_turn_goes_from_y_to_x() -> None:
    assert np.allclose(Rigid(math.pi / 2, (1.0, 2.0))(np.array([3.0, 0.0])), [1.0, 5.0])


def test_inverse_and_composition() -> None:
    first, then = Rigid(0.3, (4.0, -1.0)), Rigid(-1.1, (2.0, 7.0))
    assert np.allclose(first.inverse()(first(POINTS)), POINTS)
    assert np.allclose(then.after(first)(POINTS), then(first(POINTS)))


def test_fit_recovers_the_motion() -> None:
    rigid = Rigid(2.5, (12.0, -30.0))
    found = fit_rigid(POINTS, rigid(POINTS), np.array([1.0, 2.0, 1.0, 0.5, 1.0]))
    assert np.allclose([found.angle, *found.shift], [2.5, 12.0, -30.0])


def test_robust_fit_lets_go_of_outliers() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (60, 2))
    target = Rigid(0.2, (5.0, 5.0))(points)
    target[:15] += rng.uniform(20, 60, (15, 2))
    found = fit_rigid_robustly(points, target, 0.5)
    assert np.hypot(*(found(points[15:]) - target[15:]).T).max() < 0.1


def test_grid_is_bilinear_and_constant_outside() -> None:
    values = np.zeros((2, 3, 2))
    values[1, 2] = [4.0, 8.0]
    grid = Grid(1.5, 10.0, values)
    assert np.allclose(grid(np.array([[6.5, 16.5], [11.5, 21.5], [99.0, 99.0]])), [[1.0, 2.0], [4.0, 8.0], [4.0, 8.0]])


def bent(amplitude: float) -> Mesh:
    grid = section_grid((64, 96), 16.0)
    rng = np.random.default_rng(1)
    return Mesh(Rigid(0.4, (30.0, -9.0)), Grid(0.0, 16.0, amplitude * rng.standard_normal(grid.values.shape)))


def test_mesh_inverse_undoes_the_mesh() -> None:
    mesh = bent(1.0)
    points = np.random.default_rng(2).uniform(0, 60, (50, 2))
    assert np.abs(mesh.inverse(mesh(points)) - points).max() < 1e-3


def test_grid_covers_the_section() -> None:
    assert section_grid((64, 97), 16.0).values.shape == (5, 7, 2)
    assert section_grid((10, 10), 16.0).values.shape == (2, 2, 2)


def test_strain_of_a_stretch() -> None:
    values = section_grid((65, 65), 16.0).values.copy()
    values[..., 0] = 0.1 * np.arange(5)[:, None] * 16  # ten percent longer along y
    rms, largest = Mesh(Rigid(1.0, (3.0, 3.0)), Grid(0.0, 16.0, np.zeros_like(values))).strain()
    assert rms == pytest.approx(0, abs=1e-12)
    rms, largest = Mesh(IDENTITY, Grid(0.0, 16.0, values)).strain()
    assert (rms, largest) == pytest.approx((0.1 / math.sqrt(2), 0.1))


def test_folds_are_counted() -> None:
    values = section_grid((65, 65), 16.0).values.copy()
    assert Mesh(IDENTITY, Grid(0.0, 16.0, values)).folds() == 0
    values[2, 2] = [40.0, 0.0]  # past the vertex below: the two cells above stretch, those below turn over
    assert Mesh(IDENTITY, Grid(0.0, 16.0, values)).folds() == 2
