"""Segment subvolumes with a trained FFN.  Killed and run again, it goes on from the last object that was finished."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result, json_hash
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.core.subvolumes import Subvolume
from apps.core.volumes import Volume, absolute_volume, content_hash, open_volume
from apps.ffn.checkpoint import Checkpoint, load_checkpoint, weights_digest
from apps.ffn.flood_log import FloodLog
from apps.ffn.masks import MaskParameters, check_masks
from apps.ffn.segmenter import Segmentation
from apps.ffn.settings import InferenceSettings
from apps.inference.outputs import MaskedVoxels, SubvolumeResult, finished, log_path, store, written_for
from apps.inference.segment import CanvasKind, NetworkSource, Options, check_image, segment_boxes

# HDF5 does not say its voxel size; what is written then says one nanometre a voxel.
_UNKNOWN_VOXEL_SIZE = (1.0, 1.0, 1.0)


class SubvolumeTarget(Parameters, frozen=True, kw_only=True):
    """One subvolume to segment."""

    box: Annotated[Box, Meta(description="what to segment, in voxels of the image: the subvolume's read box")]
    write_box: Annotated[
        Box | None,
        Meta(description="what of it the subvolume owns, for the count of what masks keep out; null: all of it"),
    ] = None
    output: Annotated[str, Meta(description="where the segmentation goes: NAME.zarr; its objects to NAME.parquet")]

    def check(self) -> None:
        if not self.output.endswith(".zarr"):
            raise ParameterError(f"output {self.output!r}: expected a name that ends in .zarr")
        _ = self.subvolume  # which checks its boxes

    @property
    def subvolume(self) -> Subvolume:
        """Its boxes."""
        return Subvolume(read_box=self.box, write_box=self.write_box or self.box)


class InferenceParameters(Parameters, frozen=True, kw_only=True):
    """Parameters of the inference stage."""

    image: Annotated[str, Meta(description="image volume, uint8: NAME.zarr or FILE.h5:DATASET")]
    model: Annotated[str, Meta(description="checkpoint folder, or prefix of a google/ffn checkpoint")]
    subvolumes: Annotated[
        tuple[SubvolumeTarget, ...], Meta(min_length=1, description="boxes to segment, each with its output")
    ]
    settings: Annotated[InferenceSettings, Meta(description="mode, thresholds and limits of flood filling")] = (
        InferenceSettings()
    )
    masks: Annotated[
        tuple[MaskParameters, ...], Meta(description="volumes that say where no object may be (vessels, no tissue)")
    ] = ()
    probability: Annotated[bool, Meta(description="also keep the probability of objects' voxels, in 255ths")] = False
    canvas: Annotated[
        CanvasKind, Meta(description="where object maps are kept: host, device (TensorFlow's), auto: device on a GPU")
    ] = "auto"
    batch: Annotated[int, Meta(ge=1, le=4096, description="fields of view a call of the network, on the device")] = 64
    fov: Annotated[Triple | None, Meta(description="field of view zyx; null: the model's, 33 for google/ffn")] = None
    deltas: Annotated[Triple | None, Meta(description="deltas zyx; null: the model's, 8 for google/ffn")] = None
    image_mean: Annotated[float | None, Meta(description="null: the model's; google/ffn's hold none")] = None
    image_std: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="null: the model's; google/ffn's hold none")
    ] = None
    threads: Annotated[int, Meta(ge=1, le=1024, description="threads of the network's backend")] = 1

    def check(self) -> None:
        outputs = [Path(target.output) for target in self.subvolumes]
        written = [path for output in outputs for path in written_for(output, self.probability)]
        if len({path.absolute() for path in written}) < len(written):
            raise ParameterError(f"subvolumes: two of them write the same file, of {', '.join(map(str, outputs))}")


class InferenceResult(Result, frozen=True, kw_only=True):
    """Result of the inference stage: each subvolume, and the sums over them."""

    subvolumes: Annotated[tuple[SubvolumeResult, ...], Meta(description="in the order of the parameters")]
    objects: Annotated[int, Meta(description="objects of all subvolumes")]
    voxels: Annotated[int, Meta(description="voxels in objects")]
    steps: Annotated[int, Meta(description="fields of view that the network looked at")]
    wasted_steps: Annotated[int, Meta(description="those of them in seeds that gave no object")]
    rejected: Annotated[int, Meta(description="seeds whose object was too weak or too small")]
    truncated: Annotated[bool, Meta(description="whether the bound on steps ended one of the segmentations")]
    without_look: Annotated[int, Meta(description="subvolumes with nothing to look at: they needed no network")]
    masked_read: Annotated[
        MaskedVoxels, Meta(description="what the masks kept out of the boxes; where boxes overlap it counts again")
    ]
    masked_write: Annotated[MaskedVoxels, Meta(description="what they kept out of the write boxes")]
    seed_seconds: Annotated[float, Meta(description="seconds in the seed policy")]
    model_seconds: Annotated[float, Meta(description="seconds in the network")]
    other_seconds: Annotated[float, Meta(description="seconds of flood filling outside of the network")]
    voxels_per_second: Annotated[float, Meta(description="voxels of the boxes per second of seeds and flood filling")]


def run(parameters: InferenceParameters, report: Reporter) -> InferenceResult:
    """Segment the subvolumes, those excepted that an earlier run of the same parameters has finished.

    The network starts when there is something to look at: never, where masks leave no place for a seed.

    Raises DataError and ParameterError, before any long work, where image, box, mask, model or output cannot work.
    """
    image = open_volume(parameters.image)
    checkpoint = load_checkpoint(parameters.model, parameters.fov, parameters.deltas)
    normalisation = checkpoint.normalisation(parameters.image_mean, parameters.image_std)
    for target in parameters.subvolumes:
        check_image(image, target.box, checkpoint.model)
    check_masks(parameters.masks, image)
    _check_outputs(parameters)
    identities = [_identity(parameters, target, image, checkpoint) for target in parameters.subvolumes]
    outputs = [Path(target.output) for target in parameters.subvolumes]
    done = {number: known for number, output in enumerate(outputs) if (known := finished(output, identities[number]))}
    todo = [number for number in range(len(outputs)) if number not in done]
    for number in done:
        log_path(outputs[number]).unlink(missing_ok=True)  # where a kill came after the summary
    for number in todo:
        _make_folder(outputs[number].parent)
    logs: dict[int, FloodLog] = {}  # of the subvolumes in work; all at once would be more files than a process may open

    def open_log(place: int) -> FloodLog:
        number = todo[place]
        log = logs[place] = FloodLog(log_path(outputs[number]), identities[number])
        return log

    def keep(place: int, found: Segmentation) -> None:
        number = todo[place]
        target, voxel_size = parameters.subvolumes[number], image.voxel_size_nm or _UNKNOWN_VOXEL_SIZE
        done[number] = store(outputs[number], target.subvolume, found, voxel_size, identities[number])
        logs.pop(place).remove()

    if todo:
        source = NetworkSource.of(checkpoint, parameters.settings, parameters.threads)
        options = Options(
            masks=parameters.masks,
            probability=parameters.probability,
            canvas=parameters.canvas,
            batch=parameters.batch,
        )
        boxes = [parameters.subvolumes[number].box for number in todo]
        segment_boxes(source, image, boxes, normalisation, parameters.settings, options, keep, report, open_log)
    return _sum(parameters, [done[number] for number in range(len(outputs))])


def _check_outputs(parameters: InferenceParameters) -> None:
    """Raise DataError where an output would take the place of an input, or of what is no volume."""
    inputs = {
        _place(name) for name in (parameters.image, parameters.model, *(mask.volume for mask in parameters.masks))
    }
    for target in parameters.subvolumes:
        if _place(target.output) in inputs:
            raise DataError(f"{target.output}: is an input of the segmentation; give another output")
        if Path(target.output).exists() and not Path(target.output).is_dir():
            raise DataError(f"{target.output}: is a file, and no volume to replace; give another output")


def _place(name: str) -> Path:
    return Path(absolute_volume(name)).resolve()


def _identity(parameters: InferenceParameters, target: SubvolumeTarget, image: Volume, checkpoint: Checkpoint) -> str:
    """Hash of all that the segmentation of one subvolume depends on: parameters, voxels, weights and code."""
    chosen = {
        name: value
        for name, value in parameters.to_dict().items()
        if name not in ("subvolumes", "image", "model", "masks", "threads")
    }
    masks = [
        [mask.to_dict() | {"volume": content_hash(open_volume(mask.volume), target.box)}] for mask in parameters.masks
    ]
    return json_hash(
        [
            chosen,
            masks,
            target.to_dict(),
            content_hash(image, target.box),
            image.voxel_size_nm,
            checkpoint.model.to_dict(),
            checkpoint.normalisation(parameters.image_mean, parameters.image_std),
            weights_digest(checkpoint.weights),
            code_version(),
        ]
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); give a writable place") from error


def _sum(parameters: InferenceParameters, parts: list[SubvolumeResult]) -> InferenceResult:
    size = sum(target.box.size for target in parameters.subvolumes)
    seconds = sum(part.seed_seconds + part.model_seconds + part.other_seconds for part in parts)
    return InferenceResult(
        subvolumes=tuple(parts),
        objects=sum(part.objects for part in parts),
        voxels=sum(part.voxels for part in parts),
        steps=sum(part.steps for part in parts),
        wasted_steps=sum(part.wasted_steps for part in parts),
        rejected=sum(part.rejected for part in parts),
        truncated=any(part.truncated for part in parts),
        without_look=sum(part.steps == 0 for part in parts),
        masked_read=MaskedVoxels.total(part.masked_read for part in parts),
        masked_write=MaskedVoxels.total(part.masked_write for part in parts),
        seed_seconds=sum(part.seed_seconds for part in parts),
        model_seconds=sum(part.model_seconds for part in parts),
        other_seconds=sum(part.other_seconds for part in parts),
        voxels_per_second=size / seconds if seconds else 0.0,
    )


STAGE = Stage(
    name="inference",
    summary="Segment subvolumes with a trained flood-filling network; run again after a kill, it goes on.",
    parameters=InferenceParameters,
    result=InferenceResult,
    run=run,
    example={
        "image": "volume/image.zarr",
        "model": "training/checkpoint",
        "subvolumes": [{"box": {"offset": [0, 0, 0], "shape": [64, 128, 128]}, "output": "segmentation/box.zarr"}],
        "settings": {"mode": "fast", "min_size": 500},
        "threads": 1,
    },
)
