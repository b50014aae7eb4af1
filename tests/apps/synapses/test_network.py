"""Networks, examples, grey values and tiles."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.ffn.backend import import_tensorflow, start_tensorflow
from apps.synapses.detector import Detector, margin_of, read_window
from apps.synapses.examples import Examples, augment
from apps.synapses.images import Statistics, measure, open_image
from apps.synapses.network import BLOCKS, NetworkParameters, VariantName, build, loss
from apps.synapses.settings import Augmentation, TrainSettings
from apps.unet.weights import initial_weights
from tests.apps.synapses.samples import SHAPE, VOXEL, save, tissue

UNCHANGED = Augmentation(flip=False, rotate=False, brightness=0, contrast=0, shading=0, noise=0)
TINY = NetworkParameters(channels=4, poolings=1)


def test_every_variant_is_there() -> None:
    assert tuple(BLOCKS) == get_args(VariantName)


@pytest.mark.parametrize("variant", list(BLOCKS))
def test_tiles_give_what_the_whole_gives(variant: VariantName, tmp_path: Path) -> None:
    """With all of its margin, a tile's answer does not depend on where tiles end; levels may be flat."""
    start_tensorflow(1)
    flat = 1 if variant == "unet" else 0
    network = NetworkParameters(variant=variant, channels=4, poolings=1, flat_poolings=flat)
    weights = initial_weights(build(network, 2), 1)
    image = np.random.default_rng(0).integers(1, 255, (12, 20, 24)).astype(np.uint8)
    write_volume(tmp_path / "image.zarr", image, VOXEL)
    volume = open_volume(str(tmp_path / "image.zarr"))
    detector = Detector(network, 2, weights, network.margin)
    statistics = measure(volume)

    def found(tile: Box) -> np.ndarray:
        window = read_window(volume, tile, network.unit, network.margin)
        return detector.detect(window, tile, statistics).astype(int)

    whole, tile = found(volume.box), Box.of((4, 8, 8), (4, 8, 16))
    assert whole.std() > 5
    # Sums of the same numbers in another order may differ in the last bit, and so in the last of 255 steps.
    assert abs(found(tile) - whole[(slice(None), *tile.slices())]).max() <= 1
    assert margin_of(network, 0) == (0, 0, 0)
    assert margin_of(network, 3) == ((3 if flat else 4), 4, 4)
    assert margin_of(network, 1000) == margin_of(network, None) == network.margin


def test_what_shows_nothing_is_no_cleft() -> None:
    start_tensorflow(1)
    weights = initial_weights(build(TINY, 1), 0)
    weights["logits/bias"] = weights["logits/bias"] + np.float32(10)
    detector, tile = Detector(TINY, 1, weights, (0, 0, 0)), Box.of((0, 0, 0), (4, 4, 4))
    window = np.full((4, 4, 4), 9, np.uint8)
    window[:, :, 2] = 0
    found = detector.detect(window, tile, Statistics(5.0, 2.0))
    assert (found[0] == 0).tolist() == (window == 0).tolist()
    assert not detector.detect(np.zeros_like(window), tile, Statistics(5.0, 2.0)).any()


def test_loss_of_a_perfect_and_of_a_wrong_answer() -> None:
    tf = import_tensorflow()
    target = np.zeros((1, 4, 4, 4, 2), np.float32)
    target[0, 1, :, :, 0] = 1
    right, wrong = (float(loss(tf, tf.constant(sign * (20 * target - 10)), tf.constant(target))) for sign in (1, -1))
    assert right == pytest.approx(0, abs=1e-3)
    # Cross-entropy 10, and 1 - 1 / 17 for the output that is there: 16 voxels wanted, as many as are not found.
    assert wrong == pytest.approx(10 + 1 - 1 / (16 + 64 - 16 + 1), abs=1e-2)


def test_grey_values_that_show_something(tmp_path: Path) -> None:
    voxels = np.array([[[0, 10, 20, 20], [0, 0, 10, 20]]], np.uint8)
    write_volume(tmp_path / "image.zarr", voxels, VOXEL)
    statistics = measure(open_image(str(tmp_path / "image.zarr")))
    assert (statistics.mean, statistics.std) == pytest.approx((16, 24**0.5))
    assert statistics.normalise(voxels)[0, 0] * statistics.std == pytest.approx([0, -6, 4, 4])
    write_volume(tmp_path / "flat.zarr", np.where(voxels > 0, 7, 0).astype(np.uint8), VOXEL)
    with pytest.raises(DataError, match="shows nothing"):
        measure(open_image(str(tmp_path / "flat.zarr")))
    write_volume(tmp_path / "signed.zarr", voxels.astype(np.int16), VOXEL)
    with pytest.raises(DataError, match="int16"):
        open_image(str(tmp_path / "signed.zarr"))


