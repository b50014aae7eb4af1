"""Stage `masking`: blood vessels, cell bodies and what is no tissue are found, so that segmentation can leave them out.

`train` makes a model of annotated sections.  `prepare` makes `masks.zarr`, or lengthens it when the image has grown;
`segment` masks sections, each by itself, so that several jobs can share them; `all` prepares and masks all sections.
A section whose record says that it was made of these pixels by this model is left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from apps.core.errors import ParameterError
from apps.core.parameters import Parameters, Result
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Volume
from apps.masking.classes import Scores
from apps.masking.masker import Masker
from apps.masking.network import flop_per_pixel, parameter_count
from apps.masking.records import Paths, SectionRecord, open_masks, prepare_masks
from apps.masking.sections import open_image
from apps.masking.settings import TrainSettings
from apps.masking.training import train

Action = Literal["all", "train", "prepare", "segment"]


class MaskingParameters(Parameters, frozen=True, kw_only=True):
    """What to mask or to learn from, and which part of the work to do."""

    image: Annotated[str, Meta(min_length=1, description="OME-Zarr or FILE.h5:DATASET; uint8, zyx; 0: nothing there")]
    output: Annotated[str, Meta(min_length=1, description="folder that gets model, or masks.zarr and sections")]
    action: Annotated[
        Action, Meta(description="train a model; prepare masks.zarr; segment sections; all: prepare and segment all")
    ] = "all"
    labels: Annotated[
        str | None,
        Meta(description="train: classes on the image's grid: 0 neuropil, 1 vessel, 2 soma, 3 out, 255 not annotated"),
    ] = None
    training: Annotated[TrainSettings, Meta(description="how a model is trained (only for train)")] = TrainSettings()
    model: Annotated[
        str | None, Meta(description="folder of a trained model; null: `model` in the output folder (not for train)")
    ] = None
    first_section: Annotated[int, Meta(ge=0, description="number of the section that plane 0 shows")] = 0
    sections: Annotated[tuple[int, ...] | None, Meta(description="sections to mask; null: all (only for segment)")] = (
        None
    )
    tile: Annotated[
        int, Meta(ge=32, le=16384, description="pixels along y and x that are masked at once: what memory goes with")
    ] = 1024
    overlap: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="pixels read around a tile; null: all that its answer depends on, so that there is no seam"),
    ] = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of TensorFlow")] = 1

    def check(self) -> None:
        if self.action == "train" and self.labels is None:
            raise ParameterError("labels: the action train needs annotated classes to learn from")
        if self.action != "train" and self.labels is not None:
            raise ParameterError(f"labels: only the action train takes them, and this is {self.action}")
        if self.action == "train" and self.model is not None:
            raise ParameterError("model: the action train makes one, in the output folder; leave it out")
        if self.sections is not None and self.action != "segment":
            raise ParameterError(f"sections: only the action segment takes some of them, and this is {self.action}")


class MaskingResult(Result, frozen=True, kw_only=True):
    """What was done, and where it is; what does not belong to the action is null."""

    action: Annotated[Action, Meta(description="the part of the work that was done")]
    made: Annotated[int, Meta(ge=0, description="sections masked, or models trained, now")]
    kept: Annotated[int, Meta(ge=0, description="those that were there from the same data and parameters")]
    model: Annotated[str | None, Meta(description="folder of the model that was trained or used")] = None
    masks: Annotated[str | None, Meta(description="OME-Zarr volume of classes, uint8")] = None
    sections: Annotated[tuple[SectionRecord, ...], Meta(description="the records of the sections, in order")] = ()
    faults: Annotated[int, Meta(ge=0, description="number of faults in all of them")] = 0
    validation: Annotated[Scores | None, Meta(description="train: Dice of each class in the validation box")] = None
    loss: Annotated[float | None, Meta(description="train: mean over the last quarter of the steps")] = None
    steps: Annotated[int | None, Meta(description="train: optimiser updates done")] = None
    parameters: Annotated[int | None, Meta(description="train: trainable numbers of the network")] = None
    flop_per_pixel: Annotated[float | None, Meta(description="train: operations to mask one pixel of a section")] = None
    megapixels_per_second: Annotated[
        float | None,
        Meta(description="trained on or masked, the network's start not counted; null where all was there"),
    ] = None


def run(parameters: MaskingParameters, report: Reporter) -> MaskingResult:
    """Do the part of the work that `action` names.

    Raises DataError and ParameterError for what is wrong with volumes, model or parameters, before any long work;
    StateError where segment comes before prepare, or another process works on the same; DivergedError in training.
    """
    if parameters.action == "train":
        return _train(parameters, report)
    image, paths = open_image(parameters.image), Paths(Path(parameters.output))
    if parameters.action == "prepare":
        made = prepare_masks(paths, image, parameters.first_section)
        return MaskingResult(action="prepare", made=int(made), kept=int(not made), masks=str(paths.masks))
    if parameters.action == "all":
        prepare_masks(paths, image, parameters.first_section)
    return _segment(parameters, image, paths, report)


def _train(parameters: MaskingParameters, report: Reporter) -> MaskingResult:
    assert parameters.labels is not None  # MaskingParameters.check
    settings, paths = parameters.training, Paths(Path(parameters.output))
    trained = train(parameters.image, parameters.labels, settings, paths, parameters.tile, parameters.threads, report)
    speed = trained.pixels_per_second
    return MaskingResult(
        action="train",
        made=int(speed is not None),
        kept=int(speed is None),
        model=str(paths.model),
        validation=trained.info.validation,
        loss=trained.info.loss,
        steps=trained.info.steps,
        parameters=parameter_count(settings.network),
        flop_per_pixel=flop_per_pixel(settings.network),
        megapixels_per_second=None if speed is None else speed / 1e6,
    )


def _segment(parameters: MaskingParameters, image: Volume, paths: Paths, report: Reporter) -> MaskingResult:
    first, count = parameters.first_section, image.shape[0]
    sections = tuple(range(first, first + count)) if parameters.sections is None else parameters.sections
    outside = [section for section in sections if not first <= section < first + count]
    if outside:
        raise ParameterError(f"sections {outside}: the image shows sections {first} to {first + count - 1}")
    model = paths.model if parameters.model is None else Path(parameters.model)
    masks = open_masks(paths, image, first)
    paths.sections.mkdir(exist_ok=True)
    masker = Masker(image, masks, paths, model, parameters.tile, parameters.overlap, parameters.threads)
    records, made = [], 0
    for done, section in enumerate(sections):
        report(done, len(sections), f"masking section {section}")
        record, new = masker.mask(section, section - first)
        records.append(record)
        made += new
    report(len(sections), len(sections), "done")
    pixels = made * image.shape[1] * image.shape[2] / 1e6
    return MaskingResult(
        action=parameters.action,
        made=made,
        kept=len(sections) - made,
        model=str(model),
        masks=str(paths.masks),
        sections=tuple(records),
        faults=sum(len(record.faults) for record in records),
        megapixels_per_second=pixels / masker.seconds if made else None,
    )


STAGE = Stage(
    name="masking",
    summary="Mask blood vessels, cell bodies and what is no tissue by a U-Net; or train one on annotated sections.",
    parameters=MaskingParameters,
    result=MaskingResult,
    run=run,
    example={
        "image": "phantom/image.zarr",
        "labels": "phantom/masks.zarr",
        "output": "masking",
        "action": "train",
        "training": {"steps": 900, "seed": 1},
        "threads": 2,
    },
)
