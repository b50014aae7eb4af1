"""Partition: exact fractions against brute force, balance, bounds, and clear errors."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.ffn.coordinates import read_coordinates
from apps.partition import classes as classes_module
from apps.partition.balance import ClassSample, balanced
from apps.partition.classes import class_blocks, class_of_count, large_bodies
from apps.partition.fractions import box_sums, own_counts
from apps.partition.partition_volume import open_partition_volume
from apps.partition.stage import STAGE, PartitionParameters, PartitionResult, run
from tests.apps.ffn.tiny import FIB25, needs_fib25

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


def partition(tmp_path: Path, values: NDArray[np.uint32] | None, **given: object) -> PartitionResult:
    """Run the stage on labels; None: on what `given` says alone."""
    small: dict[str, object] = {"output": str(tmp_path / "c.npz"), "fov": (5, 5, 5), "deltas": (1, 1, 1), "min_size": 1}
    if values is not None:
        write_volume(tmp_path / "labels.zarr", values, (10.0, 10.0, 10.0))
        small["labels"] = str(tmp_path / "labels.zarr")
    return run(PartitionParameters.from_json({**small, **given}), silent)


def test_the_example_is_valid() -> None:
    assert PartitionParameters.from_json(STAGE.example).radius == (12, 12, 12)


def test_box_sums_by_hand() -> None:
    values = np.arange(1, 7, dtype=np.int32).reshape(1, 1, 6)
    assert box_sums(values, (0, 0, 1)).tolist() == [[[6, 9, 12, 15]]]
    assert box_sums(values.reshape(6, 1, 1), (1, 0, 0)).ravel().tolist() == [6, 9, 12, 15]
    assert box_sums(values.reshape(1, 6, 1), (0, 2, 0)).ravel().tolist() == [15, 20]


@pytest.mark.parametrize("radius", [(24, 24, 24), (0, 0, 24), (15, 16, 15), (3, 0, 20)])
def test_box_sums_of_a_full_volume_are_the_boxs_voxels(radius: tuple[int, int, int]) -> None:
    # Sums over 49^3 voxels outgrow 16 bits, and so do running sums on the way.
    shape = (2 * radius[0] + 2, 2 * radius[1] + 3, 2 * radius[2] + 200)
    sums = box_sums(np.ones(shape, bool), radius)
    assert sums.shape == (2, 3, 200) and sums.dtype == np.int32
    assert set(sums.ravel().tolist()) == {int(np.prod([2 * r + 1 for r in radius]))}


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
    assert read_coordinates(result.coordinates).of(None).box == box
    margin = (4, 3, 3)
    inner = np.load(partition(tmp_path, labels, box=box.to_dict(), margin=margin, max_coordinates=None).coordinates)
    assert inner["zyx"].min(axis=0).tolist() == [6, 8, 12] and inner["zyx"].max(axis=0).tolist() == [17, 13, 15]
    result = partition(tmp_path, labels, box=box.to_dict(), max_coordinates=None)
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
        ({"margin": (12, 12, 11)}, "margin"),
        ({"labels": None}, "labels, partition_volume: one is needed"),
        ({"partition_volume": "classes.zarr"}, "partition_volume"),
        ({"thresholds": tuple(np.linspace(0.001, 0.999, 254).tolist())}, "thresholds"),
        ({"name": ""}, "name"),
    ],
)
def test_bad_parameters_are_named(given: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        PartitionParameters.from_json({"labels": "l.zarr", "output": "c.npz", **given})


def published_classes(labels: NDArray[np.uint32], radius: int, thresholds: tuple[float, ...]) -> NDArray[np.uint8]:
    """What google/ffn's procedure gives, object by object, of the voxels with `radius` voxels around them."""
    inner = (slice(radius, -radius),) * 3
    found = np.zeros(labels[inner].shape, np.uint8)
    own = brute_force(labels, (radius,) * 3) / (2 * radius + 1) ** 3
    for body in np.unique(labels[labels > 0]):
        mine = labels[inner] == body
        for number, threshold in enumerate(thresholds, start=1):
            found[mine & (own < threshold) & (found == 0)] = number
        found[mine & (own >= thresholds[-1]) & (found == 0)] = len(thresholds) + 1
    return found


def test_the_partition_volume_is_google_ffns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.partition.classes.BLOCK", (7, 9, 11))
    labels = random_labels((20, 22, 24), 6)
    partition(tmp_path, labels, partition_volume=f"{tmp_path}/af.h5:volumes/af")
    expected = published_classes(labels, 3, THRESHOLDS)
    with h5py.File(tmp_path / "af.h5") as file:
        dataset = file["volumes/af"]
        assert dataset.dtype == np.uint8
        np.testing.assert_array_equal(dataset[...], expected)
        assert dataset.attrs["corner"].tolist() == [3, 3, 3]
        # Boxes are (start, size), each xyz.
        assert dataset.attrs["bounding_boxes"].tolist() == [[[3, 3, 3], [18, 16, 14]]]
        counts = np.array(np.unique(expected, return_counts=True))
        assert dataset.attrs["partition_counts"].tolist() == counts.tolist()


