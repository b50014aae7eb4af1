from __future__ import annotations

import numpy as np
import pytest

from apps.ffn.seeds import find_seeds
from tests.apps.ffn.tiny import FIB25, needs_fib25


def test_peaks_lie_inside_objects_in_order() -> None:
    image = np.full((20, 40, 40), -2.0, np.float32)
    image[:, 4:18, 4:18] = image[:, 22:36, 22:36] = 1.0
    seeds = find_seeds("peaks", image, (1.0, 1.0, 1.0), (3, 3, 3))
    assert seeds.tolist() == sorted(seeds.tolist())
    assert {tuple(seed[1:] // 20) for seed in seeds} >= {(0, 0), (1, 1)}
    assert np.array_equal(seeds, find_seeds("peaks", image, (1.0, 1.0, 1.0), (3, 3, 3)))


def test_seeds_keep_half_a_field_of_view_from_the_border() -> None:
    image = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    seeds = find_seeds("peaks", image, (1.0, 1.0, 1.0), (4, 5, 6))
    assert len(seeds)
    assert (seeds >= (4, 5, 6)).all()
    assert (seeds <= (15, 24, 33)).all()


def test_an_image_without_edges_has_no_seed() -> None:
    assert find_seeds("peaks", np.zeros((16, 16, 16), np.float32), (1.0, 1.0, 1.0), (2, 2, 2)).shape == (0, 3)


@needs_fib25
def test_seeds_are_those_of_google_ffn() -> None:
    h5py = pytest.importorskip("h5py")
    run = np.load(FIB25 / "google_ffn_run_z40-104_y60-188_x60-188.npz")
    with h5py.File(FIB25 / "training_sample2_z000-170.h5") as file:
        raw = file["raw"][40:104, 60:188, 60:188]
    image = (raw.astype(np.float32) - np.float32(128)) / np.float32(33)
    np.testing.assert_array_equal(find_seeds("peaks", image, (1.0, 1.0, 1.0), (16, 16, 16)), run["seeds_zyx"])
