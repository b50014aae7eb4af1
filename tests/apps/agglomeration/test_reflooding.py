"""Looking again at a pair, with a network in NumPy that takes what is bright."""

from __future__ import annotations

import numpy as np
import pytest

from apps.agglomeration.reflooding import PairScore, Rules, Window, inner_seed, score_pairs, window_box
from apps.core.boxes import Box
from apps.ffn.canvas import HostCanvas, Thresholds
from apps.ffn.settings import InferenceSettings
from tests.apps.agglomeration.samples import MODEL

SIZE = (10.0, 10.0, 10.0)
SETTINGS = InferenceSettings()
SHAPE = (17, 17, 41)


def takes_bright(image: np.ndarray, seed: np.ndarray) -> np.ndarray:
    return np.where(image > 0, np.float32(4), np.float32(-4))


def score(labels: np.ndarray, bright: np.ndarray, predict: object = takes_bright, **rules: object) -> PairScore:
    image = np.where(bright, 1, -1).astype(np.float32)
    canvas = HostCanvas(MODEL, predict, Thresholds.of(SETTINGS))  # type: ignore[arg-type]
    window = Window(Box.of((100, 0, 0), SHAPE), labels, None, 1, 2)
    chosen = {"min_voxels": 50, "stop_below": 0.6, **rules}
    (found,) = score_pairs([window], lambda box: image, canvas, MODEL, Rules(SETTINGS, SIZE, **chosen))  # type: ignore[arg-type]
    return found


def tube() -> np.ndarray:
    """A tube along x, 5 x 5, split in two at x = 18."""
    labels = np.zeros(SHAPE, np.uint64)
    labels[6:11, 6:11, :18], labels[6:11, 6:11, 18:] = 1, 2
    return labels


def test_two_halves_of_one_tube_agree() -> None:
    found = score(tube(), tube() > 0)
    assert found.verdict == "scored"
    assert (found.voxels_a, found.voxels_b) == (450, 575)
    assert found.from_a is not None
    assert found.from_b is not None
    assert min(found.from_a.recovers_a, found.from_a.recovers_b, found.from_b.recovers_a, found.from_b.recovers_b) > 0.9
    assert found.iou is not None
    assert found.iou > 0.85
    assert found.from_a.seed == (108, 8, 4)  # of the window's own place in the volume
    assert (found.from_a.deleted, found.from_b.deleted) == (0.0, 0.0)


def test_the_smaller_side_that_stays_alone_ends_it() -> None:
    labels = tube()
    found = score(labels, labels == 1)
    assert found.verdict == "stopped"
    assert found.iou is None
    assert found.from_b is None
    assert found.from_a is not None
    assert (found.from_a.recovers_a, found.from_a.recovers_b) == (1.0, 0.0)
    # Without the early stop both sides are flooded, and the dark one gives nothing.
    assert score(labels, labels == 1, stop_below=0.0).verdict == "weak"


def test_other_objects_are_not_entered() -> None:
    labels = tube()
    labels[6:11, 6:11, 25:30] = 3
    found = score(labels, labels > 0)
    assert (found.verdict, found.voxels_b) == ("stopped", 450)
    assert found.from_a is not None
    # Behind the other object is as good as outside; what it holds itself counts for nobody.
    assert (found.from_a.recovers_a, found.from_a.voxels) == (1.0, 25 * 25)


def test_what_a_flood_takes_away_is_counted() -> None:
    """A network that first takes all that is bright, and lets go of it where it has seen it before."""

    def fickle(image: np.ndarray, seed: np.ndarray) -> np.ndarray:
        far = np.indices(image.shape[1:])[2][None] >= 7
        return np.where((image > 0) & ~((seed > 2) & far), np.float32(4), np.float32(-4))

    found = score(tube(), tube() > 0, fickle, stop_below=0.0)
    assert found.from_a is not None
    assert found.from_a.deleted > 0.02


@pytest.mark.parametrize(("voxels", "verdict"), [(450, "scored"), (451, "small")])
def test_a_small_object_is_not_looked_at(voxels: int, verdict: str) -> None:
    assert score(tube(), tube() > 0, min_voxels=voxels).verdict == verdict


def test_an_object_at_the_rim_has_no_place_for_a_field_of_view() -> None:
    labels = tube()
    labels[labels == 1] = 0
    labels[:4, :, :18] = 1
    found = score(labels, labels > 0)
    assert (found.verdict, found.from_a, found.from_b) == ("no_seed", None, None)


def test_a_masked_part_is_neither_entered_nor_a_seed() -> None:
    labels = tube()
    excluded = labels == 2
    image = np.where(labels > 0, 1, -1).astype(np.float32)
    canvas = HostCanvas(MODEL, takes_bright, Thresholds.of(SETTINGS))
    window = Window(Box.of((0, 0, 0), SHAPE), labels, excluded, 1, 2)
    (found,) = score_pairs([window], lambda box: image, canvas, MODEL, Rules(SETTINGS, SIZE, 50, 0.6))
    assert found.verdict == "no_seed"


def test_pairs_do_not_hang_on_each_other() -> None:
    image = np.where(tube() > 0, 1, -1).astype(np.float32)
    swapped = np.where(tube() == 1, 2, np.where(tube() == 2, 1, 0)).astype(np.uint64)
    windows = [Window(Box.of((0, 0, 0), SHAPE), labels, None, 1, 2) for labels in (tube(), swapped, tube())]
    rules = Rules(SETTINGS, SIZE, 50, 0.6)

    def scores(which: list[Window]) -> list[PairScore]:
        return score_pairs(
            which, lambda box: image, HostCanvas(MODEL, takes_bright, Thresholds.of(SETTINGS)), MODEL, rules
        )

    together = scores(windows)
    assert together == [scores([window])[0] for window in windows]
    assert together[0].from_a == together[1].from_b or together[0].iou == together[1].iou


def test_a_window_at_the_border_is_moved_inside() -> None:
    bounds = Box.of((0, 0, 0), (30, 100, 20))
    assert window_box((2, 50, 10), (5, 10, 12), bounds) == Box.between((0, 40, 0), (11, 61, 20))
    assert window_box((29, 99, 0), (5, 10, 3), bounds) == Box.between((19, 79, 0), (30, 100, 7))


def test_the_seed_is_in_the_thickest_place() -> None:
    mask = np.zeros((15, 15, 30), bool)
    mask[5:10, 5:10, 5:25] = True
    mask[3:12, 3:12, 16:25] = True
    assert inner_seed(mask, SIZE, (2, 2, 2)) == (7, 7, 19)
    assert inner_seed(mask, SIZE, (7, 7, 14)) == (7, 7, 14)
    assert inner_seed(mask[:, :, :4], SIZE, (1, 1, 1)) is None