def test_a_volume_that_was_written_gives_the_same_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.partition.classes.BLOCK", (7, 9, 11))
    monkeypatch.setattr("apps.partition.partition_volume.BLOCK", (7, 9, 11))
    labels, volume = random_labels((22, 24, 26), 7), f"{tmp_path}/af.h5:af"
    box = Box.of((1, 2, 3), (18, 19, 20))
    for given in ({}, {"box": box.to_dict()}, {"margin": (5, 4, 4)}, {"background": True, "max_coordinates": 70}):
        first = partition(tmp_path, labels, partition_volume=volume, **given)
        data = Path(first.coordinates).read_bytes()
        more = {name: value for name, value in given.items() if name != "box"}
        again = partition(tmp_path, None, partition_volume=volume, **more)
        assert Path(again.coordinates).read_bytes() == data
        assert (again.count, again.classes, again.bodies) == (first.count, first.classes, None)
        assert again.partition_volume == volume
    opened = open_partition_volume(volume)
    assert (opened.region.offset, opened.box) == ((3, 3, 3), Box.of((0, 0, 0), (22, 24, 26)))


def google_volume(folder: Path, classes: NDArray[np.uint8], **attributes: object) -> str:
    # A name of its own for each: what was opened to read stays open as long as an error that tells of it.
    path = folder / f"google{len(list(folder.glob('google*')))}.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("af", data=classes)
        for name, value in attributes.items():
            dataset.attrs[name] = value
    return f"{path}:af"


def test_google_ffns_partition_volume_is_read(tmp_path: Path) -> None:
    classes = np.zeros((10, 11, 12), np.uint8)
    classes[2, 3, 4], classes[9, 10, 11], classes[5, 5, 5], classes[0, 0, 0] = 1, 13, 13, 255
    # As compute_partitions writes it: what is there lies `corner` voxels into the labels on all sides.
    volume = google_volume(tmp_path, classes, corner=[3, 3, 3])
    result = partition(tmp_path, None, partition_volume=volume, max_coordinates=None)
    with np.load(result.coordinates) as file:
        found = sorted(zip(file["fraction_class"].tolist(), file["zyx"].tolist(), strict=True))
        assert file["box"].tolist() == [[0, 0, 0], [16, 17, 18]]
    assert found == [(1, [5, 6, 7]), (1, [5, 6, 7]), (13, [8, 8, 8]), (13, [12, 13, 14])]
    assert result.classes == {"1": 1, "13": 2} and result.bodies is None
    # A volume on the grid of the labels; only what has a whole example around it counts.
    volume = google_volume(tmp_path, classes)
    result = partition(tmp_path, None, partition_volume=volume, max_coordinates=None)
    assert np.load(result.coordinates)["zyx"].tolist() == [[5, 5, 5]]


def test_bad_partition_volumes_are_named(tmp_path: Path) -> None:
    def message(volume: str, **given: object) -> str:
        with pytest.raises(DataError) as caught:
            partition(tmp_path, None, partition_volume=volume, **given)
        assert not (tmp_path / "c.npz").exists()
        return str(caught.value)

    assert "none.h5: no such file" in message(f"{tmp_path}/none.h5:af")
    (tmp_path / "text.h5").write_text("no HDF5")
    assert "text.h5: is not a readable HDF5 file" in message(f"{tmp_path}/text.h5:af")
    classes = np.full((12, 12, 12), 255, np.uint8)
    assert "no voxel of an object" in message(google_volume(tmp_path, classes))
    assert "leaves the volume" in message(
        google_volume(tmp_path, classes), box={"offset": (0, 0, 0), "shape": (13, 12, 12)}
    )
    assert "smaller than one training example" in message(google_volume(tmp_path, classes[:6]))
    assert "attribute corner" in message(google_volume(tmp_path, classes, corner=[1, 2]))
    assert "attribute corner" in message(google_volume(tmp_path, classes, corner=[1, -2, 3]))
    assert "dtype uint16; expected a partition volume" in message(google_volume(tmp_path, classes.astype(np.uint16)))


def test_excluded_voxels_are_class_255_and_no_centre(tmp_path: Path) -> None:
    labels = random_labels((20, 20, 20), 8)
    mask = np.zeros(labels.shape, np.uint8)
    mask[:, 8:15, 5:12] = 2
    write_volume(tmp_path / "mask.zarr", mask, (10.0, 10.0, 10.0))
    volume = f"{tmp_path}/af.h5:af"
    given = {"mask": str(tmp_path / "mask.zarr"), "max_coordinates": None}
    result = partition(tmp_path, labels, partition_volume=volume, **given)
    zyx = np.load(result.coordinates)["zyx"]
    assert len(zyx) and not mask[tuple(zyx.T)].any()
    expected = published_classes(labels, 3, THRESHOLDS)
    expected[mask[3:-3, 3:-3, 3:-3] > 0] = 255
    np.testing.assert_array_equal(open_volume(volume).read(), expected)
    assert set(result.classes) == {str(n) for n in np.unique(expected)} - {"0", "255"}
    # The mask counts for a volume that is read as well.
    partition(tmp_path, labels, partition_volume=volume, max_coordinates=None)
    again = partition(tmp_path, None, partition_volume=volume, **given)
    np.testing.assert_array_equal(np.load(again.coordinates)["zyx"], zyx)


