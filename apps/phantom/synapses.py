"""Synapses: where two neurites touch over a wide, flat patch, one of them gets vesicles, and the other a dense sheet.

All lengths are in voxels of the tissue, zyx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apps.core.boxes import Box
from apps.phantom.fields import Floats, stream
from apps.phantom.rendering import add_vesicles
from apps.phantom.tissue import Cells, Tissue

_TRIES = 200  # random voxels looked at for one synapse: most lie in no sheet, or in one that is not flat
_FLAT = 0.6  # of the disc of a cleft that has to be contact between the two
_ROOM_BEFORE, _INTO_BEFORE = 4.0, 7.0  # depth that vesicles need, and how far from the sheet it is asked for
_INTO_AFTER = 2.5  # beyond the membrane, where the partner behind the cleft is asked for
_BODY = 1.3  # radii of a cell body from its middle, within which it is no synapse's side before
_APART = 26.0  # between the middles of two synapses
_CLOUD = (3.0, 17.0)  # from the sheet: where the vesicles lie
_VESICLES, _DARKENING = 50, 90.0  # in a cloud, and grey levels in the middle of one
_DENSER = 14.0  # grey levels by which the cytoplasm among the vesicles is darker
_CLEFT_DEPTH, _DENSITY_DEPTH, _ACTIVE_DEPTH = 1.5, 4.0, 2.5  # from the sheet, on either side; after it; before it
_BENT = 6.0  # from the plane of a cleft that is not quite flat
_CLEFT_GREY, _DENSITY_GREY, _ACTIVE_GREY = 96.0, 50.0, 64.0
REACH = 32  # voxels from its middle within which a synapse is seen


@dataclass(frozen=True)
class Synapses:
    """n synapses, told by arrays.

    Attributes:
        centre: float64 [n, 3], the middle of the cleft.
        normal: float64 [n, 3], of length 1, from before to after.
        radius: float64 [n], of the cleft.
        cells: int32 [n, 2], the neurites before and after (pre, post).
        partners: float64 [n, 2, 3], a point inside of either.
    """

    centre: NDArray[np.float64]
    normal: NDArray[np.float64]
    radius: NDArray[np.float64]
    cells: Cells
    partners: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.radius)

    def take(self, chosen: NDArray[np.intp]) -> Synapses:
        return Synapses(
            self.centre[chosen], self.normal[chosen], self.radius[chosen], self.cells[chosen], self.partners[chosen]
        )

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The attributes, in their order."""
        return self.centre, self.normal, self.radius, self.cells, self.partners

    @classmethod
    def join(cls, parts: list[Synapses]) -> Synapses:
        return cls(
            np.concatenate([part.centre for part in parts]),
            np.concatenate([part.normal for part in parts]),
            np.concatenate([part.radius for part in parts]),
            np.concatenate([part.cells for part in parts]),
            np.concatenate([part.partners for part in parts]),
        )

    @classmethod
    def none(cls) -> Synapses:
        return cls(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros((0, 2), np.int32), np.zeros((0, 2, 3)))


def find_synapses(tissue: Tissue, core: Box, window: Box, cells: Cells, depth: Floats) -> Synapses:
    """Places for synapses in `core`; `cells` and `depth` are of the `window` around it.

    They may be too close to each other, and a partner may belong to no object: `thin_out`, and the labels, tell.
    """
    rng = stream(tissue.seed, "synapses", *core.offset)
    found = [
        place
        for _ in range(int(rng.poisson(tissue.design.synapses * core.size / 1e6)))
        if (place := _find_one(rng, tissue, core, window, cells, depth)) is not None
    ]
    return Synapses.join(found) if found else Synapses.none()


