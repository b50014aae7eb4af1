"""Stage `phantom`: a generated block of EM-like tissue with its ground truth, and what a microscope makes of it.

It stands in for a data set where none is at hand, and knows the truth of every stage: small enough for a quickstart,
and a task on which a few minutes of FFN training show; or as large as the disk, with cell bodies, vessels and synapses,
and acquired as tiles of warped sections.  It is no model of tissue; figures measured on it say nothing about real data.

A plain block (neurites only, one plane a section) of moderate size grows in memory in one piece; any other one grows on
disk, block by block (growing.py).  docs/phantom.md says what is true where.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import ParameterError
from apps.core.files import lock, make_folder, move_folder
from apps.core.parameters import Parameters, Result, write_json
from apps.core.progress import Reporter
from apps.core.stage import Stage
from apps.core.volumes import VoxelSize, open_volume, write_volume
from apps.phantom import growing, imaging
from apps.phantom.acquisition import AcquisitionDesign
from apps.phantom.design import PhantomDesign
from apps.phantom.growing import Grown, Layout, grow_tissue
from apps.phantom.imaging import TileFormat, acquire_volume
from apps.phantom.neurites import Labels, grow_neurites
from apps.phantom.objects import NoObjectError
from apps.phantom.rendering import render

_SMALLEST_EXTENT = 16
_LARGEST_PIECE = 2**28  # voxels that grow in one piece, at about 60 bytes a voxel

_MAKING = ".making"  # folder, in the output, of what is not complete
_RECORD = "phantom.json"  # what a complete phantom was made from; the last thing to be written
_PIECE, _ACQUIRED = "piece.json", "acquired.json"


class PhantomParameters(Parameters, frozen=True, kw_only=True):
    """What to generate and where to put it."""

    output: Annotated[str, Meta(min_length=1, description="folder that gets image.zarr, labels.zarr and the rest")]
    shape: Annotated[Triple, Meta(description="extent in voxels, zyx: sections, rows, columns")] = (96, 160, 224)
    voxel_size_nm: Annotated[VoxelSize, Meta(description="size of a voxel in nanometres, zyx")] = (10.0, 10.0, 10.0)
    seed: Annotated[int, Meta(ge=0, description="of everything that is random; same seed, same bytes")] = 0
    design: Annotated[PhantomDesign, Meta(description="what the tissue looks like")] = PhantomDesign()
    section_thickness: Annotated[
        int, Meta(ge=1, le=16, description="planes of tissue that one section averages: how anisotropic a voxel is")
    ] = 1
    acquisition: Annotated[
        AcquisitionDesign | None, Meta(description="how the sections are imaged as tiles; null for the block alone")
    ] = None
    tile_format: Annotated[TileFormat, Meta(description="of the tiles' files")] = "tif"

    def check(self) -> None:
        planes, height, width = self.shape[0] * self.section_thickness, self.shape[1], self.shape[2]
        if min(planes, height, width) < _SMALLEST_EXTENT:
            raise ParameterError(
                f"shape {self.shape}: expected at least {_SMALLEST_EXTENT} voxels along z (planes of tissue), y and x"
            )
        if min(self.voxel_size_nm) <= 0:
            raise ParameterError(f"voxel_size_nm {self.voxel_size_nm}: expected positive sizes")
        if self.acquisition is not None:
            self.acquisition.tile_shape((height, width))
            for artefact in self.acquisition.artefacts:
                if artefact.section >= self.shape[0]:
                    raise ParameterError(
                        f"artefact {artefact.kind} of section {artefact.section}: the phantom has {self.shape[0]} "
                        "sections, counted from 0"
                    )

    @property
    def in_one_piece(self) -> bool:
        """True where the block grows in memory: neurites only, one plane a section, and not too many voxels."""
        voxels = np.prod(self.shape, dtype=np.int64)
        return self.design.plain and self.section_thickness == 1 and bool(voxels <= _LARGEST_PIECE)


class PhantomResult(Result, frozen=True, kw_only=True):
    """Where the phantom lies and what is in it."""

    image: Annotated[str, Meta(description="OME-Zarr volume, uint8")]
    labels: Annotated[str, Meta(description="OME-Zarr volume, uint32: 0 membrane, 1..objects; 6-connected each")]
    objects: Annotated[int, Meta(ge=1, description="number of labelled objects")]
    labelled_fraction: Annotated[float, Meta(ge=0.0, le=1.0, description="fraction of the voxels with a label over 0")]
    masks: Annotated[
        str | None, Meta(description="OME-Zarr volume, uint8: 0 neuropil, 1 vessel, 2 cell body, 3 out of tissue")
    ] = None
    clefts: Annotated[str | None, Meta(description="OME-Zarr volume, uint32: synaptic clefts, by id")] = None
    vesicles: Annotated[str | None, Meta(description="OME-Zarr volume, uint32: vesicle clouds, by synapse id")] = None
    synapses: Annotated[str | None, Meta(description="CSV: id, partners' labels, places, direction")] = None
    skeletons: Annotated[str | None, Meta(description="npz: nodes, radius, label, edges")] = None
    synapse_count: Annotated[int, Meta(ge=0, description="number of synapses in the table")] = 0
    tile_table: Annotated[str | None, Meta(description="CSV of the tiles: path, section, x, y")] = None
    truth: Annotated[str | None, Meta(description="JSON: true offsets of the tiles, placement of the sections")] = None
    warps: Annotated[str | None, Meta(description="npz: displacement of every section on a grid")] = None
    tiles: Annotated[int, Meta(ge=0, description="number of tiles")] = 0


def generate(shape: Triple, seed: int, design: PhantomDesign) -> tuple[np.ndarray, Labels]:
    """Image (uint8) and labels (uint32) of a plain phantom, zyx; the same bytes for the same arguments.

    Raises ParameterError where the design asks for more than neurites: that grows on disk only (`run`).
    """
    if not design.plain:
        raise ParameterError(
            "somata, vessels, synapses or resin: expected none of them in a phantom that is not on disk"
        )
    # Two streams: what the image looks like does not change where the neurites run.
    geometry, appearance = np.random.default_rng(seed).spawn(2)
    neurites = grow_neurites(geometry, shape, design)
    return render(appearance, neurites, design), neurites.labels


def run(parameters: PhantomParameters, report: Reporter) -> PhantomResult:
    """Generate and write a phantom; where one that was killed left off, if its parameters were the same.

    Raises DataError where the output cannot be written, or where the design leaves no object in the box, and StateError
    where another process works on this output.
    """
    folder = Path(parameters.output)
    make_folder(folder)
    result = _complete(folder, parameters)
    if result is not None:
        report(1, 1, "done before")
        shutil.rmtree(folder / _MAKING, ignore_errors=True)
        return result
    with _making(folder, parameters) as making:
        result = _make(folder, making, parameters, report)
        if _names(result) - {"image.zarr", "labels.zarr"}:
            write_json(folder / _RECORD, {"parameters": parameters.hash(), "result": result.to_dict()})
    report(1, 1, "done")
    return result


def _make(folder: Path, making: Path, parameters: PhantomParameters, report: Reporter) -> PhantomResult:
    if parameters.in_one_piece:
        grown = _grow_piece(making, parameters, report)
        names = ["image.zarr", "labels.zarr"]
    else:
        layout = Layout.of(parameters.shape, parameters.section_thickness)
        grown = grow_tissue(making, layout, parameters.seed, parameters.design, parameters.voxel_size_nm, report)
        names = [*growing.VOLUMES, growing.SYNAPSES, growing.SKELETONS]
    tiles = 0
    if parameters.acquisition is not None:
        image = making / "image.zarr" if (making / "image.zarr").is_dir() else folder / "image.zarr"
        acquired = making / _ACQUIRED
        if not acquired.exists():
            made = acquire_volume(
                making, open_volume(str(image)), parameters.acquisition, parameters.seed, parameters.tile_format, report
            )
            write_json(acquired, made)
        tiles = int(acquired.read_text())
        names += [imaging.TILES, imaging.TRUTH, imaging.WARPS, imaging.TABLE]
    for name in names:
        _move(making / name, folder / name)
    for name in set(_ALL) - set(names):  # of an earlier phantom in this folder, which is no longer the truth
        _remove(folder / name)
    here = {name: str(folder / name) for name in names}
    return PhantomResult(
        image=here["image.zarr"],
        labels=here["labels.zarr"],
        objects=grown.objects,
        labelled_fraction=grown.labelled_voxels / int(np.prod(parameters.shape, dtype=np.int64)),
        masks=here.get("masks.zarr"),
        clefts=here.get("clefts.zarr"),
        vesicles=here.get("vesicles.zarr"),
        synapses=here.get(growing.SYNAPSES),
        skeletons=here.get(growing.SKELETONS),
        synapse_count=grown.synapses,
        tile_table=here.get(imaging.TABLE),
        truth=here.get(imaging.TRUTH),
        warps=here.get(imaging.WARPS),
        tiles=tiles,
    )


_ALL = (
    *growing.VOLUMES,
    growing.SYNAPSES,
    growing.SKELETONS,
    imaging.TILES,
    imaging.TRUTH,
    imaging.WARPS,
    imaging.TABLE,
)


def _grow_piece(making: Path, parameters: PhantomParameters, report: Reporter) -> Grown:
    """Grow the block in memory, and write image and labels."""
    summary = making / _PIECE
    if summary.exists():
        return Grown.load(summary)
    report(0, 3, "growing neurites")
    image, labels = generate(parameters.shape, parameters.seed, parameters.design)
    objects = int(labels.max())
    if not objects:
        raise NoObjectError(
            f"a phantom of shape {parameters.shape} with this design holds no object of "
            f"{parameters.design.smallest_object} voxels; give a larger shape or calibre"
        )
    report(1, 3, "writing the image")
    write_volume(making / "image.zarr", image, parameters.voxel_size_nm)
    report(2, 3, "writing the labels")
    write_volume(making / "labels.zarr", labels, parameters.voxel_size_nm)
    grown = Grown(objects=objects, labelled_voxels=int(np.count_nonzero(labels)), synapses=0)
    grown.save(summary)
    return grown


def _complete(folder: Path, parameters: PhantomParameters) -> PhantomResult | None:
    """The result of an earlier run, where the folder holds all of what it made from the same parameters."""
    record = folder / _RECORD
    if not record.is_file():
        return None
    kept = _Record.load(record)
    if kept.parameters != parameters.hash() or not all((folder / name).exists() for name in _names(kept.result)):
        return None
    return kept.result


class _Record(Parameters, frozen=True, kw_only=True):
    """What `_RECORD` holds: the hash of the parameters, and the result."""

    parameters: str
    result: PhantomResult


def _names(result: PhantomResult) -> set[str]:
    """Files and folders of a result."""
    values = (result.to_dict()[name] for name in PhantomResult.__struct_fields__)
    return {Path(value).name for value in values if isinstance(value, str)}


@contextlib.contextmanager
def _making(folder: Path, parameters: PhantomParameters) -> Iterator[Path]:
    """The folder for what is not complete: as a killed run of the same parameters left it, or empty.

    It is removed at the end of the block, and where no object grows, as that will not change.
    """
    making = folder / _MAKING
    making.mkdir(exist_ok=True)
    with (making / "lock").open("a") as stream:
        lock(stream, making)
        stamp = making / "parameters.json"
        if not stamp.is_file() or stamp.read_text() != parameters.hash():
            (folder / _RECORD).unlink(missing_ok=True)
            for path in making.iterdir():
                if path.name != "lock":
                    _remove(path)
            stamp.write_text(parameters.hash())
        try:
            yield making
        except NoObjectError:
            shutil.rmtree(making)
            raise
        shutil.rmtree(making)


def _move(made: Path, target: Path) -> None:
    """Put what is `made` in its place; a run before this one may have done so."""
    if made.is_dir():
        move_folder(made, target)
    elif made.exists():
        made.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


STAGE = Stage(
    name="phantom",
    summary="Generate an EM-like block of tissue with its ground truth, and its sections as a microscope's tiles.",
    parameters=PhantomParameters,
    result=PhantomResult,
    run=run,
    example={"output": "phantom", "shape": [96, 160, 224], "seed": 1},
)