def test_bad_masks_are_named(tmp_path: Path) -> None:
    labels = random_labels((12, 12, 12))
    for name, mask, word in (
        ("small", np.zeros((12, 12, 11), np.uint8), r"small.zarr: has the shape \(12, 12, 11\)"),
        ("large", np.zeros((12, 12, 13), np.uint8), r"large.zarr: has the shape \(12, 12, 13\)"),
        ("float", np.zeros((12, 12, 12), np.float32), r"float.zarr: has dtype float32"),
        ("all", np.ones((12, 12, 12), np.uint8), r"outside of the mask \(.*all.zarr\)"),
    ):
        write_volume(tmp_path / f"{name}.zarr", mask, (10.0, 10.0, 10.0))
        with pytest.raises(DataError, match=word):
            partition(tmp_path, labels, mask=str(tmp_path / f"{name}.zarr"), partition_volume=f"{tmp_path}/af.h5:af")
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".zarr") == []


def test_background_is_a_class_where_it_is_asked_for(tmp_path: Path) -> None:
    labels = random_labels((20, 20, 20), 9)
    result = partition(tmp_path, labels, background=True, max_coordinates=None)
    with np.load(result.coordinates) as file:
        zyx, numbers = file["zyx"], file["fraction_class"]
    assert result.classes["0"] == int((labels[3:-3, 3:-3, 3:-3] == 0).sum())
    assert set(labels[tuple(zyx[numbers == 0].T)]) == {0}
    assert set(np.bincount(numbers)) <= {0, max(result.classes.values())}


def test_coordinates_as_a_tfrecord(tmp_path: Path) -> None:
    labels = random_labels((20, 20, 20), 10)
    expected = np.load(partition(tmp_path, labels, max_coordinates=200).coordinates)["zyx"]
    output = str(tmp_path / "c.tfrecord.gz")
    result = partition(tmp_path, labels, max_coordinates=200, output=output, name="sample2")
    assert result.coordinates == output
    np.testing.assert_array_equal(read_coordinates(output).of("sample2").zyx, expected)
    assert not list(tmp_path.glob(".*"))


def test_a_partition_volume_never_replaces_other_datasets(tmp_path: Path) -> None:
    labels = random_labels((20, 20, 20), 11)
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["labels"] = labels
    data = (tmp_path / "data.h5").read_bytes()
    with pytest.raises(DataError, match=r"data.h5: holds labels, which would be lost"):
        partition(tmp_path, None, labels=f"{tmp_path}/data.h5:labels", partition_volume=f"{tmp_path}/data.h5:af")
    assert (tmp_path / "data.h5").read_bytes() == data
    (tmp_path / "text.h5").write_text("mine")
    with pytest.raises(DataError, match=r"text.h5: is there and no HDF5 file"):
        partition(tmp_path, labels, partition_volume=f"{tmp_path}/text.h5:af")
    with pytest.raises(DataError, match="no such folder"):
        partition(tmp_path, labels, partition_volume=f"{tmp_path}/nowhere/a.h5:af")
    # One of its own is written over, to the same bytes.
    written = []
    for _ in range(2):
        partition(tmp_path, labels, partition_volume=f"{tmp_path}/af.h5:af")
        written.append((tmp_path / "af.h5").read_bytes())
    assert written[0] == written[1]


@needs_fib25
def test_the_sample_volume_has_the_published_procedures_classes(tmp_path: Path) -> None:
    """A corner of FIB-25 with the published radius, against sums over whole boxes, object by object."""
    labels = open_volume(f"{FIB25}/training_sample2_z000-170.h5:labels").read(Box.of((0, 0, 0), (56, 64, 72)))
    given = {"fov": (33, 33, 33), "deltas": (8, 8, 8), "min_size": 10000, "max_coordinates": None}
    partition(tmp_path, labels, partition_volume=f"{tmp_path}/af.h5:af", **given)
    ids, sizes = np.unique(labels, return_counts=True)
    radius, inner = 24, (slice(24, -24),) * 3
    expected = np.zeros(labels[inner].shape, np.uint8)
    for body in ids[(ids > 0) & (sizes >= 10000)]:
        table = np.pad((labels == body).cumsum(0).cumsum(1).cumsum(2), [(1, 0)] * 3)
        for axis in range(3):
            high, low = [slice(None)] * 3, [slice(None)] * 3
            high[axis], low[axis] = slice(2 * radius + 1, None), slice(None, -(2 * radius + 1))
            table = table[tuple(high)] - table[tuple(low)]
        mine = labels[inner] == body
        expected[mine] = np.digitize(table[mine] / 49**3, THRESHOLDS) + 1
    np.testing.assert_array_equal(open_volume(f"{tmp_path}/af.h5:af").read(), expected)
    assert len(np.unique(expected)) > 3
