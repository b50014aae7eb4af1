"""Mean and mode of windows, by hand and against a direct count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Triple
from apps.multiscale import downsampling
from apps.multiscale.downsampling import mean, mode, reduced_shape


def row(*voxels: int, dtype: type = np.uint8) -> NDArray[Any]:
    return np.array(voxels, dtype).reshape(1, 1, -1)


def windows(data: NDArray[Any], factor: Triple) -> NDArray[Any]:
    """Every window's voxels, as lists of Python integers."""
    found = np.empty(reduced_shape((data.shape[0], data.shape[1], data.shape[2]), factor), object)
    for index in np.ndindex(found.shape):
        cut = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))
        found[index] = data[cut].ravel().tolist()
    return found


def mean_of(voxels: list[int]) -> int:
    low, rest = divmod(sum(voxels), len(voxels))
    return low + (2 * rest > len(voxels) or (2 * rest == len(voxels) and low % 2 == 1))


def mode_of(voxels: list[int]) -> int:
    return max(set(voxels), key=lambda label: (voxels.count(label), label != 0, -label))


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ((1, 2), 2),  # 1.5 and 2.5: to the even neighbour
        ((2, 3), 2),
        ((255, 255), 255),
        ((0, 255), 128),
        ((7,), 7),
    ],
)
def test_mean_by_hand(voxels: tuple[int, ...], expected: int) -> None:
    assert mean(row(*voxels), (1, 1, 2)).item() == expected


@pytest.mark.parametrize(
    ("voxels", "expected"),
    [
        ((5, 5, 9, 9), 5),  # equally frequent: the smaller
        ((0, 0, 9, 9), 9),  # but 0 last
        ((0, 0, 0, 9), 0),  # 0 counts as any label
        ((0, 4, 3, 0), 0),
        ((0, 4, 3, 2), 2),
        ((8, 0, 8, 3), 8),
        ((0, 0, 0, 0), 0),
        ((2**64 - 1, 2**64 - 1, 0, 1), 2**64 - 1),
        ((2**64 - 1, 0), 2**64 - 1),
    ],
)
def test_mode_by_hand(voxels: tuple[int, ...], expected: int) -> None:
    assert mode(np.array(voxels, np.uint64).reshape(1, 1, -1), (1, 1, 4)).item() == expected


def test_windows_at_the_end_are_of_what_is_there() -> None:
    assert mean(row(10, 20, 30, 40, 91), (2, 2, 2)).ravel().tolist() == [15, 35, 91]
    assert mean(row(1, 2, 4, 5, 9), (1, 1, 3)).ravel().tolist() == [2, 7]
    assert mode(row(4, 4, 7, 7, 1), (1, 1, 3)).ravel().tolist() == [4, 1]


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (3, 1, 2), (4, 3, 2), (1, 8, 8), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32])
def test_mean_equals_a_direct_count(factor: Triple, dtype: type) -> None:
    info = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(info.min, info.max, (7, 9, 11), dtype, endpoint=True)
    expected = np.vectorize(mean_of, otypes=[object])(windows(data, factor))
    assert np.array_equal(mean(data, factor), expected)
    assert mean(data, factor).dtype == dtype


@pytest.mark.parametrize("factor", [(2, 2, 2), (1, 2, 2), (3, 1, 2), (1, 8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_mode_equals_a_direct_count(factor: Triple, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downsampling, "_SLAB", 200)
    data: NDArray[Any] = np.random.default_rng(1).integers(0, 4, (7, 9, 11)).astype(dtype)
    data[data == 3] = np.iinfo(dtype).max
    expected = np.vectorize(mode_of, otypes=[object])(windows(data, factor))
    assert np.array_equal(mode(data, factor), expected)
    assert mode(data, factor).dtype == dtype


def test_levels_get_neither_darker_nor_brighter() -> None:
    data = np.random.default_rng(2).integers(0, 256, (64, 64, 64)).astype(np.uint8)
    level = data
    for _ in range(4):
        level = mean(level, (2, 2, 2))
    assert abs(float(level.mean()) - float(data.mean())) < 0.1, "cutting off fractions would lose some 1.8"


def test_floats_are_averaged_in_double_precision() -> None:
    data = np.array([1e8, 1, -1e8, 1], np.float32).reshape(1, 1, 4)
    assert mean(data, (1, 1, 4)).item() == 0.5
