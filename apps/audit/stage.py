"""Stage `audit`: how far montage, alignment and masks of a phantom's tiles are from the truth, section by section.

Measures of quality without ground truth are worth what they say of the true error: here is the true error.  It needs a
phantom, and so nothing else can take its place where the tissue is real.

The action `annotate` does what a person does by hand: it marks the classes of a few sections of the aligned volume, for
the masks to be learnt from.  Those sections are left out where masks are compared with the truth.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from apps.alignment.volume import Paths as AlignmentPaths
from apps.audit.errors import Frame, alignment_errors, mask_confusion, montage_frames, true_planes
from apps.audit.truth import AcquisitionTruth, load_truth
from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.files import write_atomically
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import new_volume, open_volume
from apps.masking.classes import NOT_ANNOTATED, Confusion, Scores
from apps.masking.records import Paths as MaskingPaths
from apps.masking.records import load_record

ERRORS, LABELS = "true_errors.csv", "labels.zarr"
COLUMNS = ("stage", "section", "error", "unit")

Audited = Literal["montage", "alignment", "masking"]


class AuditParameters(Parameters, frozen=True, kw_only=True):
    """Output folders of a phantom and of the stages that worked on its tiles."""

    phantom: Annotated[str, Meta(min_length=1, description="output folder of a phantom with acquisition")]
    montage: Annotated[str, Meta(min_length=1, description="output folder of the montage of its tiles")]
    alignment: Annotated[str | None, Meta(description="output folder of the alignment of that montage")] = None
    masking: Annotated[str | None, Meta(description="output folder of the masks of that alignment")] = None
    output: Annotated[str, Meta(min_length=1, description=f"folder that gets {ERRORS}, or {LABELS}")]
    action: Annotated[
        Literal["compare", "annotate"], Meta(description="compare with the truth; annotate sections for the masks")
    ] = "compare"
    annotated: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...],
        Meta(description="sections to annotate; when comparing, those that the masks were learnt from, left out"),
    ] = ()

    def check(self) -> None:
        if self.alignment is None and (self.masking is not None or self.action == "annotate"):
            raise ParameterError("alignment: masks and annotations lie over an aligned volume; give its output folder")
        if self.action == "annotate" and not self.annotated:
            raise ParameterError("annotated: the action annotate needs the numbers of sections")
        if self.action == "annotate" and self.masking is not None:
            raise ParameterError("masking: is compared with the truth, and this is annotate; leave it out")


class TrueErrors(Result, frozen=True, kw_only=True):
    """The errors of one stage's sections."""

    stage: Annotated[Audited, Meta(description="which stage")]
    sections: Annotated[int, Meta(ge=0, description="sections compared with the truth")]
    rms: Annotated[float | None, Meta(description="root mean square over the sections; null where there are none")]
    worst: Annotated[float | None, Meta(description="the largest of a section")]
    unit: Annotated[str, Meta(description="of both")]


class AuditResult(Result, frozen=True, kw_only=True):
    """What the stages are off by; or the annotations."""

    errors: Annotated[str | None, Meta(description=f"CSV: {', '.join(COLUMNS)}; a row a section of a stage")] = None
    stages: Annotated[tuple[TrueErrors, ...], Meta(description="those that were audited")] = ()
    dice: Annotated[Scores, Meta(description="Dice of each class over the sections; empty without masks")] = (
        msgspec.field(default_factory=dict)
    )
    labels: Annotated[
        str | None, Meta(description="annotate: OME-Zarr volume of classes on the aligned volume's grid, 255 elsewhere")
    ] = None


def run(parameters: AuditParameters, report: Reporter) -> AuditResult:
    """Compare with the truth, or annotate sections.

    montage: root mean square distance of the tiles from their true places, after the shift of the whole section.
    alignment: of points of the tissue from where they lie in the block, after one rigid motion of the whole stack.
    masking: share of the pixels with a wrong class.

    Raises DataError where the phantom has no acquisition, or what is audited was made of something else.
    """
    truth = load_truth(Path(parameters.phantom))
    frames = montage_frames(truth, Path(parameters.montage))
    if not frames:
        raise DataError(f"{parameters.montage}: holds no section of this phantom; give the montage's output folder")
    if parameters.action == "annotate":
        return AuditResult(labels=str(_annotate(parameters, truth, frames, report)))
    return _compare(parameters, truth, frames, report)


