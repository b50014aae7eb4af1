"""Block matching, outliers and the coarse search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import shift as moved

from apps.alignment.blocks import match_blocks
from apps.alignment.coarse import find_rigid
from apps.alignment.fields import consistent, fill
from apps.alignment.images import Piece, read_piece, shrink
from apps.alignment.transforms import Rigid
from tests.apps.alignment.synthetic import EXTENT, acquire, in_memory, texture

FULL = np.ones((96, 96), bool)
CORNERS = np.array([[16, 16], [16, 40], [40, 24], [48, 48]])


def plane() -> np.ndarray:
    return (texture(1, extent=96)[0] - 128).astype(np.float32)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -5.0), (-2.4, 1.7)])
def test_blocks_are_found_where_they_are(shift: tuple[float, float]) -> None:
    image = plane()
    found = match_blocks((image, FULL), (moved(image, shift, order=3, mode="nearest"), FULL), CORNERS, 32, 8)
    assert np.abs(found.shift - shift).max() < 0.15
    assert found.correlation.min() > 0.95
    assert found.ratio.max() < 0.8
    assert found.tissue.all()


def test_blocks_without_tissue_or_contrast_give_no_answer() -> None:
    image, half = plane(), FULL.copy()
    half[:, 44:] = False
    found = match_blocks((image, half), (image, FULL), CORNERS, 32, 8)
    assert list(found.tissue) == [True, False, False, False]
    flat = np.zeros_like(image)
    assert not match_blocks((flat, FULL), (image, FULL), CORNERS, 32, 8).correlation.any()
    assert not match_blocks((image, FULL), (flat, FULL), CORNERS, 32, 8).correlation.any()


def test_a_pattern_that_repeats_has_two_peaks() -> None:
    stripes = np.tile(np.sin(np.arange(96) * np.pi / 4).astype(np.float32), (96, 1))
    found = match_blocks((stripes, FULL), (stripes, FULL), CORNERS, 32, 8)
    assert found.ratio.min() > 0.95


def test_a_peak_beyond_the_search_is_not_trusted() -> None:
    image = plane()
    found = match_blocks((image, FULL), (moved(image, (0, 9), order=1), FULL), CORNERS[:1], 32, 8)
    assert found.ratio[0] == 1 or found.correlation[0] < 0.8


def test_outliers_disagree_with_their_neighbours() -> None:
    shift = np.zeros((6, 6, 2))
    shift[..., 0] = np.arange(6) * 0.3
    good = np.ones((6, 6), bool)
    shift[2, 3] = [8.0, 0.0]
    good[5, 5] = False
    kept = consistent(shift, good)
    assert not kept[2, 3]
    assert not kept[5, 5]
    assert kept.sum() >= 33
    alone = np.zeros((6, 6), bool)
    alone[0, 0] = True
    assert not consistent(shift, alone).any()


def test_fill_keeps_good_shifts_and_bridges_the_others() -> None:
    shift = np.tile([2.0, -1.0], (8, 8, 1))
    good = np.ones((8, 8), bool)
    good[3:6, 3:6] = False
    shift[~good] = 100.0
    assert np.allclose(fill(shift, good, 0.7), [2.0, -1.0])


def test_shrink_averages_tissue_only() -> None:
    image = np.array([[10, 20, 0, 0], [30, 0, 0, 7]], np.uint8)
    pixels, valid = shrink(image, 2)
    assert pixels.tolist() == [[20.0, 0.0]]
    assert valid.tolist() == [[True, False]]


def test_a_piece_may_leave_the_section(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(1, 255, (40, 50), np.uint8)
    whole = read_piece(in_memory(image), (-2, 12, -1, 14), 4)
    assert (whole.pixels[:2].any(), whole.pixels[2:, 0].any()) == (False, False)
    assert np.allclose(whole.pixels[2:12, 1:13], image[:40, :48].reshape(10, 4, 12, 4).mean(axis=(1, 3)))
    monkeypatch.setattr("apps.alignment.images._PIXELS_AT_ONCE", 500)
    assert np.array_equal(read_piece(in_memory(image), (-2, 12, -1, 14), 4).pixels, whole.pixels)


@pytest.mark.parametrize(("turn", "limit"), [(-14.0, 20.0), (160.0, 180.0)])
def test_rotation_and_translation_are_found(turn: float, limit: float) -> None:
    first = acquire(texture(1)[0], 1, turn_deg=0)
    middle = (EXTENT - 1) / 2
    rigid = Rigid(np.deg2rad(turn), (0.0, 0.0))
    y, x = np.mgrid[:EXTENT, :EXTENT].astype(float)
    places = rigid.inverse()(np.stack([y, x], axis=-1) - middle - [7, -10]) + middle
    from scipy.ndimage import map_coordinates

    second = map_coordinates(first.image.astype(np.float32), np.moveaxis(places, -1, 0), order=1)
    pieces = [Piece(image.astype(np.float32), image > 0, (0, 0)) for image in (first.image, second)]
    found = find_rigid(pieces[0], pieces[1], limit)
    points = np.array([[40.0, 40.0], [110.0, 60.0], [80.0, 110.0]])
    assert np.abs(found.rigid(points) - (rigid(points - middle) + middle + [7, -10])).max() < 2
    assert found.correlation > 0.5
