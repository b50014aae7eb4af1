"""What one segmented subvolume leaves behind, under the name NAME of its output NAME.zarr.

NAME.zarr (labels), NAME.parquet (objects), NAME-probability.zarr where asked for, and last NAME-summary.json: when
that is there, the subvolume is done.  While it is worked on, `.NAME.flooding` is its flood log.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta
from numpy.typing import DTypeLike, NDArray

from apps.core.boxes import Box, Triple
from apps.core.errors import DataError, ParameterError
from apps.core.files import folder_in_the_making, write_atomically
from apps.core.parameters import Result
from apps.core.subvolumes import Subvolume
from apps.core.tables import parquet_bytes
from apps.core.volumes import VoxelSize, new_volume, write_volume
from apps.ffn.segmenter import Counters, Segmentation, SegmentedObject

# Of the volume that tells what files one without an object has.
_A_NAME = "subvolume-without-an-object"


class MaskedVoxels(Result, frozen=True, kw_only=True):
    """How much of a box the masks kept out: no voxel of that was the centre of a field of view or got an object."""

    voxels: Annotated[int, Meta(description="voxels of the box")]
    excluded: Annotated[int, Meta(description="those of them that the masks exclude")]
    share: Annotated[float, Meta(description="excluded / voxels; 0 of no voxels")]

    @classmethod
    def of(cls, voxels: int, excluded: int) -> MaskedVoxels:
        return cls(voxels=voxels, excluded=excluded, share=excluded / voxels if voxels else 0.0)

    @classmethod
    def count(cls, excluded: NDArray[np.bool_] | None, box: Box, within: Box) -> MaskedVoxels:
        """Of `box`, where `excluded` is of the shape of `within`, a box around it; None where there is no mask."""
        kept_out = 0 if excluded is None else int(np.count_nonzero(excluded[box.slices(within.offset)]))
        return cls.of(box.size, kept_out)

    @classmethod
    def total(cls, parts: Iterable[MaskedVoxels]) -> MaskedVoxels:
        """The sum over boxes, of which there is at least one; what two of them share counts twice."""
        known = list(parts)
        return cls.of(sum(part.voxels for part in known), sum(part.excluded for part in known))


class SubvolumeResult(Result, frozen=True, kw_only=True):
    """One segmented subvolume."""

    segmentation: Annotated[str, Meta(description="uint32 OME-Zarr of the box's shape; 0 none, ids 1..objects")]
    table: Annotated[
        str,
        Meta(
            description="Parquet: id, z, y, x (seed, volume coordinates), low and high corner of "
            "the object, voxels, steps, mean_probability where there is one"
        ),
    ]
    probability: Annotated[str | None, Meta(description="uint8 OME-Zarr, 255ths, 0 where no object is; null: not kept")]
    objects: Annotated[int, Meta(description="number of objects")]
    voxels: Annotated[int, Meta(description="voxels in objects")]
    seeds: Annotated[int, Meta(description="seeds of the policy")]
    steps: Annotated[int, Meta(description="fields of view that the network looked at")]
    wasted_steps: Annotated[int, Meta(description="those of them in seeds that gave no object")]
    rejected: Annotated[int, Meta(description="seeds whose object was too weak or too small")]
    truncated: Annotated[bool, Meta(description="whether the bound on steps ended the segmentation")]
    masked_read: Annotated[MaskedVoxels, Meta(description="what the masks kept out of the box that was segmented")]
    masked_write: Annotated[MaskedVoxels, Meta(description="what they kept out of the write box")]
    seed_seconds: Annotated[float, Meta(description="seconds in the seed policy, in the process that ended it")]
    model_seconds: Annotated[float, Meta(description="seconds in the network, in the process that ended it")]
    other_seconds: Annotated[float, Meta(description="seconds of flood filling outside of the network, likewise")]


def probability_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}-probability.zarr")


def written_for(output: Path, probability: bool) -> list[Path]:
    """What a subvolume is stored in."""
    paths = [output, output.with_suffix(".parquet"), summary_path(output)]
    return [*paths, probability_path(output)] if probability else paths


def log_path(output: Path) -> Path:
    return output.with_name(f".{output.stem}.flooding")


def summary_path(output: Path) -> Path:
    return output.with_name(f"{output.stem}-summary.json")


def finished(output: Path, identity: str) -> SubvolumeResult | None:
    """The summary of an earlier process that ended this very subvolume; None where there is none."""
    path = summary_path(output)
    if not path.is_file() or not output.is_dir():
        return None
    try:
        summary = _Summary.load(path)
    except (ParameterError, DataError):
        return None
    return summary.result if summary.identity == identity else None


def store(
    output: Path, subvolume: Subvolume, found: Segmentation, voxel_size: VoxelSize, identity: str
) -> SubvolumeResult:
    """Write all of it, the summary last.  An older summary goes first: it must not speak for what is new."""
    box = subvolume.read_box
    summary_path(output).unlink(missing_ok=True)
    table, probability = output.with_suffix(".parquet"), None
    write_volume(output, found.labels, voxel_size)
    if found.probability is not None:
        name = probability_path(output)
        write_volume(name, found.probability, voxel_size)
        probability = str(name)
    write_atomically(table, objects_table(found, box.offset))
    counters = found.counters
    result = SubvolumeResult(
        segmentation=str(output),
        table=str(table),
        probability=probability,
        objects=len(found.objects),
        voxels=sum(item.voxels for item in found.objects),
        seeds=counters.seeds,
        steps=counters.steps,
        wasted_steps=counters.wasted_steps,
        rejected=counters.weak + counters.small,
        truncated=found.truncated,
        masked_read=MaskedVoxels.count(found.excluded, box, box),
        masked_write=MaskedVoxels.count(found.excluded, subvolume.write_box, box),
        seed_seconds=counters.seed_seconds,
        model_seconds=counters.model_seconds,
        other_seconds=counters.other_seconds,
    )
    _Summary(identity=identity, result=result).save(summary_path(output))
    return result


def store_empty(output: Path, subvolume: Subvolume, voxel_size: VoxelSize, identity: str) -> SubvolumeResult:
    """Write what `store` would of a subvolume that masks exclude wholly, without making an array of its voxels.

    Segmentation and table have the same bytes, and are written in the same order: a kill may come at any time.
    """
    read, write = (MaskedVoxels.of(box.size, box.size) for box in (subvolume.read_box, subvolume.write_box))
    summary_path(output).unlink(missing_ok=True)
    table = output.with_suffix(".parquet")
    _write_empty_volume(output, subvolume.read_box.shape, np.uint32, voxel_size)
    write_atomically(table, _table_of_no_objects())
    result = SubvolumeResult(
        segmentation=str(output),
        table=str(table),
        probability=None,
        objects=0,
        voxels=0,
        seeds=0,
        steps=0,
        wasted_steps=0,
        rejected=0,
        truncated=False,
        masked_read=read,
        masked_write=write,
        seed_seconds=0.0,
        model_seconds=0.0,
        other_seconds=0.0,
    )
    _Summary(identity=identity, result=result).save(summary_path(output))
    return result


def _write_empty_volume(path: Path, shape: Triple, dtype: DTypeLike, voxel_size: VoxelSize) -> None:
    """Write the files that `write_volume` writes of zeros: but for the volume's name they are always the same ones.

    Making them with Zarr takes 20 ms each time.
    """
    with folder_in_the_making(path) as temporary:
        for name, text in _files_of_an_empty_volume(shape, np.dtype(dtype).str, voxel_size).items():
            file = temporary / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text.replace(json.dumps(_A_NAME), json.dumps(path.stem)))


@lru_cache(maxsize=64)
def _files_of_an_empty_volume(shape: Triple, dtype: str, voxel_size: VoxelSize) -> dict[str, str]:
    """Texts of all its files by their place in the folder, of a volume called _A_NAME."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{_A_NAME}.zarr"
        with new_volume(path, shape, dtype, voxel_size):
            pass
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): file.read_text() for file in files}


