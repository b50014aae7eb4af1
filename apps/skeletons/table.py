"""All skeletons in one .npz, as the evaluation reads them; written object by object."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.files import file_in_the_making
from apps.core.volumes import VoxelSize
from apps.morphology.precomputed import decode_skeleton

NPZ = "skeletons.npz"
Objects = Callable[[], Iterator[dict[str, Any]]]


def write_npz(folder: Path, objects: Objects, size: VoxelSize) -> None:
    """Write `skeletons.npz` from the precomputed skeletons in the folder; `objects` goes through their records anew.

    `nodes` float32 [n, 3] zyx in voxels (whole numbers: middles of voxels), `label` uint64 [n], `radius_nm` float32
    [n], `edges` int64 [m, 2].  Memory is one object, whatever their number.
    """
    nodes = sum(row["nodes"] for row in objects())
    edges = sum(row["edges"] for row in objects())
    members: dict[str, tuple[tuple[int, ...], str, Callable[[dict[str, Any], int], NDArray[Any]]]] = {
        "nodes": ((nodes, 3), "<f4", lambda row, first: _read(folder, row)[0][:, ::-1] / np.array(size) - 0.5),
        "label": ((nodes,), "<u8", lambda row, first: np.full(row["nodes"], row["id"], np.uint64)),
        "radius_nm": ((nodes,), "<f4", lambda row, first: _read(folder, row)[2]),
        "edges": ((edges, 2), "<i8", lambda row, first: _read(folder, row)[1].astype(np.int64) + first),
    }
    with file_in_the_making(folder / NPZ) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (shape, dtype, of) in members.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date: the same bytes every time
            with archive.open(entry, "w", force_zip64=True) as stream:
                head = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, head)
                first = 0
                for row in objects():
                    stream.write(np.ascontiguousarray(of(row, first), dtype=dtype).tobytes())
                    first += row["nodes"]


def _read(folder: Path, row: dict[str, Any]) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.float32]]:
    return decode_skeleton((folder / str(row["id"])).read_bytes())