def examples(folder: Path, **given: object) -> Examples:
    save(folder)
    settings = TrainSettings.from_json({"patch": [8, 8, 8], "network": {"poolings": 1}, "steps": 30, **given})
    volumes = [open_volume(str(folder / f"{name}.zarr")) for name in ("image", "clefts", "vesicles")]
    boxes, _ = settings.divide(volumes[0].box)
    return Examples(volumes[0], (volumes[1], volumes[2]), boxes, measure(volumes[0]), settings, silent)


def test_examples_follow_from_seed_and_step(tmp_path: Path) -> None:
    made = examples(tmp_path, balanced=1, batch_size=4, seed=3)
    images, targets = made.batch(7)
    assert (images.shape, targets.shape, images.dtype) == ((4, 8, 8, 8, 1), (4, 8, 8, 8, 2), np.float32)
    assert targets[..., 0].any(axis=(1, 2, 3)).all()
    again = examples(tmp_path, balanced=1, batch_size=4, seed=3)
    np.testing.assert_array_equal(again.batch(7)[0], images)
    assert again.digest == made.digest
    assert not np.array_equal(made.batch(8)[0], images)
    assert made.shares[0] == pytest.approx((tissue().clefts[..., :51] > 0).mean())
    assert made.voxels == 4 * 512


def test_image_and_target_are_turned_together() -> None:
    target = np.random.default_rng(0).random((6, 6, 6, 1)) < 0.3
    image = (target[..., 0] + 1).astype(np.float32)
    turned = UNCHANGED.from_json(UNCHANGED.to_dict() | {"flip": True, "rotate": True})
    seen = set()
    for seed in range(20):
        grey, found = augment(image, target, turned, ((0, 1), (0, 2), (1, 2)), np.random.default_rng(seed))
        np.testing.assert_array_equal(grey, found[..., 0] + 1)
        seen.add(found.tobytes())
    assert len(seen) > 10


def test_grey_values_are_changed_where_something_is_shown() -> None:
    image = np.ones((6, 6, 6), np.float32)
    image[0] = 0
    changed, _ = augment(image, np.zeros((6, 6, 6, 1), bool), Augmentation(), (), np.random.default_rng(0))
    assert not changed[0].any()
    assert 0.001 < changed[1:].std() < 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps = 10"),
        ({"patch": [6, 8, 8]}, r"patch = \(6, 8, 8\): expected multiples of \(4, 4, 4\)"),
        ({"patch": [6, 8, 8], "network": {"poolings": 2, "flat_poolings": 1}}, None),
        ({"network": {"flat_poolings": 3}}, "flat_poolings = 3"),
        ({"boxes": []}, "boxes: are none"),
        ({"validation_box": {"offset": [0, 0, 0], "shape": [1, 1, 1]}}, "needs boxes too"),
        (
            {
                "boxes": [{"offset": [0, 0, 0], "shape": [9, 9, 9]}],
                "validation_box": {"offset": [8, 8, 8], "shape": [4, 4, 4]},
            },
            "in common",
        ),
    ],
)
def test_settings_that_cannot_work(given: dict[str, object], message: str | None) -> None:
    if message is None:
        TrainSettings.from_json(given)
        return
    with pytest.raises(ParameterError, match=message):
        TrainSettings.from_json(given)


def test_boxes_that_do_not_fit_the_volume() -> None:
    settings = TrainSettings(patch=(16, 16, 16))
    boxes, judged = settings.divide(Box.of((0, 0, 0), SHAPE))
    assert (boxes[0].shape, judged.shape, judged.offset) == ((32, 32, 51), (32, 32, 13), (0, 0, 51))
    with pytest.raises(DataError, match="smaller than an example"):
        settings.divide(Box.of((0, 0, 0), (32, 12, 64)))
    outside = TrainSettings(patch=(16, 16, 16), boxes=(Box.of((0, 0, 0), (99, 32, 32)),))
    with pytest.raises(DataError, match="leaves the annotated volume"):
        outside.divide(Box.of((0, 0, 0), SHAPE))
