"""The acquisition: tiles show what the truth says, in any order, and artefacts happen where they are asked for."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from scipy import ndimage
from skimage.registration import phase_cross_correlation

from apps.core.errors import DataError, ParameterError
from apps.phantom.acquisition import (
    AcquisitionDesign,
    Image,
    acquire_section,
    section_truth,
    true_section_image,
    true_section_labels,
)
from apps.phantom.artefacts import Artefact, ArtefactKind
from apps.phantom.warps import displacement, grid_shape, section_warp

PERFECT = {"illumination": 0.0, "contrast_drift": 0.0, "brightness_drift": 0.0, "noise": 0.0}
STILL = {"translation": 0.0, "rotation_deg": 0.0, "deformation": 0.0, "jitter": 0.0}


def design(**changes: Any) -> AcquisitionDesign:
    return AcquisitionDesign.from_json({"grid": [2, 3], "overlap": 0.3, **changes})


@pytest.fixture(scope="module")
def section() -> Image:
    """A textured section of 200 x 260 pixels."""
    field = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((200, 260)), 2.0)
    return np.clip(128 + 30 * field / field.std(), 0, 255).astype(np.uint8)


def test_sections_are_the_same_in_any_order_and_differ_by_seed_and_number(section: Image) -> None:
    forward = [acquire_section(section, design(), 5, k) for k in (0, 1)]
    for made in reversed(forward):
        again = acquire_section(section, design(), 5, made.section)
        assert all(np.array_equal(a, b) for a, b in zip(made.tiles, again.tiles, strict=True))
        assert np.array_equal(made.true, again.true) and np.array_equal(made.warp, again.warp)
    assert not np.array_equal(forward[0].warp, forward[1].warp)
    assert not np.array_equal(forward[0].true, acquire_section(section, design(), 6, 0).true)


def test_without_motion_and_camera_a_tile_is_a_part_of_the_section(section: Image) -> None:
    made = acquire_section(section, design(**PERFECT, **STILL), 0, 0)
    assert made.numbers == tuple(range(6)) and np.array_equal(made.true, made.nominal)
    height, width = made.tiles[0].shape
    for tile, (y, x) in zip(made.tiles, made.true.astype(int), strict=True):
        assert np.array_equal(tile, section[y : y + height, x : x + width])


def test_tiles_fill_the_section_with_the_asked_overlap_and_jitter(section: Image) -> None:
    asked = design(jitter=6.0)
    made = acquire_section(section, asked, 1, 0)
    height, width = asked.tile_shape((200, 260))
    assert (height, width) == (110, 103)  # (200 - 12) / (2 - 0.3), (260 - 12) / (3 - 2 * 0.3)
    assert made.nominal.tolist() == [[6 + 77 * i, 6 + 72 * j] for i in range(2) for j in range(3)]
    missed = made.true - made.nominal
    assert 2.0 < np.abs(missed).max() <= 6.0 and (missed != np.rint(missed)).all()
    assert made.true.min() >= 0 and made.true[:, 0].max() + height <= 200 and made.true[:, 1].max() + width <= 260


def test_true_offsets_are_what_registration_finds(section: Image) -> None:
    """Two neighbours' overlap, cut at their true offsets rounded, differs by the rest."""
    made = acquire_section(section, design(jitter=6.0), 2, 0)
    shift = made.true[1] - made.true[0]
    whole = np.rint(shift).astype(int)
    left = made.tiles[0][max(0, whole[0]) :, whole[1] :].astype(float)
    right = made.tiles[1][max(0, -whole[0]) :, : left.shape[1]].astype(float)
    rows = min(len(left), len(right))
    left, right = (ndimage.gaussian_filter(part[:rows], 2) for part in (left, right))
    found, *_ = phase_cross_correlation(left, right, upsample_factor=50, normalization=None)
    assert np.abs(found - (shift - whole)).max() < 0.3


def test_the_warp_says_what_the_true_section_shows(section: Image) -> None:
    asked = design(**PERFECT, deformation=3.0, deformation_length=40.0, rotation_deg=3.0)
    image = true_section_image(section, asked, 7, 4)
    truth = section_truth((200, 260), asked, 7, 4)
    assert truth.warp.dtype == np.float32 and truth.warp.shape == (2, *grid_shape((200, 260), truth.warp_spacing))
    points = np.moveaxis(np.mgrid[40:160:5, 40:220:5], 0, -1).astype(float)
    moved = points + displacement(truth.warp, truth.warp_spacing, points)
    there = ndimage.map_coordinates(section.astype(float), np.moveaxis(moved, -1, 0), order=3)
    assert np.abs(there - image[40:160:5, 40:220:5]).max() < 1.0
    assert np.abs(moved - points).max() > 3.0


