"""Centre lines of objects: TEASAR in a unit, and putting the lines of neighbouring units together.

Both are kimimaro's: TEASAR (Sato et al. 2000) with a rolling ball whose radius is `scale` times the distance to the
boundary, and a constant; where an object crosses the plane of voxels that two units share, both lines end in the same
voxel of it.  kimimaro is under the GPL and an extra of the installation: nothing imports it before it is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.core.volumes import VoxelSize
from apps.morphology.cutting import Cut
from apps.morphology.fragments import Fragment
from apps.skeletons.ticks import without_ticks

_HEAD = struct.Struct("<II")
# kimimaro's, of a cell body: one large ball around its middle swallows what would be spokes.
_SOMA_SCALE, _SOMA_CONSTANT_NM = 2.0, 300.0


@dataclass(frozen=True)
class Tracing:
    """TEASAR's parameters; see the stage's."""

    scale: float
    constant_nm: float
    dust_voxels: int
    soma_detection_nm: float
    soma_acceptance_nm: float


@dataclass(frozen=True)
class Cleaning:
    """What is taken away of lines that are put together; see the stage's parameters."""

    min_length_nm: float
    tick_nm: float


@dataclass(frozen=True)
class Line:
    """The centre line of an object: a forest.

    Attributes:
        nodes: float64 [n, 3], zyx in voxels; whole numbers are the middles of voxels.
        radius_nm: float32 [n], the distance to the object's boundary.
        edges: int64 [m, 2], node numbers.
    """

    nodes: NDArray[np.float64]
    radius_nm: NDArray[np.float32]
    edges: NDArray[np.int64]

    def length_nm(self, size: VoxelSize) -> float:
        """The sum of the edges' lengths."""
        steps = (self.nodes[self.edges[:, 0]] - self.nodes[self.edges[:, 1]]) * np.array(size)
        return float(np.linalg.norm(steps, axis=1).sum())

    def places_nm(self, size: VoxelSize) -> NDArray[np.float64]:
        """[n, 3], xyz in nm from the corner of the volume's first voxel on."""
        return ((self.nodes + 0.5) * np.array(size))[:, ::-1]


def trace_unit(cut: Cut, size: VoxelSize, how: Tracing) -> list[Fragment]:
    """The centre lines of a unit's objects; one without any is there with no bytes, so that its voxels count."""
    import kimimaro

    found: dict[int, Any] = kimimaro.skeletonize(
        cut.labels.T,
        teasar_params={
            "scale": how.scale,
            "const": how.constant_nm,
            "soma_detection_threshold": how.soma_detection_nm,
            "soma_acceptance_threshold": how.soma_acceptance_nm,
            "soma_invalidation_scale": _SOMA_SCALE,
            "soma_invalidation_const": _SOMA_CONSTANT_NM,
        },
        anisotropy=size[::-1],
        dust_threshold=how.dust_voxels,
        progress=False,
        fix_borders=True,
        fix_branching=True,
        parallel=1,
    )
    fragments = []
    for number, (identifier, voxels) in enumerate(zip(cut.ids.tolist(), cut.voxels.tolist(), strict=True), start=1):
        data = b""
        # What lies in the shared plane alone is the neighbour's.
        if number in found and voxels:
            skeleton = found[number]
            places = np.rint(skeleton.vertices.astype(np.float64) / np.array(size[::-1]))[:, ::-1]
            data = encode(places.astype(np.int64) + np.array(cut.box.offset), skeleton.radii, skeleton.edges)
        fragments.append(Fragment(identifier, voxels, data))
    return fragments


def encode(voxels: NDArray[np.int64], radius_nm: NDArray[Any], edges: NDArray[Any]) -> bytes:
    """A unit's line of one object: voxels [n, 3] zyx, radius [n], edges [m, 2]."""
    body = voxels.astype("<i8").tobytes() + radius_nm.astype("<f4").tobytes() + edges.astype("<u4").tobytes()
    return _HEAD.pack(len(voxels), len(edges)) + body


def decode(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Voxels, radius and edges of `encode`.  Raises DataError where the bytes are damaged."""
    nodes, edges = _HEAD.unpack_from(data) if len(data) >= _HEAD.size else (-1, 0)
    if len(data) != _HEAD.size + 28 * nodes + 8 * edges:
        raise DataError(f"a line of {len(data)} bytes is damaged; make it again")
    voxels = np.frombuffer(data, "<i8", 3 * nodes, _HEAD.size).reshape(-1, 3)
    radius = np.frombuffer(data, "<f4", nodes, _HEAD.size + 24 * nodes)
    pairs = np.frombuffer(data, "<u4", 2 * edges, _HEAD.size + 28 * nodes).reshape(-1, 2)
    return voxels.astype(np.int64), radius.astype(np.float32), pairs.astype(np.int64)


def joined(fragments: Iterable[bytes], size: VoxelSize, how: Cleaning) -> Line | None:
    """One line of those of several units, cleaned; None where nothing is left.

    Ends in the same voxel become one node.  Then, by kimimaro, pieces up to `min_length_nm` go, loops are opened, and
    pieces nearer to each other than their radii are connected.  Last, side branches up to `tick_nm` go.
    """
    import kimimaro
    from kimimaro.post import Skeleton

    parts = [decode(data) for data in fragments]
    if not parts:
        return None
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    voxels = np.concatenate([part[0] for part in parts])
    radius = np.concatenate([part[1] for part in parts])
    edges = np.concatenate([part[2] + start for part, start in zip(parts, starts, strict=False)])
    nodes, number = np.unique(voxels, axis=0, return_inverse=True)
    # Either unit sees no boundary past its end, so the smaller of two radii is nearer to the truth.
    smallest = np.full(len(nodes), np.inf, np.float32)
    np.minimum.at(smallest, number.reshape(-1), radius)
    pairs = np.sort(number.reshape(-1)[edges], axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    first, resolution = nodes.min(axis=0), np.array(size)
    # kimimaro counts in single precision: from the object's own corner on that is enough.
    rough = Skeleton(
        ((nodes - first) * resolution).astype(np.float32), pairs.astype(np.uint32), smallest, space="physical"
    )
    clean = kimimaro.postprocess(rough, dust_threshold=how.min_length_nm, tick_threshold=0)
    if clean.empty() or not len(clean.edges):
        return None
    places, edges = clean.vertices.astype(np.float64), clean.edges.astype(np.int64)
    kept = without_ticks(places, edges, how.tick_nm)
    number = np.cumsum(kept) - 1
    edges = number[edges[kept[edges].all(axis=1)]]
    return Line(places[kept] / resolution + first, clean.radii[kept].astype(np.float32), edges)
