"""What the masks are made with: classes, grey values, networks, examples, tiles, and what tells their quality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.ffn.backend import start_tensorflow
from apps.masking.classes import NEUROPIL, OUTSIDE, SOMA, VESSEL, Confusion, check_classes
from apps.masking.examples import Examples, augment
from apps.masking.network import BLOCKS, NetworkParameters, build, flop_per_pixel, parameter_count
from apps.masking.scoring import Certainty
from apps.masking.sections import SEEN, class_shares, normalise, open_image, read_statistics
from apps.masking.segmenter import Segmenter, enlarge
from apps.masking.settings import Augmentation, TrainSettings
from apps.unet.trainer import learning_rate_at
from apps.unet.weights import initial_weights
from tests.apps.masking.samples import TRAINING, VOXEL, save, sections

UNCHANGED = Augmentation(flip=False, rotate=False, zoom=1, brightness=0, contrast=0, shading=0, noise=0, blank=0)


def test_dice_counts_what_is_annotated() -> None:
    confusion = Confusion()
    confusion.add(np.array([[1, 1, 2, 255]], np.uint8), np.array([[1, 0, 2, 2]], np.uint8))
    confusion.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    # vessel: 2 right of 3 true and 2 found; neuropil: 1 right of 1 true and 2 found; nothing is out of tissue.
    assert confusion.dice() == pytest.approx({"neuropil": 2 / 3, "vessel": 4 / 5, "soma": 1, "out_of_tissue": None})


def test_values_that_are_no_class_are_named() -> None:
    with pytest.raises(DataError, match=r"mine: holds the values \[7, 300\].*1 vessel"):
        check_classes(np.array([0, 7, 255, 300]), "mine")


def test_a_section_is_normalised_by_what_it_shows(tmp_path: Path) -> None:
    pixels = np.array([[0, 10, 20, 20], [0, 0, 10, 20]], np.uint8)
    write_volume(tmp_path / "image.zarr", np.stack([pixels, np.zeros_like(pixels)]), VOXEL)
    image = open_image(str(tmp_path / "image.zarr"))
    statistics = read_statistics(image, 0)
    assert (statistics.tissue, statistics.mean) == (5, 16.0)
    assert statistics.std == pytest.approx(24**0.5)
    # One pixel of the first block shows something: 10.  The second one is 20, 20, 10, 20.
    seen = normalise(pixels, statistics, 2) * statistics.std
    assert seen[..., 0] == pytest.approx(np.array([[-6.0, 1.5]]))
    assert seen[..., 1] == pytest.approx(np.array([[0.0, 18.75**0.5]]), abs=1e-3)
    nothing = read_statistics(image, 1)
    assert (nothing.tissue, nothing.mean, nothing.std) == (0, 0.0, 1.0)
    assert not normalise(np.zeros((2, 4), np.uint8), nothing, 2).any()
    assert statistics.digest != nothing.digest


def test_images_of_other_types_are_refused(tmp_path: Path) -> None:
    write_volume(tmp_path / "deep.zarr", np.zeros((2, 4, 4), np.uint16), VOXEL)
    with pytest.raises(DataError, match="uint16; expected grey values of uint8"):
        open_image(str(tmp_path / "deep.zarr"))


def test_a_block_has_a_share_of_each_class() -> None:
    labels = np.array([[0, 1, 3, 3], [1, 1, 255, 3]], np.uint8)
    assert class_shares(labels, 4, 2).tolist() == [[[0.25, 0.75, 0, 0], [0, 0, 0, 0.75]]]


@pytest.mark.parametrize("variant", BLOCKS)
def test_every_variant_is_a_network_whose_answer_depends_on_no_more_than_its_margin(variant: str) -> None:
    start_tensorflow(1)
    network = NetworkParameters.from_json({"variant": variant, "channels": 8, "poolings": 1, "downsample": 1})
    model = build(network)
    weights = initial_weights(model, 3)
    again = initial_weights(model, 3)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)
    assert sum(weights[name].size for name in weights if "moving" not in name) == parameter_count(network)
    for variable in model.variables:
        variable.assign(weights[variable.path])
    rng, extent = np.random.default_rng(0), 3 * network.margin
    image = rng.standard_normal((1, extent, extent, SEEN)).astype(np.float32)
    before = np.asarray(model(image))
    assert before.shape == (1, extent, extent, 4)
    image[0, :, network.margin + 2 :] += 5.0  # all columns from here on
    after = np.asarray(model(image))
    changed = np.flatnonzero(np.abs(after - before).max(axis=(0, 1, 3)) > 1e-4)
    assert 2 <= changed.min() < network.margin + 2


def test_operations_are_those_of_the_convolutions() -> None:
    start_tensorflow(1)
    network = NetworkParameters(channels=8, poolings=1, downsample=2)
    fine = 9 * (SEEN * 8 + 8 * 8) + 9 * (16 * 8 + 8 * 8) + 8 * 4
    coarse = 9 * (8 * 16 + 16 * 16) + 4 * 16 * 8
    assert flop_per_pixel(network) == pytest.approx(2 * (fine + coarse / 4) / 4)
    assert flop_per_pixel(NetworkParameters(variant="separable", channels=8, poolings=1, downsample=2)) < 0.5 * 2 * (
        fine + coarse / 4
    )


def test_a_step_has_the_same_examples_whenever_it_is_asked_for(tmp_path: Path) -> None:
    image, labels = map(open_volume, save(tmp_path))
    settings = TrainSettings.from_json(TRAINING)
    box = Box.of((0, 0, 0), (4, 64, 64))
    one, other = (Examples(image, labels, box, settings, silent) for _ in range(2))
    one.batch(0)
    images, shares = one.batch(7)
    assert images.shape == (4, 16, 16, SEEN)
    assert shares.shape == (4, 16, 16, 4)
    again = other.batch(7)
    assert np.array_equal(images, again[0])
    assert np.array_equal(shares, again[1])
    assert not np.array_equal(images, one.batch(8)[0])
    assert one.digest == other.digest
    assert sum(one.shares.values()) == pytest.approx(1)
    assert one.digest != Examples(image, labels, Box.of((0, 0, 0), (3, 64, 64)), settings, silent).digest


def test_examples_hold_the_classes_evenly(tmp_path: Path) -> None:
    """Vessels are a twentieth of the pixels, and in most of the examples."""
    image, labels = map(open_volume, save(tmp_path))
    settings = TrainSettings.from_json({**TRAINING, "balanced": 1.0, "batch_size": 40})
    shares = Examples(image, labels, image.box, settings, silent).batch(0)[1]
    centred = (shares.max(axis=(1, 2)) > 0.5).sum(axis=0)
    assert centred[VESSEL] > 12
    assert centred[SOMA] > 12


def test_examples_need_two_classes_and_something_to_see(tmp_path: Path) -> None:
    image, labels = map(open_volume, save(tmp_path))
    settings = TrainSettings.from_json(TRAINING)
    with pytest.raises(DataError, match="fewer than two classes"):
        Examples(image, labels, Box.of((0, 0, 0), (4, 4, 96)), settings, silent)
    with pytest.raises(DataError, match="too small to train on"):
        Examples(image, labels, Box.of((0, 0, 0), (4, 3, 96)), settings, silent)


def test_augmentation_turns_image_and_classes_alike_and_leaves_nothing_as_nothing() -> None:
    rng = np.random.default_rng(1)
    image = rng.random((8, 8, SEEN)).astype(np.float32)
    image[:2] = 0
    classes = (np.indices((8, 8)).sum(axis=0)[..., None] * np.ones(4)).astype(np.uint8)
    same, kept = augment(image, classes, UNCHANGED, 2, np.random.default_rng(0))
    assert np.array_equal(same, image)
    assert np.array_equal(kept, classes)
    turned = Augmentation.from_json({**UNCHANGED.to_dict(), "flip": True, "rotate": True})
    places = np.arange(1, 65, dtype=np.float32).reshape(8, 8)
    seen, tokens = np.stack([places, places], axis=-1), np.repeat(places[..., None].astype(np.uint8), 4, axis=-1)
    for seed in range(8):
        moved, along = augment(seen, tokens, turned, 2, np.random.default_rng(seed))
        assert np.array_equal(moved[..., 0], along[..., 0])
        assert np.array_equal(moved[..., 1], moved[..., 0])
    changed, _ = augment(image, classes, Augmentation(flip=False, rotate=False, blank=0), 2, np.random.default_rng(0))
    assert np.array_equal(changed == 0, image == 0)
    assert not np.allclose(changed, image)


def test_what_is_blanked_is_out_of_tissue() -> None:
    how = Augmentation.from_json({**UNCHANGED.to_dict(), "blank": 1.0})
    classes = np.zeros((16, 16, 4), np.uint8)
    classes[..., NEUROPIL] = 255
    image, classes = augment(np.ones((16, 16, SEEN), np.float32), classes, how, 2, np.random.default_rng(0))
    assert 0 < np.count_nonzero(image[..., 0] == 0) < 256
    assert np.array_equal(classes[..., OUTSIDE] == 255, image[..., 0] == 0)


def test_the_rate_rises_then_falls() -> None:
    settings = TrainSettings(steps=110, warmup_steps=10, learning_rate=1.0)
    assert learning_rate_at(0, settings) == pytest.approx(0.1)
    assert learning_rate_at(10, settings) == pytest.approx(1.0)
    assert learning_rate_at(60, settings) == pytest.approx(0.5)
    assert learning_rate_at(109, settings) < 0.001


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"patch": 40}, "multiple of 32"),
        ({"warmup_steps": 900}, "warmup_steps = 900"),
        ({"validation_box": {"offset": [0, 0, 0], "shape": [1, 1, 1]}}, "needs box too"),
        ({"network": {"channels": 4}}, "channels"),
        ({"network": {"channels": 512}}, "channels"),
        ({"network": {"downsample": 3}}, "downsample"),
        ({"network": {"variant": "transformer"}}, "variant"),
        ({"box": {"offset": [0, 0, 0], "shape": [0, 1, 1]}}, "is empty"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, object], word: str) -> None:
    with pytest.raises(ParameterError, match=word):
        TrainSettings.from_json(dict(fields))


def test_boxes_for_training_and_validation() -> None:
    whole = Box.of((0, 0, 0), (4, 64, 100))
    training, validation = TrainSettings().divide(whole)
    assert (training, validation) == (Box.of((0, 0, 0), (4, 64, 80)), Box.of((0, 0, 80), (4, 64, 20)))
    settings = TrainSettings(box=Box.of((0, 0, 0), (2, 64, 100)), validation_box=Box.of((2, 0, 0), (2, 64, 100)))
    assert settings.divide(whole) == (settings.box, settings.validation_box)
    with pytest.raises(ParameterError, match="in common"):
        TrainSettings(box=whole, validation_box=validation)
    with pytest.raises(DataError, match="leaves the annotated volume"):
        settings.divide(Box.of((0, 0, 0), (3, 64, 100)))


def test_interpolation_goes_in_lines_between_the_middles_of_blocks() -> None:
    values = np.array([[0.0, 4.0, 8.0]], np.float32)[..., None]
    assert enlarge(values, 2, (0, 0), (2, 6))[0, :, 0].tolist() == [0, 1, 3, 5, 7, 8]
    assert enlarge(values, 2, (0, 3), (1, 2))[0, :, 0].tolist() == [5, 7]
    assert enlarge(values, 1, (0, 1), (1, 2))[0, :, 0].tolist() == [4, 8]


@pytest.mark.parametrize("downsample", [1, 2])
def test_tiles_have_no_seam(downsample: int, tmp_path: Path) -> None:
    """Whatever the tile: the same probabilities' classes, entropy and sharpness; not so where tiles overlap less."""
    start_tensorflow(1)
    write_volume(tmp_path / "image.zarr", sections(1)[0], VOXEL)
    image = open_image(str(tmp_path / "image.zarr"))
    network = NetworkParameters.from_json({"channels": 8, "poolings": 1, "downsample": downsample})
    weights = initial_weights(build(network), 0)
    statistics = read_statistics(image, 0)

    def masked(tile: int, overlap: int | None = None) -> tuple[np.ndarray, Certainty]:
        segmenter, certainty = Segmenter(network, weights, tile, overlap), Certainty()
        classes = np.full(image.shape, 9, np.uint8)
        for part in segmenter.segment(image, image.box, statistics, certainty):
            assert np.all(classes[part.box.slices()] == 9)
            classes[part.box.slices()] = part.classes
        return classes, certainty

    whole, sure = masked(1024)
    assert np.array_equal(whole == OUTSIDE, image.read() == 0) or np.all(whole[image.read() == 0] == OUTSIDE)
    assert len(np.unique(whole)) > 2
    for tile in (32, 48):
        found, judged = masked(tile)
        assert np.mean(found != whole) < 1e-3
        assert judged.entropy == pytest.approx(sure.entropy, abs=1e-4)
        assert judged.sharpness == pytest.approx(sure.sharpness, abs=1e-3)
    assert np.mean(masked(32, overlap=0)[0] != whole) > 1e-3


