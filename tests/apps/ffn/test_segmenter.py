"""Flood filling with networks that are plain functions, so that every step can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError
from apps.ffn.examples import logit
from apps.ffn.model import ModelParameters
from apps.ffn.segmenter import Segmentation, Segmenter
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
    settings = InferenceSettings(**{"min_size": 1, "max_steps_per_cell": None, **fields})
    return Segmenter(image, MODEL, predict, settings).segment(np.array(seeds, np.int64).reshape(-1, 3))


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