def _find_one(
    rng: np.random.Generator, tissue: Tissue, core: Box, window: Box, cells: Cells, depth: Floats
) -> Synapses | None:
    radius = rng.uniform(*tissue.design.synapse_diameter) / 2
    first_is_before = rng.random() < 0.5
    begin = [a - b for a, b in zip(core.offset, window.offset, strict=True)]
    end = [a + n for a, n in zip(begin, core.shape, strict=True)]
    for voxel in rng.integers(begin, end, (_TRIES, 3)):
        if depth[tuple(voxel)] >= 1:
            continue
        contact = _contact(cells, voxel, radius, tissue.neurites)
        if contact is None:
            continue
        centre, normal, pair = contact
        if not first_is_before:
            normal, pair = -normal, pair[::-1]
        thickness = tissue.design.membrane_thickness / 2
        if _is_soma(tissue, centre + window.offset, pair[0]):
            continue
        before, after = centre - _INTO_BEFORE * normal, centre + (thickness + _INTO_AFTER) * normal
        if _inside(cells, depth, before, pair[0], max(_ROOM_BEFORE, thickness + 1)) and _inside(
            cells, depth, after, pair[1], thickness
        ):
            partners = np.array([[before, after]]) + window.offset
            return Synapses(
                centre[None] + window.offset,
                normal[None],
                np.array([radius]),
                np.array([pair], np.int32),
                partners,
            )
    return None


def _is_soma(tissue: Tissue, place: NDArray[np.float64], neurite: int) -> bool:
    """True where a neurite is, at that place, the cell body, which sends no signals there."""
    return any(s.neurite == neurite and np.linalg.norm(place - s.centre) < _BODY * s.radius for s in tissue.somata)


def _inside(cells: Cells, depth: Floats, point: NDArray[np.float64], cell: int, least: float) -> bool:
    voxel = np.rint(point).astype(int)
    if (voxel < 0).any() or (voxel >= cells.shape).any():
        return False
    return bool(cells[tuple(voxel)] == cell and depth[tuple(voxel)] >= least)


