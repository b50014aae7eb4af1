"""Stage `precomputed`: a volume and its coarser levels as neuroglancer precomputed, which other tools read too.

Plan: the levels, each cut into pieces of whole chunks (levels.py).  Do: pieces, in any order; CloudVolume writes them.
Collect: when every piece is recorded, the folder gets its name (apps/morphology/place.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters, Result, write_json
from apps.core.parts import Part, Phase, share
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import Array, Volume
from apps.morphology.place import Workplace
from apps.precomputed.levels import Level, open_levels, pieces_of

Kind = Literal["image", "labels"]
Encoding = Literal["raw", "compressed_segmentation", "jpeg"]

_TYPES = {
    "image": ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float32"),
    "labels": ("uint8", "uint16", "uint32", "uint64"),
}
_ENCODED = {"compressed_segmentation": ("uint32", "uint64"), "jpeg": ("uint8",)}


class PrecomputedParameters(Parameters, frozen=True, kw_only=True):
    """Which volume is written, and how."""

    volume: Annotated[str, Meta(min_length=1, description="OME-Zarr volume, complete; all its levels are written")]
    output: Annotated[str, Meta(min_length=1, description="folder that the precomputed volume goes to")]
    kind: Annotated[Kind, Meta(description="image, or labels: a segmentation")]
    encoding: Annotated[
        Encoding | None,
        Meta(
            description="raw; compressed_segmentation, for labels of 32 or 64 bits and their default; jpeg, for an "
            "image of 8 bits, with loss"
        ),
    ] = None
    chunks: Annotated[Triple | None, Meta(description="of all levels, zyx; those of the volume's by default")] = None
    part: Annotated[
        Part | None,
        Meta(description="this job's share of the work; when all have ended, one without it completes the output"),
    ] = None

    def check(self) -> None:
        if self.chunks is not None and min(self.chunks) < 1:
            raise ParameterError(f"chunks {self.chunks}: expected positive extents")


class PrecomputedResult(Result, frozen=True, kw_only=True):
    """The precomputed volume."""

    precomputed: Annotated[str, Meta(description="the folder, with `info` as neuroglancer reads it")]
    complete: Annotated[bool, Meta(description="whether the folder is there now; a part alone does not tell")]
    levels: Annotated[int, Meta(ge=1, description="with level 0, the volume itself")]
    encoding: Annotated[str, Meta(description="of its chunks")]
    pieces_made: Annotated[int, Meta(ge=0, description="of the pieces of work, those that this run did")]
    pieces: Annotated[int, Meta(ge=1, description="all pieces of work")]


def run(parameters: PrecomputedParameters, report: Reporter) -> PrecomputedResult:
    """Write the levels, or a part of them; what an earlier or another run has written is left as it is.

    Raises DataError where the volume is missing, no OME-Zarr, or of a dtype that the format does not have, or the
    output cannot be written; StateError where the output is something else, or another process completes it.
    """
    levels = open_levels(parameters.volume, parameters.chunks)
    data_type = _data_type(parameters, levels[0])
    encoding = _encoding(parameters, data_type)
    info = make_info(levels, parameters.kind, data_type, encoding)
    place = Workplace(Path(parameters.output), "precomputed", _identity(parameters, levels, info))
    pieces, made = pieces_of(levels), 0
    alone = parameters.part is None
    complete = place.is_complete(alone)
    if not complete:
        with place.hold(alone):
            complete = place.made() is not None  # another job has finished it meanwhile
            if not complete:
                made = _write(place, levels, info, parameters.part, report)
                if alone:
                    place.publish({"levels": len(levels), "pieces": len(pieces)})
                    complete = True
    return PrecomputedResult(
        precomputed=parameters.output,
        complete=complete,
        levels=len(levels),
        encoding=encoding,
        pieces_made=made,
        pieces=len(pieces),
    )


def make_info(levels: list[Level], kind: Kind, data_type: str, encoding: Encoding) -> dict[str, Any]:
    """The `info` of the folder.  Sizes in it are xyz, in nm; a level's voxels fill it from the corner of level 0 on."""
    scales = []
    for level in levels:
        size = [int(n) if n == int(n) else n for n in level.voxel_size_nm[::-1]]
        scale: dict[str, Any] = {
            "key": "_".join(map(str, size)),
            "size": list(level.volume.shape[::-1]),
            "resolution": size,
            "voxel_offset": [0, 0, 0],
            "chunk_sizes": [list(level.chunks[::-1])],
            "encoding": encoding,
        }
        if encoding == "compressed_segmentation":
            scale["compressed_segmentation_block_size"] = [8, 8, 8]
        scales.append(scale)
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "image" if kind == "image" else "segmentation",
        "data_type": data_type,
        "num_channels": 1,
        "scales": scales,
    }


