"""Writing volumes as google/ffn's training reads them: a 3-D dataset (zyx) of an HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.files import file_in_the_making
from apps.core.progress import Reporter
from apps.core.volumes import Volume

if TYPE_CHECKING:
    import h5py

_SUFFIXES = (".h5", ".hdf5", ".hdf")
_CHUNK = 64


def split_name(name: str) -> tuple[Path, str] | None:
    """File and dataset of `FILE.h5:DATASET`; None where `name` is no such."""
    file, _, dataset = name.rpartition(":")
    return (Path(file), dataset.strip("/")) if file.endswith(_SUFFIXES) and dataset.strip("/") else None


def write_dataset(name: str, source: Volume, box: Box, report: Reporter) -> None:
    """Write `box` of `source` as the dataset `FILE.h5:DATASET`, in slabs; the file's other datasets stay.

    A new file takes the place of the old one when it is complete.
    Raises DataError where the place is not writable, an existing file is not HDF5, or the name is one of its groups.
    """
    import h5py

    file, dataset = split_name(name) or _refuse(name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_in_the_making(file) as partial, h5py.File(partial, "w") as target:
            if file.exists():
                _copy_others(file, target, dataset)
            chunks = tuple(min(_CHUNK, n) for n in box.shape)
            made = target.create_dataset(dataset, box.shape, source.dtype, chunks=chunks, compression="gzip")
            for z in range(0, box.shape[0], _CHUNK):
                report(z, box.shape[0], "writing")
                slab = Box.of((z, 0, 0), (_CHUNK, *box.shape[1:])).intersection(Box.of((0, 0, 0), box.shape))
                made[slab.slices()] = source.read(slab.translate(box.offset))
    except (OSError, TypeError, ValueError, RuntimeError) as error:  # h5py's by what went wrong
        raise DataError(f"{name}: cannot be written ({error}); give a writable place and a free name") from error


def _copy_others(file: Path, target: h5py.File, dataset: str) -> None:
    """Copy what the file holds beside the dataset."""
    import h5py

    with h5py.File(file, "r") as old:
        if isinstance(old.get(dataset), h5py.Group):
            raise DataError(f"{file}:{dataset}: is a group of datasets; give the name of a dataset")
        for key, value in old.attrs.items():
            target.attrs[key] = value
        for key in old:
            if key != dataset:
                old.copy(key, target)
        if dataset in target:
            del target[dataset]


def _refuse(name: str) -> tuple[Path, str]:
    raise DataError(f"{name}: expected FILE.h5:DATASET")
