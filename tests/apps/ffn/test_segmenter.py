"""Flood filling with networks that are plain functions, so that every step can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError, DivergedError, ParameterError
from apps.ffn.canvas import HostCanvas, Thresholds, quantise
from apps.ffn.flooding import Subvolume, flood
from apps.ffn.model import ModelParameters
from apps.ffn.movement import logit
from apps.ffn.segmenter import Outcome, Segmentation, Segmenter
from apps.ffn.settings import InferenceSettings

Array = NDArray[np.float32]
MODEL = ModelParameters(depth=1, features=1, fov=(7, 7, 7), deltas=(2, 2, 2))


# A little less sure the further from the centre, so that the best voxel of a face is its middle.
_AXIS = np.abs(np.arange(-3, 4))
SLOPE: Array = np.divide(_AXIS[:, None, None] + _AXIS[:, None] + _AXIS, 100).astype(np.float32)


def oracle(image: Array, seed: Array) -> Array:
    """A perfect network on an image of labels: the voxels of the centre's label are the object."""
    return np.where(image == image[3, 3, 3], np.float32(4), np.float32(-4)) - SLOPE


def everything(image: Array, seed: Array) -> Array:
    """A network that takes all for one object."""
    return np.float32(4) - SLOPE


def segment(
    image: Array, seeds: list[tuple[int, int, int]], predict: Callable[[Array, Array], Array] = oracle, **fields: Any
) -> Segmentation:
    options = {name: fields.pop(name) for name in ("excluded", "probability", "on_outcome") if name in fields}
    if fields.get("fovs_per_object", 1) > 1:
        fields["mode"] = "fast"
    settings = InferenceSettings(**{"min_size": 1, "max_steps_per_cell": None, **fields})
    points = np.array(seeds, np.int64).reshape(-1, 3)
    shape = image.shape[0], image.shape[1], image.shape[2]
    subvolume = Subvolume(0, image, Segmenter(shape, points, MODEL, settings, **options))

    def batched(images: Array, maps: Array) -> Array:
        return np.stack([predict(image, seed) for image, seed in zip(images, maps, strict=True)])

    found: list[Segmentation] = []
    canvas = HostCanvas(MODEL, batched, Thresholds.of(settings))
    flood(iter([subvolume]), canvas, lambda done: found.append(done.segmenter.result()))
    return found[0]


def halves() -> Array:
    """Two objects, 1 at x under 10 and 2 from 10 on; zyx (7, 7, 20): the field of view can move along x alone."""
    image = np.ones((7, 7, 20), np.float32)
    image[..., 10:] = 2
    return image


def test_objects_are_what_the_network_sees_in_the_order_of_the_seeds() -> None:
    found = segment(halves(), [(3, 3, 16), (3, 3, 3)])
    np.testing.assert_array_equal(found.labels, np.where(halves() == 2, 1, 2))
    # From x = 16: 14, 12, 10; from x = 3: 5, 7, 9.
    objects = [(item.id, item.origin, item.voxels, item.steps) for item in found.objects]
    assert objects == [(1, (3, 3, 16), 490, 4), (2, (3, 3, 3), 490, 4)]
    assert (found.counters.steps, found.counters.seeds) == (8, 2)
    assert found.labels.dtype == np.uint32
    assert not found.truncated


def test_a_seed_inside_an_object_or_next_to_one_is_left_out() -> None:
    found = segment(halves(), [(3, 3, 3), (3, 3, 5), (3, 3, 10), (3, 3, 12)])
    assert [origin for origin, _ in found.tried] == [(3, 3, 3), (3, 3, 12)]
    wide = segment(halves(), [(3, 3, 3), (3, 3, 12)], boundary_distance=(1, 1, 3))
    assert [origin for origin, _ in wide.tried] == [(3, 3, 3)]


def test_a_later_object_takes_no_voxel_of_an_earlier_one() -> None:
    def greedy_second(image: Array, seed: Array) -> Array:
        return oracle(image, seed) if image[3, 3, 3] == 1 else everything(image, seed)

    found = segment(halves(), [(3, 3, 3), (3, 3, 16)], greedy_second)
    np.testing.assert_array_equal(found.labels, halves())
    assert found.objects[1].voxels == 490


def test_small_objects_are_dropped_and_their_voxels_stay_free() -> None:
    found = segment(halves(), [(3, 3, 3), (3, 3, 16)], min_size=491)
    assert found.objects == []
    assert not found.labels.any()
    assert found.counters.small == 2


