from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError
from apps.ffn.seeds import POLICIES, SeedPolicyName, find_seeds
from tests.apps.ffn.tiny import FIB25, needs_fib25

ISOTROPIC = (1.0, 1.0, 1.0)
NONE = (0, 0, 0)


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    """Smooth random values, with distances to edges like an image's."""
    from scipy import ndimage

    values = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return (values / values.std()).astype(np.float32)


def reference_peaks(
    image: NDArray[np.float32], voxel_size: tuple[float, ...], spacing: int, threshold: float
) -> NDArray[np.int64]:
    """The method by the libraries' functions on the whole array, as the paper's program calls them."""
    import edt
    from scipy import ndimage
    from skimage.feature import peak_local_max

    edges = ndimage.generic_gradient_magnitude(image, ndimage.sobel)
    mean = np.zeros(edges.shape, np.float32)
    ndimage.gaussian_filter(edges, 49 / 6, output=mean, mode="reflect")
    distance = edt.edt(edges <= mean, anisotropy=voxel_size).astype(np.float32)
    distance[~np.isfinite(distance)] = -1
    jitter = np.random.RandomState(42).rand(*image.shape) * 1e-4
    found = peak_local_max(distance + jitter, min_distance=spacing, threshold_abs=threshold, threshold_rel=0)
    return np.array(sorted(found.tolist()), np.int64).reshape(-1, image.ndim)


def inside(points: NDArray[np.int64], shape: tuple[int, ...], margin: tuple[int, ...]) -> NDArray[np.int64]:
    return points[((points >= margin) & (points < np.subtract(shape, margin))).all(axis=1)]


