"""Neuroglancer's precomputed formats of meshes and skeletons, as bytes and metadata.

Places in them are nanometres, xyz, from the corner of the volume's first voxel on: voxel i fills i to i + 1 voxels.
The formats are described in neuroglancer's `src/datasource/precomputed` (mesh.rst, skeleton.rst, segment_properties).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.parameters import write_json

PROPERTIES = "segment_properties"
# Their list is one JSON file that a viewer reads whole.
_MOST_LISTED = 200_000


def encode_mesh(vertices: NDArray[np.float32], faces: NDArray[np.uint32]) -> bytes:
    """A legacy single-resolution mesh: vertices [n, 3] xyz in nm, faces [m, 3] of vertex numbers."""
    head = struct.pack("<I", len(vertices))
    return head + vertices.astype("<f4").tobytes() + faces.astype("<u4").tobytes()


def decode_mesh(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """Vertices and faces of `encode_mesh`.  Raises DataError where the bytes are no mesh."""
    count = struct.unpack_from("<I", data)[0] if len(data) >= 4 else -1
    first = 4 + 12 * count
    if count < 0 or len(data) < first or (len(data) - first) % 12:
        raise DataError(f"a mesh of {len(data)} bytes is damaged; make it again")
    vertices = np.frombuffer(data, "<f4", 3 * count, 4).reshape(-1, 3).astype(np.float32)
    return vertices, np.frombuffer(data, "<u4", offset=first).reshape(-1, 3).astype(np.uint32)


def encode_skeleton(vertices: NDArray[Any], edges: NDArray[Any], radius: NDArray[Any]) -> bytes:
    """A skeleton with the attribute radius: vertices [n, 3] xyz and radius [n] in nm, edges [m, 2]."""
    head = struct.pack("<II", len(vertices), len(edges))
    body = vertices.astype("<f4").tobytes() + edges.astype("<u4").tobytes()
    return head + body + radius.astype("<f4").tobytes()


def decode_skeleton(data: bytes) -> tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.float32]]:
    """Vertices, edges and radius of `encode_skeleton`.  Raises DataError where the bytes are no such skeleton."""
    count, edges = struct.unpack_from("<II", data) if len(data) >= 8 else (-1, 0)
    if len(data) != 8 + 16 * count + 8 * edges:
        raise DataError(f"a skeleton of {len(data)} bytes is damaged; make it again")
    vertices = np.frombuffer(data, "<f4", 3 * count, 8).reshape(-1, 3).astype(np.float32)
    pairs = np.frombuffer(data, "<u4", 2 * edges, 8 + 12 * count).reshape(-1, 2).astype(np.uint32)
    return vertices, pairs, np.frombuffer(data, "<f4", count, 8 + 12 * count + 8 * edges).astype(np.float32)


def mesh_info(listed: bool) -> dict[str, Any]:
    """The `info` of a folder of meshes; `listed` where it has segment properties."""
    info: dict[str, Any] = {"@type": "neuroglancer_legacy_mesh", "mip": 0, "lods": 1}
    return {**info, "segment_properties": PROPERTIES} if listed else info


def skeleton_info(listed: bool) -> dict[str, Any]:
    """The `info` of a folder of skeletons in nm with a radius for each vertex."""
    info: dict[str, Any] = {
        "@type": "neuroglancer_skeletons",
        "mip": 0,
        "transform": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
        "vertex_attributes": [{"id": "radius", "data_type": "float32", "num_components": 1}],
    }
    return {**info, "segment_properties": PROPERTIES} if listed else info


def write_properties(folder: Path, objects: Iterator[list[dict[str, Any]]], name: str, unit: str) -> bool:
    """List the objects for a viewer, with their voxels and the measure `name`; False where they are too many."""
    found: list[tuple[int, int, float]] = []
    for some in objects:
        found += [(row["id"], row["voxels"], row[name]) for row in some]
        if len(found) > _MOST_LISTED:
            return False
    found.sort()
    numbers = [("voxels", "", [row[1] for row in found]), (name, unit, [row[2] for row in found])]
    inline = {
        "ids": [str(row[0]) for row in found],
        "properties": [
            {"id": what, "type": "number", "data_type": "float32", "description": of, "values": values}
            for what, of, values in numbers
        ],
    }
    (folder / PROPERTIES).mkdir(exist_ok=True)
    write_json(folder / PROPERTIES / "info", {"@type": "neuroglancer_segment_properties", "inline": inline})
    return True