def test_an_object_whose_seed_grows_weak_is_dropped_at_once() -> None:
    def doubt(image: Array, seed: Array) -> Array:
        return np.full(image.shape, -1, np.float32)

    found = segment(halves(), [(3, 3, 3)], doubt)
    assert (found.counters.weak, found.counters.steps, found.objects) == (1, 1, [])


def test_the_network_sees_the_seed_the_padding_and_then_its_own_output() -> None:
    shown: list[Array] = []

    def remember(image: Array, seed: Array) -> Array:
        shown.append(seed.copy())
        return oracle(image, seed)

    segment(halves(), [(3, 3, 3)], remember)
    assert shown[0][3, 3, 3] == logit(0.95)
    assert np.count_nonzero(shown[0] == logit(0.05)) == 7**3 - 1
    # Two voxels further along x the network sees what it wrote, and beyond that the padding.
    assert shown[1][3, 3, 1] == 4
    assert (shown[1][..., 5:] == logit(0.05)).all()


def test_the_best_face_is_visited_first_and_no_cell_twice() -> None:
    """Scores that fall with x: -x before +x, first in first out."""
    positions: list[int] = []

    def falling(image: Array, seed: Array) -> Array:
        positions.append(int(image[3, 3, 3]))
        return np.float32(20) - image / np.float32(2) - SLOPE

    segment(np.tile(np.arange(21, dtype=np.float32), (7, 7, 1)), [(3, 3, 10)], falling)
    assert positions == [10, 8, 12, 6, 14, 4, 16]


@pytest.mark.parametrize(("threshold", "rises"), [(0.0, False), (0.999, True), (None, True)])
def test_voxels_judged_outside_may_not_rise_again(threshold: float | None, rises: bool) -> None:
    """The first look says no to the neighbour, the later ones say yes: the rule holds once `move` is reached in more
    than the threshold's share of the field of view."""
    looks = [0]

    def forgetful(image: Array, seed: Array) -> Array:
        looks[0] += 1
        logits = oracle(image, seed) if looks[0] == 1 else everything(image, seed)
        logits[0, 0, 0] = -4
        return logits

    found = segment(halves(), [(3, 3, 7)], forgetful, disco_seed_threshold=threshold)
    assert bool(found.labels[3, 3, 10]) is rises


def test_the_bound_on_steps_ends_the_segmentation_and_says_so() -> None:
    image = np.zeros((16, 16, 16), np.float32)
    free = segment(image, [(8, 8, 8)], max_steps_per_cell=1.0)
    assert not free.truncated
    bounded = segment(image, [(8, 8, 8), (3, 3, 3)], max_steps_per_cell=10 / 512)
    assert bounded.truncated
    assert bounded.counters.steps == 10
    again = segment(image, [(8, 8, 8), (3, 3, 3)], max_steps_per_cell=10 / 512)
    np.testing.assert_array_equal(bounded.labels, again.labels)


def test_the_canvas_is_clean_between_objects() -> None:
    alone = segment(halves(), [(3, 3, 16)])
    second = segment(halves(), [(3, 3, 3), (3, 3, 16)])
    np.testing.assert_array_equal(alone.labels > 0, second.labels == 2)


def test_an_image_smaller_than_the_field_of_view_is_refused() -> None:
    with pytest.raises(DataError, match="smaller than the field of view"):
        segment(np.zeros((7, 7, 6), np.float32), [])


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ParameterError, match="no object could start"):
        InferenceSettings(init=0.8, move=0.9)
    with pytest.raises(ParameterError, match="boundary_distance"):
        InferenceSettings(boundary_distance=(1, -1, 1))
    with pytest.raises(ParameterError, match="max_steps_per_cell"):
        InferenceSettings(max_steps_per_cell=0.0)


def test_a_nan_of_the_network_is_an_error_and_no_object() -> None:
    def broken(image: Array, seed: Array) -> Array:
        return np.full(image.shape, np.nan, np.float32)

    with pytest.raises(DivergedError, match="NaN"):
        segment(halves(), [(3, 3, 3)], broken)


def test_masks_keep_seeds_the_field_of_view_and_objects_out() -> None:
    excluded = np.zeros((7, 7, 20), bool)
    excluded[..., 12:] = True
    found = segment(halves(), [(3, 3, 16), (3, 3, 3)], everything, excluded=excluded)
    assert [origin for origin, _ in found.tried] == [(3, 3, 3)]  # the first seed is in the mask
    # 3, 5, 7, 9, 11: the field of view is never centred in the mask, and what it sees there belongs to nothing.
    assert found.counters.steps == 5
    np.testing.assert_array_equal(found.labels > 0, ~excluded)