def test_peaks_lie_inside_objects_in_order() -> None:
    image = np.full((20, 40, 40), -2.0, np.float32)
    image[:, 4:18, 4:18] = image[:, 22:36, 22:36] = 1.0
    seeds = find_seeds("peaks", image, ISOTROPIC, (3, 3, 3))
    assert seeds.tolist() == sorted(seeds.tolist())
    assert {tuple(seed[1:] // 20) for seed in seeds} >= {(0, 0), (1, 1)}
    assert np.array_equal(seeds, find_seeds("peaks", image, ISOTROPIC, (3, 3, 3)))


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_keep_half_a_field_of_view_from_the_border(policy: SeedPolicyName) -> None:
    image = noise((20, 40, 60))
    seeds = find_seeds(policy, image, ISOTROPIC, (4, 5, 6))
    assert len(seeds)
    assert seeds.shape[1:] == (3,)
    assert seeds.dtype == np.int64
    assert (seeds >= (4, 5, 6)).all()
    assert (seeds <= (15, 34, 53)).all()
    everywhere = find_seeds(policy, image, ISOTROPIC, NONE)
    np.testing.assert_array_equal(seeds, inside(everywhere, image.shape, (4, 5, 6)))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_volume_smaller_than_the_field_of_view_has_no_seed(policy: SeedPolicyName) -> None:
    assert find_seeds(policy, noise((8, 8, 8)), ISOTROPIC, (4, 4, 4)).shape == (0, 3)
    assert find_seeds(policy, noise((8, 8, 8)), ISOTROPIC, (16, 4, 16)).shape == (0, 3)


@pytest.mark.parametrize("policy", ["peaks", "peaks2d"])
def test_an_image_without_edges_has_no_peak(policy: SeedPolicyName) -> None:
    assert find_seeds(policy, np.zeros((16, 32, 32), np.float32), ISOTROPIC, (2, 2, 2)).shape == (0, 3)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("voxel_size", [ISOTROPIC, (4.0, 1.0, 1.0)])
@pytest.mark.parametrize("margin", [NONE, (1, 2, 4), (8, 8, 8), (9, 3, 10)])
def test_peaks_are_those_of_the_libraries(
    margin: tuple[int, int, int], voxel_size: tuple[float, float, float], threads: int
) -> None:
    """The shortcuts (only what lies inside the margin, slabs in threads) change no seed."""
    image = noise((26, 31, 37))
    expected = inside(reference_peaks(image, voxel_size, 3, 0), image.shape, margin)
    assert len(expected)
    np.testing.assert_array_equal(find_seeds("peaks", image, voxel_size, margin, threads=threads), expected)


def test_equal_peaks_are_thinned_out_as_by_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jitter neighbours tie, also across the margin."""
    from skimage.feature import peak_local_max

    from apps.ffn import seeds

    monkeypatch.setattr(seeds, "_JITTER", 0.0)
    for seed in range(5):
        distance = np.random.default_rng(seed).integers(0, 4, (18, 18, 18)).astype(np.float32)
        found = peak_local_max(distance, min_distance=3, threshold_abs=0, threshold_rel=0)
        expected = inside(np.array(sorted(found.tolist())), distance.shape, (6, 6, 6))
        np.testing.assert_array_equal(seeds._jittered_peaks(distance, 3, 0.0, (6, 6, 6), 1), expected)


@needs_fib25
def test_seeds_are_those_of_google_ffn() -> None:
    h5py = pytest.importorskip("h5py")
    run = np.load(FIB25 / "google_ffn_run_z40-104_y60-188_x60-188.npz")
    with h5py.File(FIB25 / "training_sample2_z000-170.h5") as file:
        raw = file["raw"][40:104, 60:188, 60:188]
    image = (raw.astype(np.float32) - np.float32(128)) / np.float32(33)
    assert len(run["seeds_zyx"]) == 294
    for threads in (1, 2):
        seeds = find_seeds("peaks", image, ISOTROPIC, (16, 16, 16), threads=threads)
        np.testing.assert_array_equal(seeds, run["seeds_zyx"])


def test_peaks2d_are_peaks_of_every_section() -> None:
    image = noise((5, 60, 70))
    expected = [(z, *point) for z in range(1, 4) for point in reference_peaks(image[z], (1.0, 1.0), 7, 2.5).tolist()]
    assert len({z for z, _, _ in expected}) == 3
    for threads in (1, 2):
        # The voxel size is that of the volume; a section's pixels are taken as square.
        found = find_seeds("peaks2d", image, (9.0, 1.0, 1.0), (1, 7, 7), threads=threads)
        assert found.tolist() == [list(point) for point in expected]


def test_peaks2d_lie_in_the_middle_of_a_section_of_an_object() -> None:
    image = np.full((3, 41, 41), -2.0, np.float32)
    y, x = np.mgrid[-20:21, -20:21]
    image[1][y**2 + x**2 <= 10**2] = 1.0
    # By symmetry the centre is furthest from the edge; its neighbours, as far off or nearer, are within 7 voxels.
    assert [1, 20, 20] in find_seeds("peaks2d", image, ISOTROPIC, (1, 18, 18)).tolist()
    assert find_seeds("peaks2d", image, ISOTROPIC, (0, 18, 18))[:, 0].tolist() == [1]


def test_grid_visits_one_offset_after_the_other() -> None:
    image = np.zeros((7, 8, 8), np.float32)
    found = find_seeds("grid", image, ISOTROPIC, (1, 1, 1), grid_step=4, grid_offsets=(2, 0, 5))
    assert found.tolist() == [
        *([2, y, x] for y in (2, 6) for x in (2, 6)),  # offset 2; z = 6 is on the border
        [4, 4, 4],  # offset 0; the others are on the border
        [5, 5, 5],
    ]


def test_grid_defaults_are_google_ffns() -> None:
    found = find_seeds("grid", np.zeros((20, 20, 20), np.float32), ISOTROPIC, NONE)
    firsts = [point[0] for point in found.tolist() if point[0] == point[1] == point[2]]
    assert firsts == [0, 16, 8, 4, 12, 2, 18, 10, 14]
    assert len(found) == 8 + 1 + 1 + 1 + 8 + 1 + 1


def test_maximum_visits_the_brightest_first() -> None:
    image = np.zeros((3, 3, 5), np.float32)
    image[1, 1, 1:4] = (0.5, 2.0, 0.5)
    image[0, 0, 0] = 9.0  # on the border
    assert find_seeds("maximum", image, ISOTROPIC, (1, 1, 1)).tolist() == [[1, 1, 2], [1, 1, 1], [1, 1, 3]]
    assert len(find_seeds("maximum", image, ISOTROPIC, NONE)) == 45
    darkest_last = find_seeds("maximum", image, ISOTROPIC, (1, 1, 1), brightness=np.arange(45).reshape(3, 3, 5))
    assert darkest_last.tolist() == [[1, 1, 3], [1, 1, 2], [1, 1, 1]]
    unsigned = np.zeros((3, 3, 5), np.uint8)
    unsigned[1, 1, 1:4] = (0, 255, 7)
    assert find_seeds("maximum", image, ISOTROPIC, (1, 1, 1), brightness=unsigned).tolist() == [
        [1, 1, 2],
        [1, 1, 3],
        [1, 1, 1],
    ]


def test_maximum_with_separation_visits_local_maxima_only() -> None:
    image = np.zeros((3, 3, 9), np.float32)
    image[1, 1] = (0, 3, 1, 0, 2, 0, 0, 5, 0)
    found = find_seeds("maximum", image, ISOTROPIC, (1, 1, 1), separation=1)
    assert found.tolist() == [[1, 1, 7], [1, 1, 1], [1, 1, 4]]
    assert find_seeds("maximum", image, ISOTROPIC, (1, 1, 1), separation=3).tolist() == [[1, 1, 7], [1, 1, 1]]


@pytest.mark.parametrize("policy", POLICIES)
def test_reverse_turns_the_order(policy: SeedPolicyName) -> None:
    image = noise((16, 32, 32))
    forward = find_seeds(policy, image, ISOTROPIC, (2, 2, 2))
    assert find_seeds(policy, image, ISOTROPIC, (2, 2, 2), reverse=True).tolist() == forward.tolist()[::-1]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_seed_is_in_an_excluded_voxel(policy: SeedPolicyName) -> None:
    image = noise((16, 48, 48))
    excluded = np.zeros(image.shape, np.bool_)
    excluded[:, :, 24:] = True
    free = find_seeds(policy, image, ISOTROPIC, (2, 8, 8))
    found = find_seeds(policy, image, ISOTROPIC, (2, 8, 8), excluded=excluded)
    assert (free[:, 2] >= 24).any()
    assert 0 < len(found) < len(free)
    assert (found[:, 2] < 24).all()
    assert len(find_seeds(policy, image, ISOTROPIC, (2, 8, 8), excluded=np.ones_like(excluded))) == 0
    nowhere = find_seeds(policy, image, ISOTROPIC, (2, 8, 8), excluded=np.zeros_like(excluded))
    np.testing.assert_array_equal(nowhere, free)


def test_peaks_keep_their_distance_to_excluded_voxels_as_to_edges() -> None:
    image = np.full((21, 21, 41), -2.0, np.float32)
    image[3:18, 3:18, 3:38] = 1.0
    excluded = np.zeros(image.shape, np.bool_)
    excluded[:, :, 20] = True
    found = find_seeds("peaks", image, ISOTROPIC, (8, 8, 8), excluded=excluded)
    assert len(found)
    assert (abs(found[:, 2] - 20) > 2).all()


@pytest.mark.parametrize(
    "options", [{"grid_step": 0}, {"grid_offsets": ()}, {"grid_offsets": (0, -1)}, {"separation": -1}]
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="grid_step"):
        find_seeds("grid", np.zeros((4, 4, 4), np.float32), ISOTROPIC, NONE, **options)


def test_unknown_policies_and_arrays_of_another_shape_are_refused() -> None:
    image = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(ParameterError, match="'random': expected one of peaks, peaks2d, grid, maximum"):
        find_seeds("random", image, ISOTROPIC, NONE)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"excluded has shape \(4, 4, 5\)"):
        find_seeds("grid", image, ISOTROPIC, NONE, excluded=np.zeros((4, 4, 5), np.bool_))
    with pytest.raises(DataError, match="brightness has shape"):
        find_seeds("maximum", image, ISOTROPIC, NONE, brightness=np.zeros((4, 4, 5)))
