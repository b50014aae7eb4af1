"""Small stores to look at: balls in a box, with their meshes, skeletons and synapses."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apps.core.volumes import VoxelSize, write_volume
from ensemble.viewing import Stores

VOXEL: VoxelSize = (16.0, 8.0, 8.0)
SHAPE = (32, 64, 64)
# id -> centre zyx and radius in voxels along z (twice that along y and x, so that they are balls in space).
BALLS = {3: ((12, 20, 20), 5), 2**53 - 1: ((20, 44, 40), 7)}


def ball_labels() -> NDArray[np.uint64]:
    """The balls as ids, zyx."""
    labels = np.zeros(SHAPE, np.uint64)
    z, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    for number, ((cz, cy, cx), radius) in BALLS.items():
        labels[(z - cz) ** 2 + ((y - cy) / 2) ** 2 + ((x - cx) / 2) ** 2 <= radius**2] = number
    return labels


def write_stores(folder: Path) -> Stores:
    """Write all kinds of stores; the image is noise, with the balls in it."""
    labels = ball_labels()
    noise = np.random.default_rng(5).integers(60, 120, SHAPE)
    write_volume(folder / "image.zarr", (noise + 100 * (labels > 0)).astype(np.uint8), VOXEL, (32, 32, 32))
    write_volume(folder / "objects.zarr", labels, VOXEL, (32, 32, 32))
    write_meshes(folder / "meshes")
    write_skeletons(folder / "skeletons")
    synapse_table(3).to_parquet(folder / "synapses.parquet")
    return Stores(
        image=str(folder / "image.zarr"),
        segmentation=str(folder / "objects.zarr"),
        labels=str(folder / "objects.zarr"),
        meshes=str(folder / "meshes"),
        skeletons=str(folder / "skeletons"),
        synapses=str(folder / "synapses.parquet"),
    )


def place_at(store: str, place_nm: tuple[float, float, float]) -> None:
    """Let the metadata of an OME-Zarr volume say that the corner of its first voxel is there, zyx."""
    file = Path(store) / "zarr.json"
    document = json.loads(file.read_text())
    for level in document["attributes"]["ome"]["multiscales"][0]["datasets"]:
        steps = [step for step in level["coordinateTransformations"] if step["type"] != "translation"]
        level["coordinateTransformations"] = [*steps, {"type": "translation", "translation": list(place_nm)}]
    file.write_text(json.dumps(document))


def write_meshes(folder: Path) -> None:
    """An octahedron for each ball, in nm from the corner of voxel 0, neuroglancer's legacy meshes."""
    folder.mkdir()
    (folder / "info").write_text(json.dumps({"@type": "neuroglancer_legacy_mesh"}))
    faces = [(a, b, c) for a in (0, 1) for b in (2, 3) for c in (4, 5)]
    for number, (centre, radius) in BALLS.items():
        middle = (np.array(centre[::-1]) + 0.5) * VOXEL[::-1]
        corners = [middle + sign * radius * VOXEL[0] * np.eye(3)[axis] for axis in range(3) for sign in (-1, 1)]
        content = struct.pack("<I", 6) + np.array(corners, "<f4").tobytes() + np.array(faces, "<u4").tobytes()
        (folder / f"{number}:0").write_text(json.dumps({"fragments": [f"{number}:0:all"]}))
        (folder / f"{number}:0:all").write_bytes(content)


def write_skeletons(folder: Path) -> None:
    """A line along x through the larger ball, in nm; the smaller has none, as small objects have."""
    folder.mkdir()
    unit = [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0]
    info = {"@type": "neuroglancer_skeletons", "transform": unit, "vertex_attributes": []}
    (folder / "info").write_text(json.dumps(info))
    number = max(BALLS)
    centre, radius = BALLS[number]
    middle = (np.array(centre[::-1]) + 0.5) * VOXEL[::-1]
    ends = [middle + sign * radius * VOXEL[0] * np.array([1, 0, 0]) for sign in (-1, 1)]
    content = struct.pack("<II", 2, 1) + np.array(ends, "<f4").tobytes() + np.array([0, 1], "<u4").tobytes()
    (folder / str(number)).write_bytes(content)


def synapse_table(count: int, seed: int = 0) -> pd.DataFrame:
    """Synapses from one ball to the other, at random places; the last is one whose partners are not known."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (count, 3)) * (np.array(SHAPE) - 1)
    pre, post = sorted(BALLS)
    table = pd.DataFrame({"id": np.arange(1, count + 1), **{a: centre[:, i] for i, a in enumerate("zyx")}})
    table["pre"] = np.full(count, pre, np.uint64)
    table["post"] = np.full(count, post, np.uint64)
    for end, move in (("pre", -2.0), ("post", 2.0)):
        for i, axis in enumerate("zyx"):
            table[f"{end}_{axis}"] = centre[:, i] + move * (axis == "x")
    for axis in "zyx":
        table[f"direction_{axis}"] = float(axis == "x")
    table["confidence"] = rng.uniform(0, 1, count)
    if count:
        table.loc[count - 1, ["pre", "post"]] = 0
    return table