def test_the_warp_is_rotation_about_the_middle_plus_translation() -> None:
    rng = np.random.default_rng(0)
    warp = section_warp(rng, (101, 201), 25, (3.0, -4.0), 90.0, 0.0, 100.0)
    points = np.array([[50.0, 100.0], [40.0, 100.0], [50.0, 130.0]])
    moved = points + displacement(warp, 25, points)
    assert np.allclose(moved, [[53.0, 96.0], [53.0, 86.0], [23.0, 96.0]], atol=1e-4)


def test_displacement_is_bilinear_between_nodes() -> None:
    warp = np.zeros((2, 2, 3), np.float32)
    warp[0] = [[0, 4, 4], [8, 12, 12]]
    found = displacement(warp, 10, np.array([[0.0, 5.0], [5.0, 5.0], [10.0, 20.0]]))
    assert found.tolist() == [[2.0, 0.0], [6.0, 0.0], [12.0, 0.0]]


def test_deformation_has_the_asked_size() -> None:
    rng = np.random.default_rng(1)
    warps = [section_warp(rng, (600, 600), 25, (0.0, 0.0), 0.0, 2.5, 100.0) for _ in range(20)]
    assert 2.0 < np.std(warps) < 3.0


def test_illumination_is_one_pattern_and_drift_is_each_tiles_own() -> None:
    flat = np.full((200, 260), 128, np.uint8)
    lit = acquire_section(flat, design(**{**PERFECT, "illumination": 0.3}, **STILL), 3, 0).tiles
    assert all(np.array_equal(tile, lit[0]) for tile in lit)
    assert lit[0].max() == 128 and lit[0].min() == round(128 * 0.7)
    drifted = acquire_section(flat, design(**{**PERFECT, "brightness_drift": 9.0}, **STILL), 3, 0).tiles
    assert all(np.ptp(tile) == 0 for tile in drifted) and len({int(tile[0, 0]) for tile in drifted}) > 3
    noisy = acquire_section(flat, design(**{**PERFECT, "noise": 10.0}, **STILL), 3, 0).tiles
    assert 9 < noisy[0].std() < 11 and not np.array_equal(noisy[0], noisy[1])


def test_labels_follow_the_section(section: Image) -> None:
    """Labels that are the image's own grey values, warped, are the true section image up to interpolation."""
    asked = design(**PERFECT, deformation=3.0, deformation_length=60.0, artefacts=[{"kind": "fold", "section": 1}])
    truth = section_truth((200, 260), asked, 7, 1)
    labels = true_section_labels((section >= 128).astype(np.uint32), truth, beyond=9)
    assert labels.dtype == np.uint32 and set(np.unique(labels)) == {0, 1, 9}
    bright = true_section_image(section, asked, 7, 1) >= 128
    points = np.moveaxis(np.indices((200, 260), np.float64), 0, -1)
    assert truth.fold is not None
    shown = (labels < 9) & (np.abs(truth.fold.distance(points)) > 10)
    assert (labels == bright)[shown].mean() > 0.93


def test_beyond_the_block_there_is_resin_and_a_margin_keeps_away_from_it() -> None:
    dark = np.full((200, 260), 50, np.uint8)
    moved = {**STILL, "translation": 15.0}
    assert max(t.max() for t in acquire_section(dark, design(**PERFECT, **moved), 0, 0).tiles) > 180
    inside = acquire_section(dark, design(**PERFECT, **moved, margin=16), 0, 0).tiles
    assert {int(value) for tile in inside for value in np.unique(tile)} == {50}


def test_missing_tiles_and_sections(section: Image) -> None:
    asked = design(
        artefacts=[{"kind": "missing_tile", "section": 1, "tile": 4}, {"kind": "missing_section", "section": 2}]
    )
    whole = acquire_section(section, design(), 0, 1)
    without = acquire_section(section, asked, 0, 1)
    assert without.numbers == (0, 1, 2, 3, 5) and len(without.nominal) == len(without.true) == 5
    for number, tile in zip(without.numbers, without.tiles, strict=True):
        assert np.array_equal(tile, whole.tiles[number])  # nothing else changes
    missing = acquire_section(section, asked, 0, 2)
    assert missing.tiles == [] and missing.true.shape == (0, 2) and missing.warp.ndim == 3
    assert not true_section_image(section, asked, 0, 2).any()
    assert len(acquire_section(section, asked, 0, 0).tiles) == 6