def test_the_probability_is_that_of_the_object_that_holds_the_voxel() -> None:
    found = segment(halves(), [(3, 3, 3), (3, 3, 16)], probability=True)
    assert found.probability is not None
    inside = float(4 - SLOPE[3, 3, 3])
    assert found.probability[3, 3, 3] == round(255 / (1 + np.exp(-inside)))
    assert (found.probability >= 0.9 * 255).all()
    some = segment(halves(), [(3, 3, 3)], probability=True)
    assert some.probability is not None
    np.testing.assert_array_equal(some.probability > 0, some.labels > 0)


def test_quantised_probability_tells_unlikely_from_unknown() -> None:
    np.testing.assert_array_equal(quantise(np.array([np.nan, -99, 0, 99], np.float32)), [0, 1, 128, 255])


def test_several_fields_of_view_of_an_object_never_overlap_and_find_the_same() -> None:
    """On a plate one field of view thick, in all directions at once."""
    image = np.ones((7, 60, 60), np.float32)
    batches: list[list[tuple[int, int, int]]] = []

    class Watching(HostCanvas):
        def launch(self, looks: Any) -> None:
            batches.append([look.position for look in looks])
            super().launch(looks)

    settings = InferenceSettings(min_size=1, max_steps_per_cell=None, mode="fast", fovs_per_object=3)
    segmenter = Segmenter((7, 60, 60), np.array([(3, 30, 30)]), MODEL, settings)
    canvas = Watching(MODEL, lambda image, seed: oracle(image[0], seed[0])[None], Thresholds.of(settings))
    flood(iter([Subvolume(0, image, segmenter)]), canvas, lambda done: None)
    assert max(map(len, batches)) == 3
    assert sum(map(len, batches)) > 1.5 * len(batches)
    for batch in batches:
        for number, a in enumerate(batch):
            assert all(max(abs(p - q) for p, q in zip(a, b, strict=True)) >= 7 for b in batch[:number])
    alone = segment(image, [(3, 30, 30)])
    np.testing.assert_array_equal(segmenter.result().labels, alone.labels)
    assert segmenter.result().counters.steps == alone.counters.steps


def test_what_an_earlier_process_found_is_taken_over() -> None:
    """After every seed: the same labels, objects and counters as without the interruption."""
    seeds = [(3, 3, 3), (3, 3, 5), (3, 3, 12), (3, 3, 15)]
    outcomes: list[Outcome] = []
    whole = segment(halves(), seeds, probability=True, on_outcome=outcomes.append)
    assert len(outcomes) == 2
    settings = InferenceSettings(min_size=1, max_steps_per_cell=None)
    for known in range(len(outcomes) + 1):
        segmenter = Segmenter((7, 7, 20), np.array(seeds), MODEL, settings, probability=True)
        for outcome in outcomes[:known]:
            segmenter.restore(outcome)
        canvas = HostCanvas(MODEL, lambda image, seed: oracle(image[0], seed[0])[None], Thresholds.of(settings))
        flood(iter([Subvolume(0, halves(), segmenter)]), canvas, lambda done: None)
        again = segmenter.result()
        np.testing.assert_array_equal(again.labels, whole.labels)
        np.testing.assert_array_equal(again.probability, whole.probability)
        assert (again.objects, again.tried, again.counters.steps) == (whole.objects, whole.tried, whole.counters.steps)


def test_an_outcome_of_another_segmentation_is_refused() -> None:
    settings = InferenceSettings(min_size=1)
    segmenter = Segmenter((7, 7, 20), np.array([(0, 0, 0), (3, 3, 3)]), MODEL, settings)
    with pytest.raises(DataError, match="another segmentation"):
        segmenter.restore(Outcome(0, 1, False, 3, Box.of((0, 0, 0), (7, 7, 7)), None, None))


def test_faithful_means_float32_and_one_field_of_view() -> None:
    for fields in ({"precision": "bfloat16"}, {"fovs_per_object": 2}):
        with pytest.raises(ParameterError, match="faithful"):
            InferenceSettings(**fields)
        assert InferenceSettings(mode="fast", **fields).mode == "fast"
    assert InferenceSettings().network_precision == "float32"
    assert InferenceSettings(mode="fast").network_precision == "bfloat16"
