"""Accuracy of a segmentation against ground truth, as pure functions on arrays.

Voxels whose truth is 0 (membrane, unlabelled) take part in nothing.  What a predicted 0 (no object) means differs:

* variation of information and adapted Rand error: the voxels with predicted 0 are one ordinary segment, as in
  scikit-image and funlib.evaluate.  A voxel left out is therefore punished as merged with all others left out, and
  "nothing segmented" scores the same two numbers as "everything one object".  (CREMI's scripts do the same for the
  variation of information, but in their Rand error count every predicted 0 as a segment of its own.)
* filled_fraction and objects: predicted 0 is what it says, no object; these two tell the trivial answers apart.

Sources: M. Meila, Comparing clusterings, J. Multivariate Analysis 98 (2007); I. Arganda-Carreras et al., Crowdsourcing
the creation of image segmentation algorithms for connectomics, Front. Neuroanat. 9 (2015), for the adapted Rand error.
"""

from __future__ import annotations

from typing import Annotated

import fastremap
import numpy as np
from msgspec import Meta

from apps.core.errors import DataError
from apps.core.parameters import Result
from apps.evaluation.contingency import LabelPairs, Labels, count_pairs, totals


class Scores(Result, frozen=True, kw_only=True):
    """How well a segmentation agrees with the truth; the module's docstring says what a predicted 0 counts as."""

    vi_split: Annotated[float, Meta(description="H(segmentation | truth) in bits: how much objects are split")]
    vi_merge: Annotated[float, Meta(description="H(truth | segmentation) in bits: how much objects are merged")]
    vi: Annotated[float, Meta(description="variation of information in bits, vi_split + vi_merge; 0 is perfect")]
    adapted_rand_error: Annotated[float, Meta(description="1 - F score of pairs of voxels; 0 is perfect, 1 the worst")]
    rand_precision: Annotated[
        float, Meta(description="of the pairs that the segmentation puts together, the share that belongs together")
    ]
    rand_recall: Annotated[
        float, Meta(description="of the pairs that belong together, the share that the segmentation puts together")
    ]
    filled_fraction: Annotated[float, Meta(description="share of the labelled voxels that some object covers")]
    objects: Annotated[int, Meta(description="number of different ids other than 0 in the segmentation")]


def score(truth: Labels, segmentation: Labels) -> Scores:
    """Compare two label arrays of equal shape (zyx; any integer dtype, ids need not be consecutive).

    The variation of information equals scikit-image's `variation_of_information(truth, segmentation,
    ignore_labels=(0,))`, which returns (split, merge); the adapted Rand error equals its `adapted_rand_error`.
    rand_precision and rand_recall have CREMI's meaning: mergers lower the precision, splits lower the recall.
    scikit-image returns them in the other order.  Where there is no pair to judge, precision or recall is 1.

    Raises DataError where the shapes differ, an array does not hold integers, or the truth is 0 everywhere.
    """
    _check(truth, segmentation)
    labelled = truth != 0
    if not labelled.any():
        raise DataError("truth: is 0 everywhere; expected labelled voxels to compare with")
    pairs = count_pairs(truth[labelled], segmentation[labelled])
    vi_split, vi_merge = _variation_of_information(pairs)
    error, precision, recall = _adapted_rand(pairs)
    return Scores(
        vi_split=vi_split,
        vi_merge=vi_merge,
        vi=vi_split + vi_merge,
        adapted_rand_error=error,
        rand_precision=precision,
        rand_recall=recall,
        filled_fraction=float(pairs.voxels[pairs.second != 0].sum() / pairs.voxels.sum()),
        objects=int(np.count_nonzero(fastremap.unique(segmentation))),
    )


def _check(truth: Labels, segmentation: Labels) -> None:
    for name, array in (("truth", truth), ("segmentation", segmentation)):
        if array.dtype.kind not in "ui":
            raise DataError(f"{name}: has dtype {array.dtype}; expected integer labels")
    if truth.shape != segmentation.shape:
        raise DataError(f"segmentation of shape {segmentation.shape}: expected the truth's shape {truth.shape}")


def _variation_of_information(pairs: LabelPairs) -> tuple[float, float]:
    """(H(segmentation | truth), H(truth | segmentation)) in bits."""
    share = pairs.voxels / pairs.voxels.sum()
    split = float((share * np.log2(totals(pairs.first, pairs.voxels) / pairs.voxels)).sum())
    merge = float((share * np.log2(totals(pairs.second, pairs.voxels) / pairs.voxels)).sum())
    return split, merge


def _adapted_rand(pairs: LabelPairs) -> tuple[float, float, float]:
    """(error, precision, recall) over ordered pairs of different voxels."""
    # A group of n voxels has n * (n - 1) such pairs; summed over its cells of m voxels each, that is sum(m * (n - 1)).
    voxels = pairs.voxels.astype(np.float64)
    both = float((voxels * (voxels - 1)).sum())
    in_truth = float((voxels * (totals(pairs.first, pairs.voxels) - 1)).sum())
    in_segmentation = float((voxels * (totals(pairs.second, pairs.voxels) - 1)).sum())
    precision = both / in_segmentation if in_segmentation else 1.0
    recall = both / in_truth if in_truth else 1.0
    together = in_truth + in_segmentation
    return (1.0 - 2.0 * both / together if together else 0.0), precision, recall
