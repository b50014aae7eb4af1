"""Pairwise offsets: exact where there is structure, and no confidence where there is none."""

from __future__ import annotations

import numpy as np
import pytest

from apps.montage.filters import Floats, band_pass, reduce, sample_between
from apps.montage.offsets import Measured, Strip, correlation_at, measure, strips
from tests.apps.montage.samples import Section, cut


def measured(section: Section, a: int, b: int, search: int = 20, expected: np.ndarray | None = None) -> Measured | None:
    nominal = section.nominal[b] - section.nominal[a] if expected is None else expected
    offset = float(nominal[0]), float(nominal[1])
    shape = section.tiles[a].shape[0], section.tiles[a].shape[1]
    strip_a, strip_b = strips(shape, offset, search)
    parts = [section.tiles[i][s.slices()].astype(np.float32) for i, s in ((a, strip_a), (b, strip_b))]
    return measure(parts[0], parts[1], strip_a, strip_b, offset, search, 9)


def test_reduce_means_blocks_and_leaves_the_rest_out() -> None:
    assert np.array_equal(reduce(np.arange(15).reshape(3, 5), 2), [[3.0, 5.0]])


def test_sampling_between_pixels_is_exact_on_a_quadratic_and_the_same_in_parts() -> None:
    y, x = np.meshgrid(np.arange(12.0), np.arange(14.0), indexing="ij")
    image = (y * y + 2 * x * y - x * x).astype(np.float32)
    moved = sample_between(image, 0.25, 0.7)
    exact = (y + 0.25) ** 2 + 2 * (x + 0.7) * (y + 0.25) - (x + 0.7) ** 2
    assert np.abs(moved - exact)[1:-2, 1:-2].max() < 1e-3
    part = sample_between(np.ascontiguousarray(image[3:9, 2:10]), 0.25, 0.7)
    assert part[1:-2, 1:-2].tobytes() == moved[3:9, 2:10][1:-2, 1:-2].tobytes()


def test_the_band_pass_takes_out_slow_background() -> None:
    ramp = np.add.outer(np.arange(80.0), np.arange(80.0)).astype(np.float32)
    assert np.abs(band_pass(ramp)[20:-20, 20:-20]).max() < 1e-3


def test_strips_hold_all_that_can_overlap() -> None:
    a, b = strips((100, 80), (90.0, -4.5), 6)
    assert (a, b) == (Strip((84, 0), (100, 80)), Strip((0, 0), (16, 80)))
    far_a, far_b = strips((100, 80), (107.0, 0.0), 6)
    assert far_a.empty and far_b.empty


@pytest.mark.parametrize(("noise", "error"), [(0.0, 0.02), (12.0, 0.12), (40.0, 0.4)])
def test_offsets_are_exact_to_a_part_of_a_pixel(noise: float, error: float) -> None:
    section = cut(noise=noise, seed=3)
    for a, b in ((0, 1), (0, 3), (4, 5), (4, 7)):
        found = measured(section, a, b)
        assert found is not None
        assert np.abs(np.array(found.offset) - (section.true[b] - section.true[a])).max() < error
        assert found.significance > 6 and found.confidence > 0.4


def test_large_tiles_are_found_on_reduced_images_and_refined() -> None:
    section = cut(extent=700, overlap=120, grid=(1, 2), jitter=20, noise=20, seed=5)
    found = measured(section, 0, 1, search=50)
    assert found is not None
    assert np.abs(np.array(found.offset) - (section.true[1] - section.true[0])).max() < 0.03


def test_contrast_brightness_and_shade_do_not_move_it() -> None:
    section = cut(noise=8, seed=4, shade=0.3)
    section.tiles[1] = np.clip(section.tiles[1] * 0.6 + 70, 0, 255).astype(np.uint8)
    found = measured(section, 0, 1)
    assert found is not None
    assert np.abs(np.array(found.offset) - (section.true[1] - section.true[0])).max() < 0.2


def test_images_that_have_nothing_in_common_have_no_significance() -> None:
    one, other = cut(seed=6, noise=5), cut(seed=7, noise=5)
    one.tiles[1] = other.tiles[7]
    found = measured(one, 0, 1)
    assert found is None or found.significance < 5


def test_a_tile_without_structure_gives_nothing() -> None:
    section = cut(seed=8)
    section.tiles[1] = np.full_like(section.tiles[1], 77)
    assert measured(section, 0, 1) is None


def test_beyond_the_search_nothing_is_claimed() -> None:
    section = cut(seed=9, noise=5)
    away = section.true[1] - section.true[0] + (0.0, 18.0)
    found = measured(section, 0, 1, search=8, expected=away)
    assert found is None or found.significance < 5 or found.confidence < 0.2


def test_the_correlation_at_a_place_falls_off_beside_it() -> None:
    section = cut(seed=10, noise=5)
    a, b = (tile.astype(np.float32) for tile in section.tiles[:2])
    whole = Strip((0, 0), (128, 128))

    def at(offset: np.ndarray) -> float:
        found = correlation_at(a, b, whole, whole, (float(offset[0]), float(offset[1])))
        assert found is not None
        return found[0]

    true: Floats = section.true[1] - section.true[0]
    assert at(true) > 0.9 > at(true + 1.5) > at(true + 6)
    assert correlation_at(a, b, whole, whole, (0.0, 200.0)) is None
