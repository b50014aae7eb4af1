"""Whether stores that are shown together belong together, as far as a look at them tells: size, place, and ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError
from ensemble.viewing.glance import Reader, open_reader
from ensemble.viewing.lineage import same
from ensemble.viewing.stores import OpenStores, ShownVolume

PROVENANCE_FILE = "provenance.json"  # beside meshes, skeletons and precomputed volumes, as the stages write it
# Ends of synapses that are looked up in the segmentation, each a chunk to read; and how many have to be right.
ENDS = 32
SHARE = 0.5


def disagreements(stores: OpenStores) -> list[str]:
    """What seems not to belong together, a sentence each; empty where nothing speaks against it."""
    return [*_volumes(stores), *_made_of_others(stores), *_synapses(stores)]


def made_of(folder: Path) -> str | None:
    """The segmentation that meshes or skeletons were made of, as their folder says; None where it does not."""
    return _source_of(folder, "segmentation")


def one_store(a: object, b: object) -> bool:
    """Whether two names are of one store, or of precomputed copies of it that say so."""
    return same(_original(a), _original(b))


def _original(store: object) -> object:
    """The volume that a folder is the precomputed copy of, as it says; the name itself where it is none."""
    return (_source_of(Path(store), "volume") or store) if isinstance(store, str) else store


def _source_of(folder: Path, parameter: str) -> str | None:
    try:
        found = json.loads((folder / PROVENANCE_FILE).read_bytes())["of"][parameter]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def _volumes(stores: OpenStores) -> Iterator[str]:
    image = stores.image
    for layer in ("segmentation", "labels") if image is not None else ():
        volume = stores.volumes.get(layer)
        if volume is None or image is None:
            continue
        if not np.allclose(volume.voxel_size_nm, image.voxel_size_nm, rtol=1e-3):
            yield (
                f"{layer} {volume.path} has voxels of {_nm(volume)} nm (zyx), the image {image.path} of {_nm(image)}: "
                "it may be of another image"
            )
            continue
        covered, there = _box(stores, layer), _box(stores, "image")
        if not there.contains(covered):
            yield (
                f"{layer} {volume.path} covers {covered} (zyx), and the image {image.path} is {there}: "
                f"it may be of another image{', or begin elsewhere (--offset)' if layer == 'segmentation' else ''}"
            )


def _made_of_others(stores: OpenStores) -> Iterator[str]:
    for what in ("meshes", "skeletons"):
        folder = getattr(stores, what)
        made = made_of(folder) if folder is not None else None
        if made is not None and stores.segmentation is not None and not one_store(made, str(stores.segmentation.path)):
            yield f"{what} {folder} were made of {made}, and not of the segmentation {stores.segmentation.path}"


def _synapses(stores: OpenStores) -> Iterator[str]:
    volume, synapses = stores.segmentation, stores.synapses
    if volume is None or synapses is None or not np.allclose(volume.voxel_size_nm, stores.grid.voxel_size_nm):
        return
    partners = synapses.partners.reshape(-1)
    known = np.flatnonzero(partners)
    chosen = np.sort(np.random.default_rng(0).permutation(known)[:ENDS])
    looked = right = 0
    try:
        read = open_reader(volume)
    except DataError:
        return  # the viewer says it
    for end in chosen:
        voxel = np.floor(synapses.lines.reshape(-1, 3)[end, ::-1]).astype(int)
        found = _id_at(volume, read, voxel - np.round(stores.begin("segmentation")).astype(int))
        if found is not None:
            looked, right = looked + 1, right + (found == int(partners[end]))
    if looked and right < SHARE * looked:
        yield (
            f"of {looked} ends of synapses that were looked up in {volume.path}, {right} lie in the object that the "
            "table names: the synapses seem to be of another segmentation"
        )
    elif len(chosen) and not looked:
        yield f"the synapses lie outside of the segmentation {volume.path}: they seem to be of another one"


def _id_at(volume: ShownVolume, read: Reader, place: NDArray[np.int64]) -> int | None:
    """The id at a voxel of the volume; None outside of it, or where it cannot be read."""
    if np.any(place < 0) or np.any(place >= volume.shape):
        return None
    z, y, x = (int(n) for n in place)
    try:
        return int(read(Box.of((z, y, x), (1, 1, 1)))[0, 0, 0])
    except DataError:
        return None  # the viewer shows what is damaged as missing


def _box(stores: OpenStores, layer: str) -> Box:
    z, y, x = (round(begin) for begin in stores.begin(layer))
    return Box.of((z, y, x), stores.volumes[layer].shape)


def _nm(volume: ShownVolume) -> str:
    return " x ".join(f"{size:g}" for size in volume.voxel_size_nm)
