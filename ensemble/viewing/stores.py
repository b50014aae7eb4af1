"""What a viewer shows: named stores, looked at before anything is served, so that a wrong one is an error at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from msgspec import Meta

from apps.core.boxes import Triple
from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.core.volumes import VoxelSize, open_volume
from ensemble.viewing.annotations import Synapses, load_synapses

MESHES = ("neuroglancer_legacy_mesh", "neuroglancer_multilod_draco")
SKELETONS = ("neuroglancer_skeletons",)
# Without coarser levels a viewer that shows all of a larger volume would load every chunk of the plane.
EXTENT_WITHOUT_LEVELS = 1024

Point = tuple[float, float, float]
VOLUMES = ("image", "segmentation", "labels")

# What a pipeline writes into its folder.
VIEW_FILE, REPORT_FILE = "view.json", "report.html"


class Stores(Parameters, frozen=True, kw_only=True):
    """The places of what is to be seen, also as a file.  A volume is OME-Zarr or neuroglancer precomputed."""

    image: Annotated[str | None, Meta(description="grey volume")] = None
    segmentation: Annotated[str | None, Meta(description="volume of object ids")] = None
    labels: Annotated[str | None, Meta(description="a second volume of ids: ground truth, or another result")] = None
    meshes: Annotated[str | None, Meta(description="folder of the segmentation's meshes, precomputed")] = None
    skeletons: Annotated[str | None, Meta(description="folder of the segmentation's skeletons, precomputed")] = None
    synapses: Annotated[str | None, Meta(description="table of the stage `synapses`, Parquet or CSV")] = None
    offset: Annotated[
        Triple, Meta(description="first voxel of segmentation, meshes and skeletons in the image, zyx")
    ] = (0, 0, 0)
    report: Annotated[str | None, Meta(description="the page on how all of it was made, HTML")] = None

    def check(self) -> None:
        if self.image is None and self.segmentation is None and self.labels is None:
            raise ParameterError("nothing to view: give an image, a segmentation or labels (see ensemble view --help)")
        if (self.meshes or self.skeletons) and self.segmentation is None:
            raise ParameterError("meshes and skeletons are of a segmentation; give it too")


@dataclass(frozen=True)
class ShownVolume:
    """A volume as a viewer needs it.

    Attributes:
        path: its folder.
        format: neuroglancer's name of the format.
        shape: of level 0, voxels zyx.
        voxel_size_nm: of level 0, zyx.
        origin: place of its first voxel, in its voxels, zyx, from what its metadata say.
        dtype: of its voxels.
        levels: how many.
    """

    path: Path
    format: Literal["zarr3", "precomputed"]
    shape: Triple
    voxel_size_nm: VoxelSize
    origin: Point
    dtype: np.dtype[Any]
    levels: int

    @property
    def slow(self) -> bool:
        """Whether showing all of it means loading very much."""
        return self.levels == 1 and max(self.shape) > EXTENT_WITHOUT_LEVELS


@dataclass(frozen=True)
class OpenStores:
    """Stores that have been looked at.  `offset`: see Stores; voxels of the segmentation, zyx.  `report`: a page."""

    image: ShownVolume | None = None
    segmentation: ShownVolume | None = None
    labels: ShownVolume | None = None
    meshes: Path | None = None
    skeletons: Path | None = None
    synapses: Synapses | None = None
    offset: Triple = (0, 0, 0)
    report: Path | None = None

    @property
    def volumes(self) -> dict[str, ShownVolume]:
        """Layer -> volume, of those that there are."""
        return {name: volume for name in VOLUMES if (volume := getattr(self, name)) is not None}

    @property
    def grid(self) -> ShownVolume:
        """The volume whose voxels are the unit of positions."""
        return next(iter(self.volumes.values()))

    def begin(self, name: str) -> Point:
        """Where the first voxel of a layer's volume lies, zyx in its voxels.

        It is counted from the grid's first voxel, as all stages count; where the grid is precomputed, from the zero of
        its metadata, as what others make of such a volume is.  A volume whose metadata tell a place other than zero
        lies at that, all others at the grid's begin; a segmentation so many voxels further as `offset` says.
        """
        volume, grid = self.volumes[name], self.grid
        moved = self.offset if name == "segmentation" else (0, 0, 0)
        zero = grid.origin if grid.format == "zarr3" and any(volume.origin) else (0.0, 0.0, 0.0)
        z, y, x = (
            place - start * unit / size + more
            for place, start, unit, size, more in zip(
                volume.origin, zero, grid.voxel_size_nm, volume.voxel_size_nm, moved, strict=True
            )
        )
        return z, y, x

    @cached_property
    def properties(self) -> str | None:
        """Folder, below `meshes`, of the list of all objects and what is known of each; None where there is none."""
        if self.meshes is None:
            return None
        name = _read_info(self.meshes, "a folder of neuroglancer meshes").get("segment_properties")
        return name if isinstance(name, str) and (self.meshes / name / "info").is_file() else None

    @property
    def folders(self) -> dict[str, Path]:
        """Name under which it is served -> folder."""
        folders = {name: volume.path for name, volume in self.volumes.items()}
        return folders | {name: path for name in ("meshes", "skeletons") if (path := getattr(self, name)) is not None}


def open_stores(stores: Stores) -> OpenStores:
    """Look at every store; a report that has gone is left out.

    Raises DataError, which names the store, where one is missing, is not what it should be, or cannot be viewed.
    """
    volumes = {name: open_shown(place, name) for name in VOLUMES if (place := getattr(stores, name)) is not None}
    return OpenStores(
        **volumes,
        meshes=_precomputed_folder(stores.meshes, "meshes", MESHES) if stores.meshes else None,
        skeletons=_precomputed_folder(stores.skeletons, "skeletons", SKELETONS) if stores.skeletons else None,
        synapses=load_synapses(Path(stores.synapses)) if stores.synapses else None,
        offset=stores.offset,
        report=Path(stores.report).absolute() if stores.report and Path(stores.report).is_file() else None,
    )


def open_shown(name: str, layer: str) -> ShownVolume:
    """Look at a volume that is to be a layer.  Raises DataError where it is missing, or cannot be shown as that."""
    path = Path(name)
    volume = _open_precomputed(path) if (path / "info").is_file() else _open_zarr(name)
    if layer != "image" and volume.dtype.kind not in "ui":
        raise DataError(f"{name}: has dtype {volume.dtype}; expected integers, as {layer} are ids")
    return volume


def _open_zarr(name: str) -> ShownVolume:
    volume = open_volume(name)
    if volume.voxel_size_nm is None:
        raise DataError(f"{name}: is HDF5, which the viewer cannot read; the stage `ingest` makes OME-Zarr of it")
    if volume.dtype.itemsize == 8 and volume.dtype.kind == "f":
        raise DataError(f"{name}: has dtype {volume.dtype}, which the viewer cannot read; expected float32 or integers")
    document = json.loads((Path(name) / "zarr.json").read_bytes())
    levels = document["attributes"]["ome"]["multiscales"][0]["datasets"]
    moved = [step["translation"] for step in levels[0]["coordinateTransformations"] if step["type"] == "translation"]
    scale = levels[0]["coordinateTransformations"][0]["scale"]
    origin = tuple(float(t) / s for t, s in zip(moved[0], scale, strict=True)) if moved else (0.0, 0.0, 0.0)
    return ShownVolume(
        Path(name).absolute(),
        "zarr3",
        volume.shape,
        volume.voxel_size_nm,
        cast(Point, origin),
        volume.dtype,
        len(levels),
    )


def _open_precomputed(path: Path) -> ShownVolume:
    info = _read_info(path, "a neuroglancer precomputed volume")
    try:
        first = info["scales"][0]
        channels = int(info["num_channels"])
        shape, size, origin = (
            tuple(float(n) for n in reversed(first.get(key, (0, 0, 0))))
            for key in ("size", "resolution", "voxel_offset")
        )
        if channels != 1 or min(shape) < 1 or min(size) <= 0 or not len(shape) == len(size) == len(origin) == 3:
            raise ValueError(f"size {shape}, resolution {size} and {channels} channels")
        z, y, x = (int(n) for n in shape)
        dtype = np.dtype(info["data_type"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path}/info: describes no 3-D volume of one channel ({error!r})") from error
    return ShownVolume(
        path.absolute(),
        "precomputed",
        (z, y, x),
        size,
        origin,
        dtype,
        len(info["scales"]),
    )


def _precomputed_folder(name: str, what: str, types: tuple[str, ...]) -> Path:
    path = Path(name)
    info = _read_info(path, f"a folder of neuroglancer {what}")
    if info.get("@type") not in types:
        raise DataError(f"{path}/info: has the type {info.get('@type')!r}; expected {' or '.join(types)} for {what}")
    return path.absolute()


def _read_info(path: Path, what: str) -> dict[str, Any]:
    if not (path / "info").is_file():
        raise DataError(f"{path}: expected {what}, and there is no file `info` in it")
    try:
        info = json.loads((path / "info").read_bytes())
    except ValueError as error:
        raise DataError(f"{path}/info: is damaged ({error}); expected JSON") from error
    if not isinstance(info, dict):
        raise DataError(f"{path}/info: expected a JSON object that describes {what}")
    return info
