"""Splits and mergers by the size of objects, counted by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.evaluation.sizes import SizeClass, count_errors


def runs(*of: tuple[int, int]) -> NDArray[np.uint64]:
    """(label, voxels) one after the other, as a zyx array."""
    return np.concatenate([np.full(count, label, np.uint64) for label, count in of]).reshape(1, 1, -1)


def counts(row: SizeClass) -> dict[str, int]:
    return {name: value for name, value in row.to_dict().items() if value and not name.endswith("voxels")}


def test_perfect() -> None:
    truth = runs((1, 5), (2, 50), (3, 500), (0, 40))
    small, middle, large = count_errors(truth, truth * 3, (10, 100), 4)
    assert [(row.min_voxels, row.max_voxels) for row in (small, middle, large)] == [(1, 10), (10, 100), (100, None)]
    assert [counts(row) for row in (small, middle, large)] == [{"objects": 1}] * 3


def test_a_size_on_a_boundary_is_of_the_larger_class() -> None:
    truth = runs((1, 9), (2, 10))
    assert [row.objects for row in count_errors(truth, truth, (10,), 1)] == [1, 1]


def test_splits() -> None:
    truth = runs((1, 100), (2, 20))
    segmentation = runs((5, 40), (6, 40), (7, 20), (8, 20))
    small, large = count_errors(truth, segmentation, (50,), 10)
    assert counts(large) == {"objects": 1, "split": 1, "splits": 2}
    assert counts(small) == {"objects": 1}


def test_a_merger_counts_at_the_smaller_object() -> None:
    truth = runs((1, 20), (2, 100), (3, 200))
    small, large = count_errors(truth, runs((9, 320)), (50,), 10)
    assert counts(small) == {"objects": 1, "merged": 1, "mergers": 1}
    assert counts(large) == {"objects": 2, "merged": 2, "mergers": 1}
    equal = count_errors(runs((1, 20), (2, 20)), runs((9, 40)), (), 10)
    assert counts(equal[0]) == {"objects": 2, "merged": 2, "mergers": 1}


def test_missed_objects_and_background() -> None:
    truth = runs((1, 20), (2, 100), (0, 50))
    segmentation = runs((0, 20), (0, 60), (4, 40), (4, 50))
    small, large = count_errors(truth, segmentation, (50,), 30)
    assert counts(small) == {"objects": 1, "missed": 1}
    assert counts(large) == {"objects": 1}, "0 is no part, and what is outside the truth no error"


def test_a_border_a_voxel_off_is_no_error() -> None:
    truth = runs((1, 100), (2, 100))
    assert counts(count_errors(truth, runs((5, 103), (6, 97)), (), 4)[0]) == {"objects": 2}
    off = counts(count_errors(truth, runs((5, 103), (6, 97)), (), 3)[0])
    assert off == {"objects": 2, "split": 1, "splits": 1, "merged": 2, "mergers": 1}


def test_half_of_a_small_object_is_a_part() -> None:
    truth = runs((1, 7))
    assert counts(count_errors(truth, runs((5, 4), (6, 3)), (), 100)[0]) == {"objects": 1}
    assert counts(count_errors(truth, runs((5, 3), (6, 2), (7, 2)), (), 100)[0]) == {"objects": 1, "missed": 1}
