"""Partition: exact fractions against brute force, balance, bounds, and clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.partition import classes as classes_module
from apps.partition.balance import ClassSample, balanced
from apps.partition.classes import class_blocks, class_of_count, large_bodies
from apps.partition.fractions import box_sums, own_counts
from apps.partition.stage import STAGE, PartitionParameters, PartitionResult, run

THRESHOLDS = PartitionParameters(labels="x", output="x.npz").thresholds


def random_labels(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint32]:
    """Blobs of four ids and background."""
    coarse = np.random.default_rng(seed).integers(0, 5, [-(-n // 4) for n in shape])
    fine = coarse.repeat(4, 0).repeat(4, 1).repeat(4, 2)[: shape[0], : shape[1], : shape[2]]
    return np.array([0, 3, 700, 12, 8], np.uint32)[fine]


def brute_force(labels: NDArray[np.uint32], radius: tuple[int, int, int]) -> NDArray[np.int32]:
    rz, ry, rx = radius
    out = np.zeros([n - 2 * r for n, r in zip(labels.shape, radius, strict=True)], np.int32)
    for z, y, x in np.ndindex(*out.shape):
        own = labels[z + rz, y + ry, x + rx]
        window = labels[z : z + 2 * rz + 1, y : y + 2 * ry + 1, x : x + 2 * rx + 1]
        out[z, y, x] = (window == own).sum() if own else 0
    return out


def partition(tmp_path: Path, labels: NDArray[np.uint32], **given: object) -> PartitionResult:
    write_volume(tmp_path / "labels.zarr", labels, (10.0, 10.0, 10.0))
    small = {"fov": (5, 5, 5), "deltas": (1, 1, 1), "min_size": 1}
    parameters = {"labels": str(tmp_path / "labels.zarr"), "output": str(tmp_path / "c.npz"), **small, **given}
    return run(PartitionParameters.from_json(parameters), silent)


def test_the_example_is_valid() -> None:
    assert PartitionParameters.from_json(STAGE.example).radius == (12, 12, 12)


def test_box_sums_by_hand() -> None:
    values = np.arange(1, 7, dtype=np.int32).reshape(1, 1, 6)
    assert box_sums(values, (0, 0, 1)).tolist() == [[[6, 9, 12, 15]]]


@pytest.mark.parametrize("radius", [(1, 1, 1), (2, 1, 3), (0, 2, 2)])
def test_own_counts_equal_brute_force(radius: tuple[int, int, int]) -> None:
    labels = random_labels((11, 12, 13))
    numbers = np.searchsorted([0, 3, 8, 12, 700], labels)
    assert np.array_equal(own_counts(numbers, radius), brute_force(labels, radius))


def test_classes_are_cut_at_the_thresholds() -> None:
    table = class_of_count((1, 1, 1), (1 / 27, 0.5))
    assert table.tolist() == [0] + [2] * 13 + [3] * 14  # 1/27 is not under 1/27; 13/27 < 0.5 <= 14/27
    assert class_of_count((12, 12, 12), THRESHOLDS).max() == 13


def test_blocks_do_not_change_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = random_labels((20, 22, 24), 1)
    write_volume(tmp_path / "labels.zarr", labels, (1.0, 1.0, 1.0))
    volume, radius = open_volume(str(tmp_path / "labels.zarr")), (3, 3, 3)
    centres = volume.box.grow((-3, -3, -3))
    monkeypatch.setattr(classes_module, "BLOCK", (5, 6, 7))
    bodies, largest = large_bodies(volume, volume.box, 1, lambda block: None)
    assert bodies.tolist() == [3, 8, 12, 700] and largest == np.bincount(labels.ravel())[1:].max()
    found = np.zeros(volume.shape, np.uint8)
    for block, values in class_blocks(volume, centres, bodies, radius, THRESHOLDS):
        found[block.slices()] = values
    expected = class_of_count(radius, THRESHOLDS)[brute_force(labels, radius)]
    assert np.array_equal(found[centres.slices()], expected)


def test_small_bodies_are_background(tmp_path: Path) -> None:
    labels = np.zeros((12, 12, 12), np.uint32)
    labels[:, :6], labels[5:7, 8:10, 5:7] = 4, 9
    result = partition(tmp_path, labels, min_size=100)
    coordinates = np.load(result.coordinates)["zyx"]
    assert result.bodies == 1 and set(labels[tuple(coordinates.T)]) == {4}
    assert partition(tmp_path, labels, min_size=8).bodies == 2


def test_every_class_is_equally_frequent_and_holds_what_it_says(tmp_path: Path) -> None:
    labels = random_labels((24, 24, 24), 2)
    result = partition(tmp_path, labels, max_coordinates=None)
    with np.load(result.coordinates) as file:
        coordinates, numbers = file["zyx"], file["fraction_class"]
    assert coordinates.dtype == np.int32 and numbers.dtype == np.uint8
    assert result.count == len(coordinates) == len(numbers) == len(result.classes) * max(result.classes.values())
    counts = np.bincount(numbers)
    assert set(counts[counts > 0]) == {max(result.classes.values())}
    truth = class_of_count((3, 3, 3), THRESHOLDS)[brute_force(labels, (3, 3, 3))]
    assert np.array_equal(truth[tuple((coordinates - 3).T)], numbers)
    assert result.classes == {str(n): int(c) for n, c in enumerate(np.bincount(truth.ravel())) if n and c}
    # Shuffled: no class has a stretch of the file to itself.
    assert (np.diff(numbers[: len(numbers) // 2].astype(int)) != 0).mean() > 0.5


def test_examples_stay_in_the_box(tmp_path: Path) -> None:
    labels = random_labels((24, 24, 24), 3)
    box = Box.of((2, 5, 9), (20, 12, 10))
    result = partition(tmp_path, labels, box=box.to_dict(), max_coordinates=None)
    coordinates = np.load(result.coordinates)["zyx"]
    assert coordinates.min(axis=0).tolist() == [5, 8, 12] and coordinates.max(axis=0).tolist() == [18, 13, 15]
    # What lies outside of the box is not looked at, sizes of bodies included.
    other = np.full_like(labels, 99)
    other[box.slices()] = labels[box.slices()]
    first = Path(result.coordinates).read_bytes()
    assert partition(tmp_path, other, box=box.to_dict(), max_coordinates=None).classes == result.classes
    assert Path(result.coordinates).read_bytes() == first


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    labels, files = random_labels((24, 24, 24), 4), []
    for seed in (1, 1, 2):
        result = partition(tmp_path, labels, seed=seed, max_coordinates=50)
        assert result.count == 50
        files.append(Path(result.coordinates).read_bytes())
    assert files[0] == files[1] != files[2]


def test_a_class_sample_does_not_hang_on_the_order_of_offers() -> None:
    rng = np.random.default_rng(0)
    keys, coordinates = rng.random(100), rng.integers(0, 9, (100, 3)).astype(np.int32)
    forward, backward, whole = ClassSample(10), ClassSample(10), ClassSample(None)
    for part in np.split(np.arange(100), 10):
        forward.offer(keys[part], coordinates[part])
    for part in np.split(np.arange(100)[::-1], 4):
        backward.offer(keys[part], coordinates[part])
    whole.offer(keys, coordinates)
    expected = coordinates[np.argsort(keys)[:10]]
    for sample in (forward, backward, whole):
        assert sample.offered == 100 and np.array_equal(sample.draw(10), expected)


def test_rare_classes_repeat_evenly() -> None:
    samples = {1: ClassSample(None), 5: ClassSample(None)}
    samples[1].offer(np.array([0.1, 0.2]), np.array([[1, 1, 1], [2, 2, 2]], np.int32))
    samples[5].offer(np.arange(7) / 7, np.arange(21, dtype=np.int32).reshape(7, 3))
    coordinates, numbers = balanced(samples, None, np.random.default_rng(0))
    assert np.bincount(numbers).tolist() == [0, 7, 0, 0, 0, 7]
    assert sorted((coordinates[numbers == 1] == 1).all(axis=1).tolist()) == [False] * 3 + [True] * 4
    assert len(np.unique(coordinates[numbers == 5], axis=0)) == 7
    assert len(balanced(samples, 5, np.random.default_rng(0))[0]) == 5


@pytest.mark.parametrize(
    ("labels", "given", "word"),
    [
        (np.zeros((12, 12, 12), np.uint32), {}, "no body"),
        (random_labels((12, 12, 12)), {"min_size": 10**6}, "min_size = 1000000"),
        (random_labels((12, 12, 6)), {}, "smaller than one training example"),
        (random_labels((12, 12, 12)), {"box": {"offset": (1, 0, 0), "shape": (12, 12, 12)}}, "leaves the volume"),
        (np.zeros((12, 12, 12), np.uint32) + np.eye(12, dtype=np.uint32)[0], {}, "reaches into"),
        (np.zeros((12, 12, 12), np.float32), {}, "integer type"),
    ],
)
def test_unusable_labels_are_named(
    tmp_path: Path, labels: NDArray[np.uint32], given: dict[str, object], word: str
) -> None:
    with pytest.raises(DataError, match=word):
        partition(tmp_path, labels, **given)
    assert not (tmp_path / "c.npz").exists()


def test_a_missing_output_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        partition(tmp_path, random_labels((12, 12, 12)), output=str(tmp_path / "nowhere" / "c.npz"))


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"fov": (16, 17, 17)}, "odd"),
        ({"deltas": (-1, 4, 4)}, "negative"),
        ({"thresholds": (0.5, 0.2)}, "ascending"),
        ({"thresholds": (0.5, 1.5)}, "thresholds"),
        ({"output": "coordinates.csv"}, "output"),
        ({"max_coordinates": 0}, "max_coordinates"),
    ],
)
def test_bad_parameters_are_named(given: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        PartitionParameters.from_json({"labels": "l.zarr", "output": "c.npz", **given})