def test_an_artefact_without_a_tile_draws_one(section: Image) -> None:
    asked = design(artefacts=[{"kind": "missing_tile", "section": 1}])
    made = acquire_section(section, asked, 0, 1)
    (artefact,) = made.truth.artefacts
    assert artefact.tile is not None and set(made.numbers) == set(range(6)) - {artefact.tile}


def test_charging_brightens_one_tile(section: Image) -> None:
    plain = acquire_section(section, design(**PERFECT), 0, 0).tiles
    charged = acquire_section(
        section, design(**PERFECT, artefacts=[{"kind": "charging", "section": 0, "tile": 2}]), 0, 0
    ).tiles
    for number, (a, b) in enumerate(zip(plain, charged, strict=True)):
        assert np.array_equal(a, b) == (number != 2)
    gain = charged[2].astype(int) - plain[2]
    assert gain.min() >= 0 and gain.max() > 40


def test_a_fold_hides_a_strip_and_moves_both_sides(section: Image) -> None:
    asked = design(**PERFECT, **STILL, artefacts=[{"kind": "fold", "section": 0, "fold_width": 12.0}])
    truth = section_truth((200, 260), asked, 3, 0)
    assert truth.fold is not None
    normal = np.asarray(truth.fold.normal)
    beside = np.asarray(truth.fold.point) + np.array([[0.01], [-0.01]]) * normal
    jump = truth.displacement(beside)
    assert np.allclose(jump[0] - jump[1], 12.0 * normal)
    image = true_section_image(section, asked, 3, 0)
    points = np.moveaxis(np.mgrid[20:180, 20:240], 0, -1).astype(float)
    distance = truth.fold.distance(points)
    crease = image[20:180, 20:240][np.abs(distance) < 1]
    assert np.median(crease) < 60
    away = np.abs(distance) > 9
    block = np.moveaxis(points + truth.displacement(points), -1, 0)
    shown = ndimage.map_coordinates(section.astype(float), block, order=3)
    assert np.abs(shown - image[20:180, 20:240])[away].max() < 1.5
    node = truth.warp[:, 0, 0]  # a fold is in the warp that is written, too
    assert np.allclose(node, truth.displacement(np.zeros((1, 2)))[0], atol=1e-5)


def test_dirt_covers_the_asked_share(section: Image) -> None:
    plain = true_section_image(section, design(**PERFECT), 0, 0)
    asked = design(**PERFECT, artefacts=[{"kind": "damaged_section", "section": 0, "covered": 0.6}])
    damaged = true_section_image(section, asked, 0, 0)
    assert 0.5 < (plain != damaged).mean() < 0.75
    tiles = acquire_section(section, asked, 0, 0).tiles
    assert np.mean([tile.mean() for tile in tiles]) < plain.mean() - 15


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"overlap": 0.0}, "overlap"),
        ({"grid": [0, 3]}, "grid"),
        ({"artefacts": [{"kind": "tear", "section": 0}]}, "kind"),
        ({"artefacts": [{"kind": "fold", "section": 0, "tile": 1}]}, "give no tile"),
        ({"artefacts": [{"kind": "charging", "section": 0, "tile": 6}]}, "tile 6 of 6"),
    ],
)
def test_bad_designs_are_named(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        design(**changes)


def test_tiles_that_do_not_fit_are_refused(section: Image) -> None:
    with pytest.raises(ParameterError, match="larger section"):
        acquire_section(section, design(grid=[20, 20]), 0, 0)
    with pytest.raises(ParameterError, match="can miss each other"):
        acquire_section(section, design(jitter=18.0), 0, 0)
    with pytest.raises(DataError, match="uint8"):
        acquire_section(section.astype(float), design(), 0, 0)


def test_kinds_are_the_words_of_the_documentation() -> None:
    assert list(get_args(ArtefactKind)) == [
        "fold",
        "charging",
        "missing_tile",
        "missing_section",
        "damaged_section",
    ]
    assert Artefact(kind="fold", section=0).fold_width == 16.0