def _contact(
    cells: Cells, voxel: NDArray[np.intp], radius: float, neurites: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, int]] | None:
    """Middle, normal and the two cells of a contact at `voxel` that is flat over a disc of `radius`; None elsewhere."""
    reach = int(np.ceil(radius)) + 2
    low, high = voxel - reach, voxel + reach + 1
    if (low < 0).any() or (high > cells.shape).any():
        return None
    part = cells[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    middle = (reach,) * 3
    own = int(part[middle])
    beside = {
        int(part[tuple(np.add(middle, step))]) for axis in range(3) for step in (_step(axis, 1), _step(axis, -1))
    } - {own}
    if len(beside) != 1:
        return None
    other = beside.pop()
    if not (1 <= own <= neurites and 1 <= other <= neurites):
        return None
    grid = np.moveaxis(np.indices(part.shape), 0, -1) - reach
    near = (grid**2).sum(axis=-1) <= radius**2
    a, b = part == own, part == other
    touching = np.zeros_like(a)
    for axis in range(3):
        for step in (1, -1):
            touching |= a & np.roll(b, step, axis)
    sheet = grid[touching & near]
    if len(sheet) < _FLAT * np.pi * radius**2 or not (b & near).any():
        return None
    normal = grid[b & near].mean(axis=0) - grid[a & near].mean(axis=0)
    normal /= np.linalg.norm(normal)
    return voxel + 0.5 * normal, normal, (own, other)


def _step(axis: int, by: int) -> tuple[int, int, int]:
    return (by * (axis == 0), by * (axis == 1), by * (axis == 2))


def thin_out(synapses: Synapses) -> NDArray[np.intp]:
    """Which of `synapses` stay when no two may be closer than a synapse is wide: the first ones."""
    dropped = np.zeros(len(synapses), bool)
    if len(synapses) > 1:
        for first, second in sorted(cKDTree(synapses.centre).query_pairs(_APART)):
            dropped[second] |= not dropped[first]
    return np.flatnonzero(~dropped)


def near_window(synapses: Synapses, window: Box) -> NDArray[np.intp]:
    """Which of `synapses` can be seen in `window`."""
    wide = window.grow((REACH,) * 3)
    return np.flatnonzero(np.all((synapses.centre >= wide.offset) & (synapses.centre < wide.end), axis=1))


def add_clouds(
    tissue: Tissue, image: Floats, window: Box, cells: Cells, depth: Floats, synapses: Synapses
) -> NDArray[np.uint32]:
    """Draw the vesicles of all `synapses` that are seen in `window` into `image`; their clouds, by number from 1."""
    clouds = np.zeros(window.shape, np.uint32)
    room = depth > tissue.design.membrane_thickness / 2 + 1
    for number in near_window(synapses, window):
        part, inside = _seen_part(synapses, number, window)
        along, across = _frame(synapses, number, part)
        before = (cells[inside] == synapses.cells[number, 0]) & room[inside]
        cylinder = (-along >= _CLOUD[0]) & (-along <= _CLOUD[1]) & (across <= synapses.radius[number])
        clouds[inside][before & cylinder] = number + 1
        image[inside][before & cylinder] -= _DENSER
        centres = _draw_cloud(tissue.seed, synapses, number) - part.offset
        add_vesicles(image[inside], centres, before, _DARKENING)
    return clouds


def _draw_cloud(seed: int, synapses: Synapses, number: np.intp) -> NDArray[np.float64]:
    """Centres [vesicles, 3] in the cylinder before a cleft."""
    centre, normal = synapses.centre[number], synapses.normal[number]
    rng = stream(seed, "synaptic vesicles", *np.rint(centre).astype(int).tolist())
    away = rng.uniform(*_CLOUD, _VESICLES)
    side = rng.standard_normal((_VESICLES, 3))
    side -= (side @ normal)[:, None] * normal
    side *= (synapses.radius[number] * np.sqrt(rng.random(_VESICLES)) / np.linalg.norm(side, axis=1))[:, None]
    found: NDArray[np.float64] = centre - away[:, None] * normal + side
    return found


def add_clefts(image: Floats, window: Box, cells: Cells, depth: Floats, synapses: Synapses) -> NDArray[np.uint32]:
    """Draw cleft and densities of all `synapses` seen in `window` into `image`; the clefts, by number from 1."""
    clefts = np.zeros(window.shape, np.uint32)
    for number in near_window(synapses, window):
        part, inside = _seen_part(synapses, number, window)
        along, across = _frame(synapses, number, part)
        disc = (across <= synapses.radius[number]) & (np.abs(along) <= _BENT)
        before, after = (disc & (cells[inside] == cell) for cell in synapses.cells[number])
        far = depth[inside]
        grey = image[inside]
        np.minimum(grey, np.float32(_DENSITY_GREY), out=grey, where=after & (far < _DENSITY_DEPTH))
        np.minimum(grey, np.float32(_ACTIVE_GREY), out=grey, where=before & (far < _ACTIVE_DEPTH))
        sheet = (before | after) & (far <= _CLEFT_DEPTH)
        grey[sheet & (far < 1)] = _CLEFT_GREY
        clefts[inside][sheet] = number + 1
    return clefts


def _seen_part(synapses: Synapses, number: np.intp, window: Box) -> tuple[Box, tuple[slice, slice, slice]]:
    """The part of `window` in which a synapse is seen, and the same as slices of the window's arrays."""
    low = np.floor(synapses.centre[number]).astype(int) - REACH
    part = Box.of((low[0], low[1], low[2]), (2 * REACH + 1,) * 3).intersection(window)
    return part, part.slices(window.offset)


def _frame(synapses: Synapses, number: np.intp, part: Box) -> tuple[Floats, Floats]:
    """Along the normal (signed) and across it: the distances of the voxels of `part` from the middle of a cleft."""
    z, y, x = (
        (axis - c).astype(np.float32) for axis, c in zip(np.ogrid[part.slices()], synapses.centre[number], strict=True)
    )
    nz, ny, nx = synapses.normal[number].astype(np.float32)
    along = z * nz + y * ny + x * nx
    return along, np.sqrt(np.maximum(z**2 + y**2 + x**2 - along**2, 0))
