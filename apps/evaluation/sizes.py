"""Splits and mergers counted by the size of the truth's objects: large neurons and small fragments fail differently.

A segment is a part of an object where they share at least `part_voxels` voxels, or half of a smaller object, so that
borders drawn a voxel off are no error.  An object with no part is missed; one with k parts has been split k - 1 times.
A segment that is a part of k objects has made k - 1 mergers, each of an object into the largest of them (of equally
large ones that with the smallest label), and each is counted at the size of the smaller object.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.parameters import Result
from apps.evaluation.contingency import Labels, count_pairs, totals


class SizeClass(Result, frozen=True, kw_only=True):
    """The errors on objects of one range of sizes."""

    min_voxels: Annotated[int, Meta(description="objects of this size or more, in voxels in the box")]
    max_voxels: Annotated[int | None, Meta(description="and of less than this; null for any size")]
    objects: Annotated[int, Meta(description="objects of the truth of that size")]
    missed: Annotated[int, Meta(description="objects that no segment covers to a notable part")]
    split: Annotated[int, Meta(description="objects in several segments")]
    splits: Annotated[int, Meta(description="segments more than one an object, over these objects")]
    merged: Annotated[int, Meta(description="objects that share a segment with another object")]
    mergers: Annotated[int, Meta(description="times that such an object was merged into a larger one")]


def count_errors(
    truth: Labels, segmentation: Labels, boundaries: tuple[int, ...], part_voxels: int
) -> tuple[SizeClass, ...]:
    """Errors for the classes that the ascending `boundaries` (voxels) part the sizes into, smallest first.

    `truth` and `segmentation` are integer arrays of equal shape (zyx); 0 is no object in either.
    """
    labelled = truth != 0
    pairs = count_pairs(truth[labelled], segmentation[labelled])
    size = totals(pairs.first, pairs.voxels)
    objects, first, row = np.unique(pairs.first, return_index=True, return_inverse=True)
    sizes = size[first]
    part = (pairs.second != 0) & (pairs.voxels >= np.minimum(part_voxels, -(-size // 2)))
    parts = np.bincount(row[part], minlength=len(objects))
    merged, mergers = _mergers(row[part], pairs.second[part], sizes)

    bounds = [1, *boundaries]
    number = np.searchsorted(boundaries, sizes, side="right")
    classes = []
    for index, low in enumerate(bounds):
        here = number == index
        classes.append(
            SizeClass(
                min_voxels=low,
                max_voxels=bounds[index + 1] if index + 1 < len(bounds) else None,
                objects=int(here.sum()),
                missed=int((parts[here] == 0).sum()),
                split=int((parts[here] > 1).sum()),
                splits=int(np.maximum(parts[here] - 1, 0).sum()),
                merged=int(merged[here].sum()),
                mergers=int(mergers[here].sum()),
            )
        )
    return tuple(classes)


def _mergers(
    row: NDArray[np.int64], segment: Labels, sizes: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """For every object, whether it shares a segment, and how often it was merged into a larger one.

    `row` and `segment` are the parts, as objects by number (in the order of their labels) and segments by id.
    """
    merged, mergers = np.zeros(len(sizes), bool), np.zeros(len(sizes), np.int64)
    if not len(row):
        return merged, mergers
    # Segment by segment, the largest object first.
    order = np.lexsort((row, -sizes[row], segment))
    row, segment = row[order], segment[order]
    follows = np.concatenate([[False], segment[1:] == segment[:-1]])
    shares = follows | np.concatenate([follows[1:], [False]])
    merged[row[shares]] = True
    np.add.at(mergers, row[follows], 1)
    return merged, mergers
