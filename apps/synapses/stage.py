"""Stage `synapses`: where one neurite gives to another, found by a 3-D U-Net.

`train` makes a model of annotated clefts (and clouds of vesicles, by which the direction is told).  `detect` gives
every voxel its probability, tile by tile; `join` puts the clefts of all tiles together; `assign` looks up the partners
of each in a segmentation; `finish` writes the table.  `all` is these four; `detect` and `assign` can be shared by jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError, StateError
from apps.core.parameters import Parameters, Result
from apps.core.parts import Part, Phase
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Volume, VoxelSize, known_voxel_size, open_volume, same_voxel_size
from apps.synapses.assigning import PartnerWork
from apps.synapses.images import open_image
from apps.synapses.model import Model, check_voxel_size, load_model
from apps.synapses.partners import Reach
from apps.synapses.records import Paths, hold
from apps.synapses.settings import TrainSettings
from apps.synapses.tiles import TileWork
from apps.synapses.training import train

Action = Literal["all", "train", "detect", "join", "assign", "finish"]

_PHASES = (Phase("detect", shared=True), Phase("join"), Phase("assign", shared=True), Phase("finish"))
_SHARED = tuple(phase.action for phase in _PHASES if phase.shared)
_LOOKING_UP = ("all", "assign", "finish")


class SynapseParameters(Parameters, frozen=True, kw_only=True):
    """What to look for synapses in, or to learn from, and which part of the work to do."""

    image: Annotated[str, Meta(min_length=1, description="OME-Zarr or FILE.h5:DATASET, zyx; 0: nothing there")]
    output: Annotated[str, Meta(min_length=1, description="folder of model, or of clefts.zarr and synapses.parquet")]
    action: Annotated[
        Action,
        Meta(description="train a model; detect clefts; join them; assign partners; finish the table; all: these four"),
    ] = "all"
    clefts: Annotated[
        str | None, Meta(description="train: labels on the image's grid, 0 where there is no synaptic cleft")
    ] = None
    vesicles: Annotated[
        str | None,
        Meta(description="train: labels on the image's grid, 0 where there is no cloud of synaptic vesicles"),
    ] = None
    training: Annotated[TrainSettings, Meta(description="how a model is trained (only for train)")] = TrainSettings()
    model: Annotated[
        str | None, Meta(description="folder of a trained model; null: `model` in the output folder (not for train)")
    ] = None
    any_voxel_size: Annotated[
        bool, Meta(description="take an image whose voxels are not as long as those that the model was trained on")
    ] = False
    segmentation: Annotated[
        str | None, Meta(description="label volume in which partners are looked up (for all, assign and finish)")
    ] = None
    segmentation_offset: Annotated[
        Triple, Meta(description="first voxel of the segmentation in the image, zyx; outside of it is no partner")
    ] = (0, 0, 0)
    threshold: Annotated[
        float, Meta(gt=0, le=1, description="probability from which on a voxel is a part of a cleft")
    ] = 0.8
    min_voxels: Annotated[int, Meta(ge=1, description="clefts of fewer voxels are left out")] = 150
    max_voxels: Annotated[int, Meta(ge=1, description="clefts of more voxels are no clefts, and left out")] = 100_000
    contact_nm: Annotated[
        float, Meta(gt=0, le=1000, description="distance from a cleft within which a segment touches it")
    ] = 60.0
    vesicles_nm: Annotated[
        float, Meta(gt=0, le=2000, description="distance from a cleft within which its vesicles lie")
    ] = 200.0
    tile: Annotated[
        Triple, Meta(description="voxels that are worked on at once, zyx: what memory goes with; 16 to 512, in 16s")
    ] = (128, 128, 128)
    overlap: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="voxels read around a tile; null: all that its answer depends on, so that there is no seam"),
    ] = 16
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of TensorFlow")] = 1
    part: Annotated[
        Part | None, Meta(description="this job's share of detect or assign, of several jobs; null: all of it")
    ] = None

    def check(self) -> None:
        if self.action == "train":
            if self.clefts is None:
                raise ParameterError("clefts: the action train needs annotated clefts to learn from")
            if self.model is not None:
                raise ParameterError("model: the action train makes one, in the output folder; leave it out")
        elif self.clefts is not None or self.vesicles is not None:
            raise ParameterError(f"clefts, vesicles: only the action train takes them, and this is {self.action}")
        if self.action in _LOOKING_UP and self.segmentation is None:
            raise ParameterError(f"segmentation: is missing; the action {self.action} looks partners up in it")
        if self.part is not None and self.action not in _SHARED:
            raise ParameterError(f"part: only {' and '.join(_SHARED)} can be shared, and this is {self.action}")
        if any(not 16 <= extent <= 512 or extent % 16 for extent in self.tile):
            raise ParameterError(f"tile {self.tile}: expected multiples of 16, from 16 to 512")
        if self.min_voxels > self.max_voxels:
            raise ParameterError(f"min_voxels {self.min_voxels}: is more than max_voxels {self.max_voxels}")


class SynapseResult(Result, frozen=True, kw_only=True):
    """What was done, and where it is; what does not belong to the action is null."""

    action: Annotated[Action, Meta(description="the part of the work that was done")]
    complete: Annotated[bool, Meta(description="whether the model (train) or the table of synapses is there now")]
    made: Annotated[int, Meta(ge=0, description="models, tiles and batches of clefts that were done now")]
    model: Annotated[str, Meta(description="folder of the model that was trained or used")]
    clefts: Annotated[str | None, Meta(description="OME-Zarr volume, uint8: probability of a cleft, 255: 1")] = None
    vesicles: Annotated[str | None, Meta(description="the same of vesicles; null: the model does not tell")] = None
    synapses: Annotated[str | None, Meta(description="Parquet table of the synapses")] = None
    count: Annotated[int | None, Meta(description="synapses in it; of join, clefts")] = None
    too_large: Annotated[int | None, Meta(description="what was no cleft because it had more than max_voxels")] = None
    without_partner: Annotated[int | None, Meta(description="synapses of which one partner or both are unknown")] = None
    validation: Annotated[
        dict[str, float | None] | None, Meta(description="train: Dice of each output in the validation box")
    ] = None
    loss: Annotated[float | None, Meta(description="train: mean over the last quarter of the steps")] = None
    voxels_per_second: Annotated[
        float | None, Meta(description="train: voxels of the examples; null where the model was there")
    ] = None


def run(parameters: SynapseParameters, report: Reporter) -> SynapseResult:
    """Do the part of the work that `action` names; what is there from the same data and parameters is kept.

    Raises DataError and ParameterError for what is wrong with volumes, model or parameters, before any long work;
    StateError where an action comes before the one that it needs, or another process works on the same; DivergedError
    in training.
    """
    if parameters.action == "train":
        return _train(parameters, report)
    image, paths = open_image(parameters.image), Paths(Path(parameters.output))
    folder = paths.model if parameters.model is None else Path(parameters.model)
    model = load_model(folder)
    if not parameters.any_voxel_size:
        check_voxel_size(model.info, image)
    if any(extent % unit for extent, unit in zip(parameters.tile, model.info.network.unit, strict=True)):
        raise ParameterError(f"tile {parameters.tile}: expected multiples of {model.info.network.unit} for this model")
    segmentation = None
    if parameters.segmentation is not None and parameters.action in _LOOKING_UP:
        segmentation = open_volume(parameters.segmentation)
        _check_segmentation(segmentation, parameters.segmentation_offset, image)
        _voxel_size(image, segmentation)
    with hold(paths, alone=parameters.part is None):
        try:
            return _find(parameters, image, segmentation, model, folder, paths, report)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{paths.output}: cannot be written ({why}); give a place with more room") from error


def _train(parameters: SynapseParameters, report: Reporter) -> SynapseResult:
    paths = Paths(Path(parameters.output))
    clefts = cast(str, parameters.clefts)  # SynapseParameters.check
    trained = train(
        parameters.image,
        clefts,
        parameters.vesicles,
        parameters.training,
        paths.output,
        parameters.threads,
        report,
    )
    return SynapseResult(
        action="train",
        complete=True,
        made=int(trained.voxels_per_second is not None),
        model=str(paths.model),
        validation=trained.info.validation,
        loss=trained.info.loss,
        voxels_per_second=trained.voxels_per_second,
    )


def _find(
    parameters: SynapseParameters,
    image: Volume,
    segmentation: Volume | None,
    model: Model,
    folder: Path,
    paths: Paths,
    report: Reporter,
) -> SynapseResult:
    """The actions other than train."""
    action, made = parameters.action, 0
    count, too_large, alone, table = None, None, None, None
    if action in ("all", "detect", "join"):
        tile, overlap = parameters.tile, parameters.overlap
        tiles = TileWork(image, model, paths, tile, overlap, parameters.threshold, parameters.threads)
        if action != "join":
            made += tiles.detect(parameters.part, report)
        if action != "detect":
            count, too_large = tiles.join(parameters.min_voxels, parameters.max_voxels, report)
    if segmentation is not None:
        work = _partners(parameters, segmentation, _voxel_size(image, segmentation), model, paths)
        if action != "finish":
            made += work.assign(parameters.part, report)
        if action != "assign":
            table = work.finish()
            alone = int((table.partners == 0).any(axis=1).sum())
        count, too_large = len(work.components), work.too_large
    told = "vesicles" in model.info.outputs
    return SynapseResult(
        action=action,
        complete=table is not None,
        made=made,
        model=str(folder),
        clefts=str(paths.volume("cleft")),
        vesicles=str(paths.volume("vesicles")) if told else None,
        synapses=str(paths.table) if table is not None else None,
        count=count,
        too_large=too_large,
        without_partner=alone,
    )


def _partners(
    parameters: SynapseParameters, segmentation: Volume, voxel_size_nm: VoxelSize, model: Model, paths: Paths
) -> PartnerWork:
    names = [paths.volume(output) for output in model.info.outputs]
    for name in names:
        if not name.is_dir():
            raise StateError(f"{name}: is not there; run the action detect first")
    clefts, *others = (open_volume(str(name)) for name in names)
    return PartnerWork(
        clefts,
        others[0] if others else None,
        segmentation,
        parameters.segmentation_offset,
        voxel_size_nm,
        parameters.threshold,
        Reach(contact=parameters.contact_nm, vesicles=parameters.vesicles_nm),
        paths,
    )


def _check_segmentation(segmentation: Volume, offset: Triple, image: Volume) -> None:
    if segmentation.dtype.kind not in "ui":
        raise DataError(f"{segmentation.name}: has dtype {segmentation.dtype}; expected a segmentation of integers")
    covered = segmentation.box.translate(offset)
    if covered.intersection(image.box).empty:
        raise DataError(f"{segmentation.name}: covers {covered}, nothing of the image, which is {image.box}")
    ours, theirs = image.voxel_size_nm, segmentation.voxel_size_nm
    if not same_voxel_size(ours, theirs):
        raise DataError(f"{segmentation.name}: has voxels of {theirs} nm; expected those of the image, {ours} nm")


def _voxel_size(image: Volume, segmentation: Volume) -> VoxelSize:
    """That of the grid that both lie on: how far `contact_nm` and `vesicles_nm` reach goes by it."""
    size = known_voxel_size(image.voxel_size_nm) or known_voxel_size(segmentation.voxel_size_nm)
    if size is None:
        raise DataError(
            f"{image.name}: does not say how large a voxel is, and neither does {segmentation.name}; partners are "
            "looked for within nanometres, so make one OME-Zarr with its voxel size, with the stage ingest"
        )
    return size


STAGE = Stage(
    name="synapses",
    summary="Find synapses with a 3-D U-Net, and their partners in a segmentation; or train one on annotated clefts.",
    parameters=SynapseParameters,
    result=SynapseResult,
    run=run,
    example={
        "image": "data/image.zarr",
        "output": "synapses",
        "model": "trained/model",
        "segmentation": "deployed/segmentation.zarr",
    },
    phases=_PHASES,
)
