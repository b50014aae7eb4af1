"""Evaluation: a segmentation against ground truth, with the trivial answers beside it.

With skeletons of the truth the segmentation's expected run length is scored too, with size classes its splits and
mergers by the size of objects, and with synapses these, their partners, and the wiring that they make.  All boxes, and
places in tables, are in the coordinates of the label volume.  The box is read whole: some 50 bytes of memory a voxel.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Array, Volume, VoxelSize, known_voxel_size, open_volume, same_voxel_size
from apps.evaluation.baselines import (
    Threshold,
    box_of_the_fit,
    fit_threshold,
    nothing,
    one_object,
    segment_by_threshold,
)
from apps.evaluation.edges import WiringScores, match_segments, score_edges
from apps.evaluation.metrics import Scores, score
from apps.evaluation.run_length import RunLength, score_run_length
from apps.evaluation.sizes import SizeClass, count_errors
from apps.evaluation.skeletons import Skeletons, load_skeletons
from apps.evaluation.synapses import SynapseScores, score_synapses
from apps.synapses.table import SynapseTable, read_synapses, sample_labels


class EvaluationParameters(Parameters, frozen=True, kw_only=True):
    """What to compare, and where."""

    segmentation: Annotated[
        str | None, Meta(description="the segmentation, a label volume; none to score the trivial answers alone")
    ] = None
    segmentation_offset: Annotated[Triple, Meta(description="its first voxel in label coordinates, zyx")] = (0, 0, 0)
    labels: Annotated[str, Meta(description="the ground truth, a label volume; voxels with 0 are left out")]
    image: Annotated[str | None, Meta(description="the image of the labels; the threshold baseline needs it")] = None
    box: Annotated[
        Box | None, Meta(description="where to compare, in label coordinates; all of the segmentation by default")
    ] = None
    baselines: Annotated[bool, Meta(description="score the trivial answers too (the threshold one needs `image`)")] = (
        True
    )
    threshold_box: Annotated[
        Box | None,
        Meta(
            description="where the threshold baseline is fitted to the truth; by default the box that it is scored on, "
            "which flatters it"
        ),
    ] = None
    min_size: Annotated[
        int, Meta(ge=0, description="components of the threshold baseline with fewer voxels are left out")
    ] = 1000
    skeletons: Annotated[
        str | None,
        Meta(
            description=".npz of the truth's skeletons (nodes zyx in voxels of the labels, label, edges), for the "
            "expected run length"
        ),
    ] = None
    merge_nodes: Annotated[
        int, Meta(ge=1, description="a skeleton takes part in a merger with so many nodes in a segment, or more")
    ] = 1
    voxel_size_nm: Annotated[
        VoxelSize | None,
        Meta(description="zyx, for run lengths and distances; by default the labels', or else the segmentation's"),
    ] = None
    size_classes: Annotated[
        tuple[Annotated[int, Meta(ge=2)], ...],
        Meta(description="ascending sizes in voxels between which splits and mergers are counted; none: not counted"),
    ] = ()
    part_voxels: Annotated[
        int,
        Meta(ge=1, description="a segment is a part of an object with so many voxels of it, or half of a small one"),
    ] = 100
    synapses: Annotated[
        str | None,
        Meta(
            description="table of the synapses that were found, places in voxels of the labels, partners in ids of the "
            "segmentation"
        ),
    ] = None
    true_synapses: Annotated[
        str | None, Meta(description="table of the true ones, Parquet or CSV; partners are ids of the labels")
    ] = None
    synapse_distance_nm: Annotated[
        float, Meta(gt=0, description="so far apart, at most, are the middles of clefts that are the same synapse")
    ] = 200.0

    def check(self) -> None:
        for name, box in (("box", self.box), ("threshold_box", self.threshold_box)):
            if box is not None and box.empty:
                raise ParameterError(f"{name} {box}: is empty; expected a box with voxels")
        if self.segmentation is None and not self.baselines:
            raise ParameterError("segmentation: is missing and baselines are off; expected something to score")
        if self.threshold_box is not None and self.image is None:
            raise ParameterError("threshold_box: is given without image; give the image that the threshold applies to")
        for name, given in (("skeletons", self.skeletons is not None), ("size_classes", self.size_classes != ())):
            if given and self.segmentation is None:
                raise ParameterError(f"{name}: is given without segmentation; expected something to score")
        if self.voxel_size_nm is not None and not min(self.voxel_size_nm) > 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")
        if (self.synapses is None) != (self.true_synapses is None):
            missing = "synapses" if self.synapses is None else "true_synapses"
            raise ParameterError(f"{missing}: is missing; give the synapses that were found and the true ones")
        if any(a >= b for a, b in pairwise(self.size_classes)):
            raise ParameterError(f"size_classes {self.size_classes}: expected ascending sizes")


class EvaluationResult(Result, frozen=True, kw_only=True):
    """Scores of the segmentation and of the trivial answers in one box."""

    scores: Annotated[Scores | None, Meta(description="of the segmentation; none where none was given")]
    baselines: Annotated[
        dict[str, Scores], Meta(description="of the trivial answers: one_object, nothing, threshold (with an image)")
    ]
    threshold: Annotated[Threshold | None, Meta(description="what the threshold baseline was fitted to")]
    box: Annotated[Box, Meta(description="where they were compared, in label coordinates")]
    run_length: Annotated[
        RunLength | None, Meta(description="of the segmentation; none where no skeletons were given")
    ] = None
    labels_run_length: Annotated[
        RunLength | None,
        Meta(description="of the labels themselves, the best there is: under 1 where nodes lie beside their objects"),
    ] = None
    by_size: Annotated[
        tuple[SizeClass, ...], Meta(description="the segmentation's splits and mergers, for every size class")
    ] = ()
    synapses: Annotated[SynapseScores | None, Meta(description="clefts and partners; none where none were given")] = (
        None
    )
    wiring: Annotated[
        WiringScores | None, Meta(description="the graph of the synapses; none without synapses or segmentation")
    ] = None


def run(parameters: EvaluationParameters, report: Reporter) -> EvaluationResult:
    """Read the box, score the segmentation, and the trivial answers where asked for.

    Raises DataError where a volume is missing or not of labels, segmentation and labels have voxels of different size,
    a box leaves one, the truth is 0 in the box, the skeletons or synapses are not such, the true ones have none there,
    or no volume says how large a voxel is.
    """
    segmentation = _open_labels(parameters.segmentation) if parameters.segmentation is not None else None
    labels = _open_labels(parameters.labels)
    image = open_volume(parameters.image) if parameters.image is not None and parameters.baselines else None
    if image is not None and image.shape != labels.shape:
        raise DataError(f"{image.name}: has the shape {image.shape}; expected that of the labels, {labels.shape}")
    if segmentation is not None:
        _check_same_grid(segmentation, labels)
    covered = segmentation.box.translate(parameters.segmentation_offset) if segmentation else labels.box
    box = parameters.box or covered
    if segmentation is not None and not covered.contains(box):
        raise DataError(f"box {box}: leaves the segmentation {segmentation.name}, which covers {covered}")
    skeletons = _load_skeletons(parameters.skeletons, box) if parameters.skeletons is not None else None
    tables = _load_synapses(parameters, box)
    voxel_size = _voxel_size(parameters, labels, segmentation) if skeletons is not None or tables is not None else None
    fit_box = box_of_the_fit(parameters.threshold_box or box)
    for name, wanted in (("box", box), ("threshold_box", fit_box)):
        if not labels.box.contains(wanted):
            raise DataError(f"{name} {wanted}: leaves the labels {labels.name}, which are {labels.box}")

    report(0, 4, "reading")
    truth = labels.read(box)
    if not truth.any():
        raise DataError(f"{labels.name} in {box}: is 0 everywhere; expected labelled voxels to compare with")
    report(1, 4, "scoring the segmentation")
    oz, oy, ox = parameters.segmentation_offset
    scores, run_length, labels_run_length = None, None, None
    by_size: tuple[SizeClass, ...] = ()
    synapses, wiring = None, None
    if tables is not None and voxel_size is not None:
        ours, theirs = tables
        partners = sample_labels(labels, ours.points)
        synapses = score_synapses(ours, theirs, parameters.synapse_distance_nm, voxel_size, partners)
    if segmentation is not None:
        found = segmentation.read(box.translate((-oz, -oy, -ox)))
        scores = score(truth, found)
        if skeletons is not None and voxel_size is not None:
            run_length, labels_run_length = (
                score_run_length(skeletons, skeletons.sample(volume), voxel_size, parameters.merge_nodes)
                for volume in (found, truth)
            )
        if parameters.size_classes:
            by_size = count_errors(truth, found, parameters.size_classes, parameters.part_voxels)
        if tables is not None:
            wiring = score_edges(tables[0].partners, tables[1].partners, match_segments(truth, found))
        del found
    baselines: dict[str, Scores] = {}
    threshold = None
    if parameters.baselines:
        report(2, 4, "scoring the trivial answers")
        baselines = {"one_object": one_object(truth), "nothing": nothing(truth)}
    if image is not None:
        report(3, 4, "fitting a threshold")
        threshold = _fit(image, labels, fit_box, parameters.min_size)
        answer = segment_by_threshold(image.read(box), threshold, image.voxel_size_nm)
        baselines["threshold"] = score(truth, answer)
    report(4, 4, "done")
    return EvaluationResult(
        scores=scores,
        baselines=baselines,
        threshold=threshold,
        box=box,
        run_length=run_length,
        labels_run_length=labels_run_length,
        by_size=by_size,
        synapses=synapses,
        wiring=wiring,
    )


def _fit(image: Volume, labels: Volume, box: Box, min_size: int) -> Threshold:
    truth: Array = labels.read(box)
    try:
        return fit_threshold(image.read(box), truth, image.voxel_size_nm, min_size)
    except DataError as error:
        raise DataError(f"{labels.name} in threshold_box {box}: {error}") from error


def _load_skeletons(path: str, box: Box) -> Skeletons:
    skeletons = load_skeletons(path).within(box)
    if not len(skeletons.edges):
        raise DataError(f"{path}: has no edge in the box {box}; expected skeletons in voxels of the labels")
    return skeletons


def _load_synapses(parameters: EvaluationParameters, box: Box) -> tuple[SynapseTable, SynapseTable] | None:
    """Those found and the true ones whose clefts have their middle in the box; None where none are asked for."""
    if parameters.synapses is None or parameters.true_synapses is None:
        return None
    found, truth = (read_synapses(path).within(box) for path in (parameters.synapses, parameters.true_synapses))
    if not len(truth):
        raise DataError(f"{parameters.true_synapses}: has no synapse in the box {box}; expected some to compare with")
    return found, truth


def _voxel_size(parameters: EvaluationParameters, labels: Volume, segmentation: Volume | None) -> VoxelSize:
    said = [volume.voxel_size_nm for volume in (labels, segmentation) if volume is not None and volume.voxel_size_nm]
    # What stands for a size that nobody has told is taken where there is no other.
    known = [size for size in said if known_voxel_size(size)]
    size = parameters.voxel_size_nm or next(iter(known + said), None)
    if size is None:
        raise DataError(f"{labels.name}: does not say how large a voxel is; give voxel_size_nm (z, y, x)")
    return size


def _check_same_grid(segmentation: Volume, labels: Volume) -> None:
    ours, theirs = segmentation.voxel_size_nm, labels.voxel_size_nm
    if not same_voxel_size(ours, theirs):
        raise DataError(f"{segmentation.name}: has voxels of {ours} nm; expected those of the labels, {theirs} nm")


def _open_labels(name: str) -> Volume:
    volume = open_volume(name)
    if volume.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {volume.dtype}; expected integer labels")
    return volume


STAGE = Stage(
    name="evaluation",
    summary="Score a segmentation against ground truth, with the trivial answers beside it.",
    parameters=EvaluationParameters,
    result=EvaluationResult,
    run=run,
    example={
        "segmentation": "deployed/segmentation.zarr",
        "segmentation_offset": [0, 64, 64],
        "labels": "data/labels.zarr",
        "image": "data/image.zarr",
        "threshold_box": {"offset": [0, 0, 0], "shape": [64, 64, 64]},
    },
)