def test_a_region_is_masked_as_the_whole_is(tmp_path: Path) -> None:
    start_tensorflow(1)
    write_volume(tmp_path / "image.zarr", sections(2)[0], VOXEL)
    image = open_image(str(tmp_path / "image.zarr"))
    network = NetworkParameters(channels=8, poolings=1, downsample=2)
    segmenter = Segmenter(network, initial_weights(build(network), 0), 32)
    statistics = read_statistics(image, 1)
    whole = np.zeros((1, 64, 96), np.uint8)
    for part in segmenter.segment(image, Box.of((1, 0, 0), (1, 64, 96)), statistics):
        whole[part.box.slices((1, 0, 0))] = part.classes
    region = Box.of((1, 13, 27), (1, 30, 51))
    found = np.full((1, 30, 51), 9, np.uint8)
    for part in segmenter.segment(image, region, statistics):
        found[part.box.slices(region.offset)] = part.classes
    assert np.mean(found != whole[:, 13:43, 27:78]) < 1e-3


def test_entropy_and_sharpness_by_hand() -> None:
    sure, torn = [1.0, 0, 0, 0], [0.0, 0.5, 0.5, 0]
    probabilities = np.array([[sure, torn], [sure, sure]], np.float32)
    tissue = np.array([[True, True], [True, False]])
    certainty = Certainty()
    certainty.add(probabilities, tissue, 2, 2)
    assert certainty.entropy == pytest.approx(1.0)  # one bit at the one place that may be masked
    assert certainty.expected_dice == pytest.approx(2 * 0.5 / (1 + 1))
    assert certainty.sharpness == pytest.approx(1.0)  # the one pair of two classes has nothing in common
    split = Certainty()
    for row in (0, 1):
        split.add(probabilities[row : row + 2], tissue[row : row + 2], 1, 2)
    assert (split.entropy, split.sharpness) == (certainty.entropy, certainty.sharpness)
    assert split.expected_dice == certainty.expected_dice
    blurred = Certainty()
    blurred.add(np.array([[[0.6, 0.4, 0, 0], [0.4, 0.6, 0, 0]]], np.float32), np.ones((1, 2), bool), 1, 2)
    assert blurred.sharpness == pytest.approx(0.2)
    assert blurred.expected_dice == pytest.approx(2 * 0.6 / (1 + 1), abs=1e-6)
    nothing = Certainty()
    nothing.add(np.array([[sure, sure]], np.float32), np.ones((1, 2), bool), 1, 2)
    for empty in (Certainty(), nothing):
        assert (empty.entropy, empty.expected_dice, empty.sharpness) == (None, None, None)