def _data_type(parameters: PrecomputedParameters, level: Level) -> str:
    """That of the output: labels in a signed type become unsigned."""
    dtype = level.volume.dtype
    if parameters.kind == "labels" and dtype.kind == "i":
        dtype = np.dtype(f"u{dtype.itemsize}")
    if dtype.name not in _TYPES[parameters.kind]:
        known = ", ".join(_TYPES[parameters.kind])
        raise DataError(f"{parameters.volume}: has dtype {dtype}; neuroglancer has {known} for {parameters.kind}")
    return dtype.name


def _encoding(parameters: PrecomputedParameters, data_type: str) -> Encoding:
    wanted = parameters.encoding
    if wanted is None:
        fits = parameters.kind == "labels" and data_type in _ENCODED["compressed_segmentation"]
        return "compressed_segmentation" if fits else "raw"
    kinds = {"compressed_segmentation": "labels", "jpeg": "image"}
    if kinds.get(wanted, parameters.kind) != parameters.kind or data_type not in _ENCODED.get(wanted, (data_type,)):
        raise ParameterError(f"encoding {wanted}: does not go with {parameters.kind} of dtype {data_type}; use raw")
    return wanted


def _identity(parameters: PrecomputedParameters, levels: list[Level], info: dict[str, Any]) -> dict[str, Any]:
    store = Path(parameters.volume).absolute()
    # Each level by itself: coarser ones can be made anew, of the same shapes, by another rule.
    arrays = [store / str(levels[0].volume.array.path), *(Path(level.volume.name) for level in levels[1:])]
    made = [array / "zarr.json" for array in arrays]
    return {"volume": str(store), "made": [path.stat().st_mtime_ns for path in made], "info": info}


def _write(place: Workplace, levels: list[Level], info: dict[str, Any], part: Part | None, report: Reporter) -> int:
    """Write the pieces of a part that are not there yet; returns how many."""
    from cloudvolume import CloudVolume

    pieces = pieces_of(levels)
    done = place.folder / "done"
    done.mkdir(exist_ok=True)
    mine = [number for number in share(len(pieces), part) if not (done / str(number)).is_file()]
    place.result.mkdir(exist_ok=True)
    target = f"file://{place.result.absolute()}"
    if not (place.result / "info").is_file():  # by ourselves: CloudVolume's is half there while another part reads it
        write_json(place.result / "info", info)
    # Uncompressed files: any web server can hand them out as they are.
    outputs = [CloudVolume(target, mip=mip, compress=False, progress=False) for mip in range(len(levels))]
    for finished, number in enumerate(mine):
        mip, box = pieces[number]
        report(finished, len(mine), f"level {mip}")
        voxels = _unsigned(levels[mip].volume, box, info["data_type"])
        z, y, x = box.slices()
        outputs[mip][x, y, z] = np.asfortranarray(voxels.T)[..., np.newaxis]
        (done / str(number)).touch()
    report(len(mine), len(mine), "levels")
    return len(mine)


def _unsigned(volume: Volume, box: Box, data_type: str) -> Array:
    voxels = volume.read(box)
    if voxels.dtype.name == data_type:
        return voxels
    if int(voxels.min()) < 0:
        raise DataError(f"{volume.name}: has the label {voxels.min()} in {box}; expected ids from 0 on")
    return voxels.astype(data_type)


STAGE = Stage(
    name="precomputed",
    summary="Write a volume and its levels as neuroglancer precomputed.",
    parameters=PrecomputedParameters,
    result=PrecomputedResult,
    run=run,
    example={"volume": "data/segmentation.zarr", "output": "data/segmentation-precomputed", "kind": "labels"},
    phases=(Phase(shared=True), Phase()),
)
