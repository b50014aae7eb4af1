"""Illumination from what tiles share, grey ranges, and values that do not depend on how a tile is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.montage.illumination import Exposure, FlatField, estimate_flat_field
from apps.montage.offsets import Strip
from apps.montage.survey import SurveyedTile, grey_range, survey_section
from apps.montage.table import read_table
from apps.montage.workers import Workers
from tests.apps.montage.samples import cut, write

WHOLE = Strip((0, 0), (128, 128))


def surveyed(
    folder: Path, shade: float, grid: tuple[int, int] = (4, 4), deep: bool = False, seed: int = 2
) -> list[SurveyedTile]:
    section = cut(grid=grid, shade=shade, seed=seed)
    if deep:
        section.tiles = [(tile.astype(np.uint16) * 40 + 1000) for tile in section.tiles]
    table = write(folder, {0: section})
    with Workers(1, "threads", 0) as workers:
        return list(survey_section(0, read_table(table)[0], workers).tiles)


def test_the_shade_of_the_corners_is_found(tmp_path: Path) -> None:
    field = estimate_flat_field(surveyed(tmp_path, 0.4), 4, 0.0)
    assert field is not None
    r = np.linspace(-1, 1, 128)
    true = 1 - 0.4 * (r[:, None] ** 2 + (r - 0.2) ** 2) / 2
    found = field.at((128, 128), WHOLE)
    assert np.abs(found - true / true.mean()).mean() < 0.02
    assert np.abs(1 - true / true.mean()).mean() > 0.06


def test_content_is_not_taken_for_illumination(tmp_path: Path) -> None:
    for seed in range(4):
        field = estimate_flat_field(surveyed(tmp_path / str(seed), 0.0, (3, 3), seed=seed), 4, 0.0)
        assert field is None or np.abs(field.at((128, 128), WHOLE) - 1).mean() < 0.03


def test_a_handful_of_tiles_tell_nothing(tmp_path: Path) -> None:
    assert estimate_flat_field(surveyed(tmp_path, 0.4, (2, 2)), 4, 0.0) is None


def test_a_field_is_the_polynomial_it_says() -> None:
    # 1, y, x... in the order y^0x^0; y^0x^1, y^1x^0
    field = FlatField(1, (1.0, 0.5, 0.25)).at((2, 4), Strip((0, 0), (2, 4)))
    x, y = np.array([-0.75, -0.25, 0.25, 0.75]), np.array([-0.5, 0.5])
    assert np.allclose(field, 1 + 0.5 * x + 0.25 * y[:, None])


def test_parts_are_the_same_bytes_as_the_whole() -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (128, 128), dtype=np.uint16)
    exposure = Exposure((100.0, 40000.0), FlatField(2, (1.0, 0.1, -0.1, 0.05, 0.02, -0.2)))
    part = Strip((37, 5), (101, 90))
    whole = exposure.correct(image, WHOLE)[part.slices()]
    assert exposure.correct(image, part).tobytes() == np.ascontiguousarray(whole).tobytes()


def test_16_bit_values_are_scaled_to_grey_levels(tmp_path: Path) -> None:
    tiles = surveyed(tmp_path, 0.0, deep=True)
    found = grey_range(tiles)
    assert found is not None and 1000 <= found[0] < 4000 and 6000 < found[1] <= 1000 + 40 * 255
    grey = Exposure((1000.0, 1000.0 + 40 * 255), None).correct(
        np.array([[1000, 1040, 11200]], np.uint16), Strip((0, 0), (1, 3))
    )
    assert np.allclose(grey, [[0, 1, 255]], atol=1e-4)


def test_8_bit_tiles_have_no_range(tmp_path: Path) -> None:
    assert grey_range(surveyed(tmp_path, 0.0)) is None
    image = np.array([[0, 7, 255]], np.uint8)
    assert Exposure(None, None).correct(image, Strip((0, 1), (1, 3))) == pytest.approx(np.array([[7, 255]]))
