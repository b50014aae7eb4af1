"""Where a pyramid lies: the levels in the making, what is done of them, and how they become part of the volume.

Inside the volume's folder `.multiscale-HASH/` holds the levels until all are complete, and an empty file for every
tower that is (`done/STOREY-TOWER`), written after its chunks.  The hash is that of the plan, so that what was begun
with other parameters is never taken up.  Publishing moves the levels beside level 0 and only then names them in the
metadata; until that moment level 0 is all that it names.  A volume that is written anew as a whole takes its leftovers
with it.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr

from apps.core.errors import DataError, StateError
from apps.core.files import lock, replace_folder, try_lock
from apps.core.parameters import json_hash, write_json
from apps.core.volumes import Volume, open_volume
from apps.multiscale.building import RULES, Kind
from apps.multiscale.pyramid import Level, Pyramid

_WORK, _REMOVED = ".multiscale-", ".removed"
_METADATA = "zarr.json"


@dataclass(frozen=True)
class Store:
    """A volume's folder, and the pyramid that it has or is to have.

    Attributes:
        folder: the OME-Zarr group.
        dtype: that of level 0, and so of all.
    """

    folder: Path
    pyramid: Pyramid
    kind: Kind
    dtype: np.dtype[Any]

    @property
    def work(self) -> Path:
        """The folder of the levels in the making."""
        plan = {"pyramid": self.pyramid.to_dict(), "kind": self.kind, "dtype": self.dtype.str}
        return self.folder / f"{_WORK}{json_hash(plan)}"

    def record(self, storey: int, tower: int) -> Path:
        """The file that says that a tower is complete."""
        return self.work / "done" / f"{storey}-{tower}"

    def done(self) -> set[str]:
        """Names of the records that are there."""
        folder = self.work / "done"
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def mark(self, storey: int, tower: int) -> None:
        self.record(storey, tower).touch()

    def open_levels(self) -> list[Volume]:
        """Level 0 to read, and the levels in the making to write."""
        opened = [open_volume(str(self.folder))]
        for level in self.pyramid.levels[1:]:
            path = self.work / level.path
            opened.append(Volume(str(path), level.voxel_size_nm, zarr.open_array(path, mode="r+")))
        return opened


@contextlib.contextmanager
def hold(store: Store, alone: bool) -> Iterator[None]:
    """Keep others from the volume: several jobs may each build a part, one that completes it has to be alone.

    The lock is on the metadata of level 0, a file that nothing here replaces.

    Raises StateError where another process is at work on it.
    """
    file = store.folder / store.pyramid.levels[0].path / _METADATA
    with file.open("r+b") as stream:
        if alone:
            lock(stream, store.folder)
        elif not try_lock(stream, shared=True):
            raise StateError(f"{store.folder}: another process completes its levels; wait for it, or end it first")
        yield


def prepare(store: Store) -> None:
    """Make the empty levels, unless they are there; of several jobs that come at once one makes them."""
    if store.work.is_dir():
        return
    temporary = Path(tempfile.mkdtemp(dir=store.folder, prefix=_WORK, suffix=".partial"))
    for level in store.pyramid.levels[1:]:
        zarr.create_array(
            temporary / level.path,
            shape=level.shape,
            chunks=store.pyramid.chunks,
            dtype=store.dtype,
            dimension_names=("z", "y", "x"),
            zarr_format=3,
        )
    (temporary / "done").mkdir()
    try:
        temporary.rename(store.work)
    except OSError:
        if not store.work.is_dir():
            raise
        shutil.rmtree(temporary)


def is_published(store: Store) -> bool:
    """Whether the volume has just these levels."""
    current = _multiscale(_read_metadata(store.folder))
    return current == _described(store, current) and all(
        (store.folder / level.path / _METADATA).is_file() for level in store.pyramid.levels
    )


def has_levels(folder: Path, levels: Sequence[Level]) -> bool:
    """Whether a volume that got `levels`, from level 0 on, has levels still, by its metadata: these, or others.

    Others were put in their place on demand; to make these anew is not asked for by that.
    """
    try:
        named = [entry["path"] for entry in _multiscale(_read_metadata(folder))["datasets"]]
    except (DataError, KeyError, TypeError):
        return False
    there = all((folder / path / _METADATA).is_file() for path in named)
    return there and (len(named) > 1 or len(levels) == 1)


def check_free(store: Store, replace: bool) -> None:
    """Raise StateError where the volume has other levels, or arrays of their names, unless they are to be replaced.

    Raises DataError where the folder describes several images, as the levels of one could be another's.
    """
    images = _read_metadata(store.folder)["attributes"]["ome"]["multiscales"]
    if len(images) > 1:
        raise DataError(f"{store.folder}: describes {len(images)} images; expected a folder for each")
    there = [entry["path"] for entry in images[0]["datasets"][1:]]
    if not store.work.is_dir():  # where it is, they can be those of a run that was killed while it published
        there = there or [level.path for level in store.pyramid.levels[1:] if (store.folder / level.path).exists()]
    if there and not replace:
        raise StateError(
            f"{store.folder}: has other levels already ({', '.join(there)}); replace: true puts these in their place"
        )


def publish(store: Store) -> None:
    """Make the complete levels part of the volume, in place of others; goes on where a run was killed.

    The metadata never names a level that is not there, or is not what they say.
    """
    metadata = _read_metadata(store.folder)
    multiscale = _multiscale(metadata)
    others = [entry["path"] for entry in multiscale["datasets"][1:]]
    if others:
        del multiscale["datasets"][1:]
        _write_metadata(store.folder, metadata)
        for path in others:
            _remove_level(store.folder, path)
    for level in store.pyramid.levels[1:]:
        made, target = store.work / level.path, store.folder / level.path
        if made.is_dir():
            replace_folder(made, target)
    metadata["attributes"]["ome"]["multiscales"][0] = _described(store, multiscale)
    _write_metadata(store.folder, metadata)
    clear(store)


def has_leftovers(store: Store) -> bool:
    return any(store.folder.glob(f"{_WORK}*"))


def clear(store: Store) -> None:
    """Remove what this run or others have left in the making."""
    # What a killed run was removing goes first: it has the name that the others get.
    for folder in sorted(store.folder.glob(f"{_WORK}*"), key=lambda path: not path.name.endswith(_REMOVED)):
        # Renamed first: a kill must not leave half of it under a name by which it would be taken up.
        going = folder.with_name(folder.name.removesuffix(_REMOVED) + _REMOVED)
        folder.rename(going)
        shutil.rmtree(going)


def _read_metadata(folder: Path) -> dict[str, Any]:
    file = folder / _METADATA
    try:
        metadata = cast(dict[str, Any], json.loads(file.read_text()))
        _multiscale(metadata)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{file}: is not the metadata of an OME-Zarr 0.5 image ({error})") from error
    return metadata


def _write_metadata(folder: Path, metadata: dict[str, Any]) -> None:
    # A copy of the arrays' metadata that some writers put here, which would be out of date.
    metadata.pop("consolidated_metadata", None)
    write_json(folder / _METADATA, metadata)


def _multiscale(metadata: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], metadata["attributes"]["ome"]["multiscales"][0])


def _described(store: Store, multiscale: dict[str, Any]) -> dict[str, Any]:
    """The entry of `multiscales` with the pyramid's levels; level 0's own entry stays as it is."""
    described = copy.deepcopy(multiscale)
    base = described["datasets"][0]
    scale, shift = _transformation(base)
    described["datasets"] = [base]
    for level in store.pyramid.levels[1:]:
        # OME-Zarr places a voxel by its centre: that of a voxel of f voxels is (f - 1) / 2 of them further on.
        sizes = [s * f for s, f in zip(scale, level.total_factor, strict=True)]
        centres = [t + s * (f - 1) / 2 for t, s, f in zip(shift, scale, level.total_factor, strict=True)]
        described["datasets"].append(
            {
                "path": level.path,
                "coordinateTransformations": [
                    {"type": "scale", "scale": sizes},
                    {"type": "translation", "translation": centres},
                ],
            }
        )
    rule = RULES[store.kind]
    described["type"] = rule.__name__
    described["metadata"] = {
        "description": f"each level is the {rule.__name__} of the voxels of the level below",
        "method": f"{rule.__module__}.{rule.__name__}",
        "kwargs": {"chunks": list(store.pyramid.chunks)},
    }
    return described


def _transformation(dataset: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Scale and translation of a level, in the axes' units."""
    found = {entry["type"]: entry for entry in dataset["coordinateTransformations"]}
    return found["scale"]["scale"], found.get("translation", {}).get("translation", [0.0, 0.0, 0.0])


def _remove_level(folder: Path, path: str) -> None:
    """Remove the array of a level, which has to lie in the volume."""
    target = (folder / path).resolve()
    if folder.resolve() in target.parents:
        shutil.rmtree(target, ignore_errors=True)
