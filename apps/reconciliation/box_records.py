"""What is known of a write box whose voxels are there: a file while boxes are written, then a row of the manifest."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Meta
from numpy.typing import NDArray

from apps.core.files import settled
from apps.core.parameters import Parameters

# In the manifest's metadata: identity of the solution that the volume was written by, and where the volume is.
SOLUTION, OUTPUT = b"solution", b"output"


class BoxRecord(Parameters, frozen=True, kw_only=True):
    """A write box whose voxels are there."""

    subvolume: Annotated[int, Meta(description="its number")]
    identity: Annotated[str, Meta(description="hash of what the voxels depend on")]
    sha256: Annotated[str, Meta(description="of the voxels, uint64 in C order, little-endian")]
    voxels: Annotated[int, Meta(description="of the box")]
    filled: Annotated[int, Meta(description="of those, the ones that are of an object")]
    by_neighbours: Annotated[int, Meta(description="of those, the ones that a neighbour filled, and not its own")]
    objects: Annotated[int, Meta(description="objects in the box")]


def written_by(manifest: Path) -> str | None:
    """Identity of the solution that the volume of a manifest is of; None where there is no manifest that says so."""
    return _said(manifest, SOLUTION)


def place_from(manifest: Path, output: Path) -> str:
    """Where a volume is, as seen from the folder of its manifest; it stays when both are moved together."""
    return os.path.relpath(settled(output), manifest.parent.resolve())


def is_of(manifest: Path, output: Path) -> bool:
    """Whether a manifest that is there may be of the volume of that name; one that is damaged, or old, does not say."""
    return _said(manifest, OUTPUT) in (None, place_from(manifest, output))


def _said(manifest: Path, name: bytes) -> str | None:
    try:
        metadata = pq.read_schema(manifest).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata[name].decode() if name in metadata else None


@dataclass(frozen=True)
class EarlierRecords:
    """The records of a manifest, which has them in the order of their subvolumes; as columns, for there are many."""

    table: pa.Table

    @classmethod
    def read(cls, manifest: Path) -> EarlierRecords:
        """Those of a file; none where there is no file, or it is damaged: then nothing of before is taken over."""
        names = list(BoxRecord.__struct_fields__)
        try:
            return cls(pq.read_table(manifest, columns=names).combine_chunks())
        except (OSError, pa.ArrowException):
            return cls(pa.table({name: [] for name in names}))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def identity(self, number: int) -> str | None:
        """Of the record of a subvolume; None where there is none."""
        return self._value("identity", number) if self._has(number) else None

    def record(self, number: int) -> BoxRecord | None:
        """The record of a subvolume; None where there is none."""
        if not self._has(number):
            return None
        return BoxRecord(**{name: self._value(name, number) for name in BoxRecord.__struct_fields__})

    def _has(self, number: int) -> bool:
        return number < len(self) and int(self._numbers[number]) == number

    def _value(self, name: str, number: int) -> Any:
        return self.table.column(name)[number].as_py()

    @cached_property
    def _numbers(self) -> NDArray[np.int64]:
        return np.asarray(self.table.column("subvolume").to_numpy(), np.int64)
