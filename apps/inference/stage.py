"""Segment subvolumes with a trained FFN.  Killed and run again, it goes on from the last object that was finished.

The subvolumes are a list of boxes, or those of a grid, whose pieces go to `piece_path(output, number)`: all of them, a
part, or some numbers.  Several jobs share a grid; the bytes of a piece do not depend on which job makes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import make_folder
from apps.core.parameters import Parameters, Result, json_hash
from apps.core.parts import Part, Phase, share
from apps.core.progress import Reporter
from apps.core.stage import Stage, code_version
from apps.core.subvolumes import Subvolume, SubvolumeGrid, piece_path
from apps.core.volumes import UNKNOWN_VOXEL_SIZE, Volume, absolute_volume, content_hash, open_volume
from apps.ffn.applicability import check_overlap
from apps.ffn.checkpoint import Checkpoint, weights_digest
from apps.ffn.flood_log import FloodLog
from apps.ffn.masks import check_masks, read_masks
from apps.ffn.segmenter import Segmentation
from apps.inference.excluded import ExcludedTiles, digest, digest_of_all
from apps.inference.outputs import MaskedVoxels, SubvolumeResult, finished, log_path, store, store_empty, written_for
from apps.inference.parameters import FloodingParameters
from apps.inference.segment import (
    NetworkSource,
    Options,
    check_image,
    leaves_room,
    segment_boxes,
)

# Subvolumes that are looked after at a time: more than any device takes in one batch, and a bound on memory.
_WINDOW = 256


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


class InferenceParameters(FloodingParameters, frozen=True, kw_only=True):
    """Parameters of the inference stage."""

    subvolumes: Annotated[
        tuple[SubvolumeTarget, ...], Meta(description="boxes to segment, each with its output; or give a grid")
    ] = ()
    grid: Annotated[
        SubvolumeGrid | None, Meta(description="instead of a list: the subvolumes of a grid, by their read boxes")
    ] = None
    output: Annotated[
        str | None, Meta(description="grid: folder of the pieces; subvolume 12345 is 000/012/000012345.zarr in it")
    ] = None
    part: Annotated[Part | None, Meta(description="grid: this job's share of the subvolumes; null: all of them")] = None
    numbers: Annotated[
        tuple[Annotated[int, Meta(ge=0)], ...] | None,
        Meta(description="grid: the numbers of the subvolumes to segment, in this order, instead of a part"),
    ] = None
    probability: Annotated[bool, Meta(description="also keep the probability of objects' voxels, in 255ths")] = False

    def check(self) -> None:
        if (self.grid is None) == (not self.subvolumes):
            raise ParameterError("subvolumes, grid: expected one of them, a list with boxes or a grid")
        if self.grid is None:
            if self.output is not None or self.part is not None or self.numbers is not None:
                raise ParameterError(
                    "output, part, numbers: belong to a grid; expected none beside a list of subvolumes"
                )
            self._check_outputs()
            return
        if self.output is None:
            raise ParameterError("output: is missing; expected the folder that the grid's pieces go to")
        if self.part is not None and self.numbers is not None:
            raise ParameterError("part, numbers: expected one of them at most")
        wrong = [number for number in self.numbers or () if number >= len(self.grid)]
        if wrong:
            raise ParameterError(f"numbers: {wrong[0]} is no subvolume; the grid has 0 to {len(self.grid) - 1}")
        if len(set(self.numbers or ())) < len(self.numbers or ()):
            raise ParameterError("numbers: one is given twice; expected each subvolume once")

    def _check_outputs(self) -> None:
        outputs = [Path(target.output) for target in self.subvolumes]
        written = [path for output in outputs for path in written_for(output, self.probability)]
        if len({path.absolute() for path in written}) < len(written):
            raise ParameterError(f"subvolumes: two of them write the same file, of {', '.join(map(str, outputs))}")

    @property
    def places(self) -> Sequence[int]:
        """What to do: places in the list, or numbers in the grid."""
        if self.grid is None:
            return range(len(self.subvolumes))
        return share(len(self.grid), self.part) if self.numbers is None else self.numbers

    def target(self, place: int) -> SubvolumeTarget:
        """The subvolume of one of the `places`."""
        if self.grid is None:
            return self.subvolumes[place]
        boxes = self.grid.subvolume(place)
        output = str(piece_path(str(self.output), place))
        return SubvolumeTarget(box=boxes.read_box, write_box=boxes.write_box, output=output)

    @property
    def complete(self) -> bool:
        """Whether what is to be done is all there is; a share of a grid is not."""
        return self.grid is None or (self.part is None and self.numbers is None)


class InferenceResult(Result, frozen=True, kw_only=True):
    """Result of the inference stage: the sums over its subvolumes, and each of a list."""

    subvolumes: Annotated[
        tuple[SubvolumeResult, ...],
        Meta(description="in the order of the parameters' list; those of a grid are in their pieces' summaries"),
    ]
    pieces: Annotated[str | None, Meta(description="folder of a grid's pieces; null for a list")]
    count: Annotated[int, Meta(description="subvolumes of the list, the part or the numbers, which are all there")]
    complete: Annotated[bool, Meta(description="whether these are all subvolumes: of a list, or of the whole grid")]
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


_OF_EACH = ("objects", "voxels", "steps", "wasted_steps", "rejected")
_COUNTS = (*_OF_EACH, "count", "without_look")
_SECONDS = ("seed_seconds", "model_seconds", "other_seconds")


@dataclass
class _Sums:
    """The sums over finished subvolumes; each of them is kept only for a list."""

    keep: bool
    parts: dict[int, SubvolumeResult] = field(default_factory=dict)
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, place: int, part: SubvolumeResult) -> None:
        if self.keep:
            self.parts[place] = part
        counted = {name: getattr(part, name) for name in (*_OF_EACH, *_SECONDS)} | {
            "count": 1,
            "without_look": part.steps == 0,
            "truncated": part.truncated,
            "read": part.masked_read.voxels,
            "read_excluded": part.masked_read.excluded,
            "write": part.masked_write.voxels,
            "write_excluded": part.masked_write.excluded,
        }
        for name, value in counted.items():
            self.counts[name] += value

    def result(self, parameters: InferenceParameters) -> InferenceResult:
        counts: dict[str, Any] = {name: int(self.counts[name]) for name in _COUNTS}
        seconds: dict[str, Any] = {name: float(self.counts[name]) for name in _SECONDS}
        spent = sum(seconds.values())
        return InferenceResult(
            subvolumes=tuple(self.parts[place] for place in sorted(self.parts)),
            pieces=parameters.output,
            complete=parameters.complete,
            truncated=self.counts["truncated"] > 0,
            masked_read=MaskedVoxels.of(int(self.counts["read"]), int(self.counts["read_excluded"])),
            masked_write=MaskedVoxels.of(int(self.counts["write"]), int(self.counts["write_excluded"])),
            voxels_per_second=self.counts["read"] / spent if spent else 0.0,
            **counts,
            **seconds,
        )


def run(parameters: InferenceParameters, report: Reporter) -> InferenceResult:
    """Segment the subvolumes, those excepted that an earlier run of the same parameters has finished.

    The network starts when there is something to look at: never, where masks leave no place for a seed.

    Raises DataError and ParameterError, before any long work, where image, box, mask, model or output cannot work.
    """
    image = open_volume(parameters.image)
    checkpoint = parameters.load_checkpoint()
    normalisation = parameters.normalisation(checkpoint)
    parameters.check_voxel_size(checkpoint, image.voxel_size_nm)
    _check_boxes(parameters, image, checkpoint)
    check_masks(parameters.masks, image)
    _check_outputs(parameters)
    common = _common_identity(parameters, image, checkpoint)
    source = NetworkSource.of(checkpoint, parameters.settings, parameters.threads)
    source = NetworkSource(source.model, source.threads, cache(source.start))
    options = Options(
        masks=parameters.masks,
        probability=parameters.probability,
        canvas=parameters.canvas,
        batch=parameters.batch,
    )
    sums, places = _Sums(keep=parameters.grid is None), parameters.places
    tiles = ExcludedTiles(parameters.masks, image.box)
    voxel_size = image.voxel_size_nm or UNKNOWN_VOXEL_SIZE

    def work_off(window: Sequence[int], before: int) -> None:
        todo: list[tuple[int, SubvolumeTarget, str]] = []
        for number, place in enumerate(window):
            target = parameters.target(place)
            _check_kind(target)
            output, wholly_excluded = Path(target.output), tiles.hold(target.box)
            identity = _identity(parameters, target, image, checkpoint, common, wholly_excluded)
            known = finished(output, identity)
            if known is None and wholly_excluded and not parameters.probability:
                make_folder(output.parent)
                log = FloodLog(log_path(output), identity)  # which two processes cannot have at once
                try:
                    known = store_empty(output, target.subvolume, voxel_size, identity)
                finally:
                    log.remove()
                report(before + number + 1 - len(todo), len(places), "segmenting")
            if known is None:
                todo.append((place, target, identity))
            else:
                log_path(output).unlink(missing_ok=True)  # where a kill came after the summary
                sums.add(place, known)
        for folder in {Path(target.output).parent for _, target, _ in todo}:
            make_folder(folder)
        logs: dict[int, FloodLog] = {}  # of the subvolumes in work: all at once would be more files than may be open

        def open_log(number: int) -> FloodLog:
            _, target, identity = todo[number]
            log = logs[number] = FloodLog(log_path(Path(target.output)), identity)
            return log

        def keep(number: int, found: Segmentation) -> None:
            place, target, identity = todo[number]
            sums.add(place, store(Path(target.output), target.subvolume, found, voxel_size, identity))
            logs.pop(number).remove()

        def tell(done: float, total: float, what: str = "") -> None:
            known = before + len(window) - len(todo)
            report(known + done, len(places), what)

        if todo:
            boxes = [target.box for _, target, _ in todo]
            try:
                segment_boxes(source, image, boxes, normalisation, parameters.settings, options, keep, tell, open_log)
            finally:
                for log in logs.values():
                    log.close()

    for first in range(0, len(places), _WINDOW):
        work_off(places[first : first + _WINDOW], first)
    report(len(places), len(places), "done")
    return sums.result(parameters)


def _check_boxes(parameters: InferenceParameters, image: Volume, checkpoint: Checkpoint) -> None:
    """Raise DataError where the image does not hold a box, or one is smaller than the field of view.

    Raises ParameterError where subvolumes of a grid overlap by less than the field of view needs.
    """
    for target in parameters.subvolumes:
        check_image(image, target.box, checkpoint.model)
    if parameters.grid is not None:
        bounds = parameters.grid.bounds or parameters.grid.box
        check_image(image, bounds, checkpoint.model)
        check_image(image, Box.of(bounds.offset, _smallest_read(parameters.grid)), checkpoint.model)
        check_overlap(parameters.grid, checkpoint.model.fov)


def _smallest_read(grid: SubvolumeGrid) -> Triple:
    """Extent zyx that every read box has at least."""
    _, rows, columns = grid.counts
    extents = []
    for axis, stride in enumerate((rows * columns, columns, 1)):
        along = (grid.subvolume(place * stride).read_box for place in range(grid.counts[axis]))
        extents.append(min(box.shape[axis] for box in along))
    return extents[0], extents[1], extents[2]


def _check_outputs(parameters: InferenceParameters) -> None:
    """Raise DataError where an output would take the place of an input, or of what is no volume."""
    inputs = [
        _place(name) for name in (parameters.image, parameters.model, *(mask.volume for mask in parameters.masks))
    ]
    if parameters.output is not None:
        folder = _place(parameters.output)
        if any(folder == path or folder in path.parents for path in inputs):
            raise DataError(f"{parameters.output}: holds an input of the segmentation; give another output")
    for target in parameters.subvolumes:
        if _place(target.output) in inputs:
            raise DataError(f"{target.output}: is an input of the segmentation; give another output")
        _check_kind(target)


def _check_kind(target: SubvolumeTarget) -> None:
    if Path(target.output).exists() and not Path(target.output).is_dir():
        raise DataError(f"{target.output}: is a file, and no volume to replace; give another output")


def _place(name: str) -> Path:
    return Path(absolute_volume(name)).resolve()


def _common_identity(parameters: InferenceParameters, image: Volume, checkpoint: Checkpoint) -> str:
    """Hash of what the segmentation of every subvolume depends on, but for the voxels: parameters, weights, code."""
    chosen = {name: value for name, value in parameters.to_dict().items() if name not in _NOT_OF_A_SUBVOLUME}
    return json_hash(
        [
            chosen,
            image.voxel_size_nm,
            checkpoint.model.to_dict(),
            parameters.normalisation(checkpoint),
            weights_digest(checkpoint.weights),
            code_version(),
        ]
    )


_NOT_OF_A_SUBVOLUME = (
    *("subvolumes", "grid", "output", "part", "numbers", "image", "model", "masks", "threads", "any_voxel_size"),
)


def _identity(
    parameters: InferenceParameters,
    target: SubvolumeTarget,
    image: Volume,
    checkpoint: Checkpoint,
    common: str,
    wholly_excluded: bool,
) -> str:
    """Hash of all that the segmentation of one subvolume depends on.

    Where masks leave no place for a seed, the image is not of that, and not read.  Nor are the masks of one that is
    known to be `wholly_excluded`.
    """
    if wholly_excluded:
        return json_hash([common, digest_of_all(target.box.size), target.to_dict(), None])
    excluded = read_masks(parameters.masks, target.box)
    masks = None if excluded is None else digest(excluded)
    looked_at = excluded is None or leaves_room(excluded, checkpoint.model)
    return json_hash([common, masks, target.to_dict(), content_hash(image, target.box) if looked_at else None])


STAGE = Stage(
    name="inference",
    summary="Segment subvolumes with a trained flood-filling network; run again after a kill, it goes on.",
    parameters=InferenceParameters,
    result=InferenceResult,
    run=run,
    example={
        "image": "volume/image.zarr",
        "model": "training/checkpoint",
        "grid": {
            "box": {"offset": [0, 0, 0], "shape": [256, 512, 512]},
            "shape": [64, 128, 128],
            "overlap": [32, 32, 32],
        },
        "output": "segmentation/pieces",
        "part": {"index": 0, "of": 8},
        "settings": {"mode": "fast", "min_size": 500},
        "threads": 1,
    },
    phases=(Phase(shared=True), Phase()),
)