@lru_cache(maxsize=1)
def _table_of_no_objects() -> bytes:
    """What `objects_table` gives wherever there is no object, and no probability."""
    nothing = Segmentation(np.zeros((1, 1, 1), np.uint32), [], Counters(), [], truncated=False)
    return objects_table(nothing, (0, 0, 0))


class _Summary(Result, frozen=True, kw_only=True):
    identity: str
    result: SubvolumeResult


def objects_table(found: Segmentation, offset: Triple) -> bytes:
    """Parquet with a row for each object; `offset` zyx turns positions in the subvolume into those in the volume."""
    import pyarrow as pa

    objects: list[SegmentedObject] = found.objects
    low, high = _extents(found.labels, len(objects))
    columns = {"id": pa.array([item.id for item in objects], pa.uint32())}
    for axis, name in enumerate("zyx"):
        columns[name] = pa.array([item.origin[axis] + offset[axis] for item in objects], pa.int64())
    for name, corner in (("low", low), ("high", high)):
        for axis, letter in enumerate("zyx"):
            columns[f"{name}_{letter}"] = pa.array(corner[:, axis] + offset[axis], pa.int64())
    columns["voxels"] = pa.array([item.voxels for item in objects], pa.int64())
    columns["steps"] = pa.array([item.steps for item in objects], pa.int64())
    if found.probability is not None:
        sums = np.bincount(found.labels.ravel(), found.probability.ravel(), len(objects) + 1)[1:] / 255.0
        counts = np.maximum([item.voxels for item in objects], 1) if objects else np.ones(0)
        columns["mean_probability"] = pa.array(sums / counts, pa.float64())
    return parquet_bytes(pa.table(columns))


def _extents(labels: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel zyx [objects, 3] of the box around each object."""
    from scipy import ndimage

    low, high = np.zeros((objects, 3), np.int64), np.zeros((objects, 3), np.int64)
    for number, slices in enumerate(ndimage.find_objects(labels.astype(np.int32), objects)):
        if slices is not None:
            low[number] = [part.start for part in slices]
            high[number] = [part.stop - 1 for part in slices]
    return low, high