def _annotate(parameters: AuditParameters, truth: AcquisitionTruth, frames: dict[int, Frame], report: Reporter) -> Path:
    """Write the true classes of the sections to annotate as LABELS; the others are NOT_ANNOTATED."""
    assert parameters.alignment is not None  # AuditParameters.check
    alignment = Path(parameters.alignment)
    aligned = open_volume(str(AlignmentPaths(alignment).volume))
    left = set(parameters.annotated)
    target, (_, height, width) = Path(parameters.output) / LABELS, aligned.shape
    voxel_size = aligned.voxel_size_nm or (1.0, 1.0, 1.0)
    with new_volume(target, aligned.shape, np.uint8, voxel_size, (1, height, width)) as labels:
        for plane in range(aligned.shape[0]):
            unknown = np.full((1, height, width), NOT_ANNOTATED, np.uint8)
            labels.write(Box.of((plane, 0, 0), (1, height, width)), unknown)
        for true in true_planes(truth, frames, alignment):
            if true.section in left:
                left.remove(true.section)
                labels.write(Box.of((true.plane, 0, 0), (1, height, width)), true.classes[None])
            report(len(parameters.annotated) - len(left), len(parameters.annotated), "annotating")
        if left:
            raise DataError(f"sections {sorted(left)}: the aligned volume does not show them; annotate others")
    return target


def _compare(
    parameters: AuditParameters, truth: AcquisitionTruth, frames: dict[int, Frame], report: Reporter
) -> AuditResult:
    found: dict[Audited, dict[int, float]] = {"montage": {n: frame.error for n, frame in frames.items()}}
    whole = Confusion()
    if parameters.alignment is not None:
        report(1, 3, "alignment")
        found["alignment"] = alignment_errors(truth, frames, Path(parameters.alignment))
    if parameters.alignment is not None and parameters.masking is not None:
        found["masking"] = {}
        masks = open_volume(str(MaskingPaths(Path(parameters.masking)).masks))
        for done, true in enumerate(true_planes(truth, frames, Path(parameters.alignment))):
            report(2 + done / len(frames), 3, "masks")
            made = load_record(MaskingPaths(Path(parameters.masking)).record(true.section)) is not None
            if made and true.section not in parameters.annotated:
                confusion = mask_confusion(true, masks)
                whole.counts += confusion.counts
                found["masking"][true.section] = confusion.wrong()
    file = Path(parameters.output) / ERRORS
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, _table(found).encode())
    report(3, 3, "done")
    return AuditResult(
        errors=str(file),
        stages=tuple(_summary(stage, errors) for stage, errors in found.items()),
        dice=whole.dice() if "masking" in found else {},
    )


def _unit(stage: Audited) -> str:
    return "wrong share" if stage == "masking" else "px"


def _table(found: dict[Audited, dict[int, float]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for stage, errors in found.items():
        table.writerows((stage, section, repr(error), _unit(stage)) for section, error in sorted(errors.items()))
    return text.getvalue()


def _summary(stage: Audited, errors: dict[int, float]) -> TrueErrors:
    values = np.array(list(errors.values()))
    return TrueErrors(
        stage=stage,
        sections=len(values),
        rms=float(np.sqrt(np.mean(values**2))) if len(values) else None,
        worst=float(values.max()) if len(values) else None,
        unit=_unit(stage),
    )


STAGE = Stage(
    name="audit",
    summary="Compare montage, alignment and masks of a phantom's tiles with the truth, section by section.",
    parameters=AuditParameters,
    result=AuditResult,
    run=run,
    example={
        "phantom": "phantom",
        "montage": "montage",
        "alignment": "alignment",
        "masking": "masking",
        "output": "audit",
    },
)
