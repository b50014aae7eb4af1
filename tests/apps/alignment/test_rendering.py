"""Rendering: exact where it must be, bright at borders, and the same however it is divided."""

from __future__ import annotations

import numpy as np
import pytest

from apps.alignment.rendering import Source, render_plane
from apps.alignment.transforms import IDENTITY, Grid, Mesh, Rigid, section_grid
from tests.apps.alignment.synthetic import in_memory

every_interpolation = pytest.mark.parametrize("interpolation", ["linear", "cubic"])


def flat(rigid: Rigid = IDENTITY, shape: tuple[int, int] = (70, 90)) -> Mesh:
    return Mesh(rigid, section_grid(shape, 16.0))


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (70, 90), np.uint8)


@every_interpolation
def test_whole_pixels_are_copied_and_the_outside_is_black(interpolation: str) -> None:
    image = noise()
    found = render_plane(Source(in_memory(image), flat(Rigid(0.0, (5.0, -3.0)))), (0, 0), (80, 96), interpolation)
    expected = np.zeros((80, 96), np.uint8)
    expected[5:75, :87] = image[:, 3:]
    assert np.array_equal(found, expected)


@every_interpolation
def test_borders_and_holes_do_not_darken(interpolation: str) -> None:
    image = np.full((70, 90), 200, np.uint8)
    image[30:40, 50:60] = 0
    image[:, 80:] = 0
    found = render_plane(Source(in_memory(image), flat(Rigid(0.31, (7.4, 9.7)))), (-20, -20), (120, 140), interpolation)
    assert set(np.unique(found)) == {0, 200}
    expected = 70 * 80 - 100
    assert abs(np.count_nonzero(found) - expected) < 0.01 * expected


def test_black_pixels_of_tissue_stay_tissue() -> None:
    image = np.full((70, 90), 1, np.uint8)
    assert render_plane(Source(in_memory(image), flat(Rigid(0.1, (0.3, 0.2)))), (10, 10), (40, 40), "cubic").all()


@every_interpolation
def test_every_pixel_is_the_same_in_any_chunk(interpolation: str) -> None:
    grid = section_grid((70, 90), 16.0)
    values = 2.0 * np.random.default_rng(1).standard_normal(grid.values.shape)
    source = Source(in_memory(noise()), Mesh(Rigid(0.2, (3.0, 4.0)), Grid(0.0, 16.0, values)))
    whole = render_plane(source, (-16, -16), (112, 112), interpolation)
    part = render_plane(source, (21, 13), (30, 41), interpolation)
    different = part.astype(int) - whole[37:67, 29:70]
    assert np.abs(different).max() <= (1 if interpolation == "cubic" else 0)


def test_a_plane_beyond_the_section_is_black() -> None:
    assert not render_plane(Source(in_memory(noise()), flat()), (500, 500), (16, 16), "linear").any()


def test_the_mesh_is_followed() -> None:
    """A stretch by two along x: the pixel 2 x of the volume is the pixel x of the section."""
    values = section_grid((70, 90), 16.0).values.copy()
    values[..., 1] = np.arange(values.shape[1]) * 8.0  # half as long again; an inverse that converges
    image = noise()
    found = render_plane(Source(in_memory(image), Mesh(IDENTITY, Grid(0.0, 16.0, values))), (0, 0), (70, 120), "linear")
    assert np.abs(found[:, 0:120:3].astype(int) - image[:, 0:80:2]).max() <= 1
