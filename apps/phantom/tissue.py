"""What a block of tissue holds, told sparsely: centre lines, cell bodies, vessels, resin.  Windows are filled later.

The plan of a block takes about a thousandth of the memory of its voxels.  What a window shows depends on the plan, the
seed and the window's place alone, so that a block of any size is made window by window, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box, Triple
from apps.phantom.design import PhantomDesign
from apps.phantom.fields import Floats, PlacedNoise, paint_balls, stream
from apps.phantom.neurites import absorb_fragments, points_of, power_cells
from apps.phantom.paths import Path, filling_paths, thin_paths, vessel_paths

Cells = NDArray[np.int32]

_SEEN = 64  # voxels around a window from which centre lines can reach into it
_MARGIN = 16  # voxels around a window that are filled with it, so that slivers at its border are seen whole
_ATTEMPTS = 50  # places tried for one cell body
_APART = 1.1  # radii between the middles of two cell bodies, each counted with its own
_SOMA_SURFACE, _SOMA_UNEVENNESS = 10.0, 0.06  # length and height (in radii) of the bumps of a cell body
_RESIN_UNEVENNESS = 0.3  # of the width of the resin


@dataclass(frozen=True)
class Soma:
    """A cell body: `centre` zyx and `radius` in voxels, and the neurite that it belongs to."""

    centre: NDArray[np.float64]
    radius: float
    neurite: int


@dataclass(frozen=True)
class Tissue:
    """The plan of a block.

    Attributes:
        shape: in voxels, zyx.
        seed, design: of which all follows.
        filling, thin: centre lines; the numbers of their neurites go from 1 to `neurites`.
        somata, vessels: what else there is.
        neurites: how many there are.
    """

    shape: Triple
    seed: int
    design: PhantomDesign
    filling: list[Path]
    thin: list[Path]
    somata: list[Soma]
    vessels: list[Path]
    neurites: int

    @property
    def vessel(self) -> int:
        """The number of the cells that are vessel, which no neurite has."""
        return self.neurites + 1

    @property
    def outside(self) -> int:
        """The number of the cells that are resin."""
        return self.neurites + 2

    def noise(self, window: Box) -> PlacedNoise:
        return PlacedNoise(self.seed, window)


def plan_tissue(shape: Triple, seed: int, design: PhantomDesign) -> Tissue:
    """Draw what a block of `shape` (zyx) holds."""
    filling = filling_paths(stream(seed, "neurites"), shape, design)
    count = max(path.neurite for path in filling)
    thin = thin_paths(stream(seed, "thin processes"), shape, design, first=count + 1)
    vessels = vessel_paths(stream(seed, "vessels"), shape, design)
    return Tissue(
        shape=shape,
        seed=seed,
        design=design,
        filling=filling,
        thin=thin,
        somata=_place_somata(stream(seed, "somata"), shape, design, filling, vessels),
        vessels=vessels,
        neurites=count + len(thin),
    )


def _place_somata(
    rng: np.random.Generator, shape: Triple, design: PhantomDesign, paths: list[Path], vessels: list[Path]
) -> list[Soma]:
    """Cell bodies on neurites' centre lines, one a neurite at most; fewer than asked for where there is no room."""
    somata: list[Soma] = []

    def free(centre: NDArray[np.float64], radius: float, neurite: int) -> bool:
        if any(
            ((v.points - centre) ** 2).sum(axis=1).min() < (_APART * (v.radius.max() + radius)) ** 2 for v in vessels
        ):
            return False
        return all(
            s.neurite != neurite and np.linalg.norm(s.centre - centre) > _APART * (s.radius + radius) for s in somata
        )

    for _ in range(round(design.somata * float(np.prod(shape)) / 1e6)):
        for _ in range(_ATTEMPTS):
            path = paths[rng.integers(len(paths))]
            centre = path.points[rng.integers(len(path.points))]
            radius = float(rng.uniform(*design.soma_diameter)) / 2
            if np.all((centre >= 0) & (centre < shape)) and free(centre, radius, path.neurite):
                somata.append(Soma(centre, radius, path.neurite))
                break
    return somata


def fill_cells(tissue: Tissue, core: Box) -> Cells:
    """int32, of the shape of `core`: which neurite, vessel or resin holds each voxel, membranes included."""
    whole = Box.of((0, 0, 0), tissue.shape)
    window = core.grow((_MARGIN,) * 3).intersection(whole)
    points, radii, owners = _seen(tissue.filling, window)
    cells = power_cells(tissue.noise(window), window, points, radii, owners)
    if tissue.thin:
        points, radii, owners = _seen(tissue.thin, window)
        _, owner = paint_balls(window.shape, points - window.offset, radii, owners)
        np.copyto(cells, owner, where=owner > 0)
    if tissue.somata:
        _, neurite = soma_distance(tissue, window)
        np.copyto(cells, neurite, where=neurite > 0)
    if tissue.vessels:
        cells[vessel_distance(tissue, window) < 1] = tissue.vessel
    if tissue.design.resin:
        cells[_is_resin(tissue, window)] = tissue.outside
    cells = absorb_fragments(cells, tissue.design.smallest_object)
    return np.ascontiguousarray(cells[core.slices(window.offset)])


def soma_distance(tissue: Tissue, window: Box) -> tuple[Floats, Cells]:
    """Distance from the nearest cell body's middle in its radii (float32, 1 beyond it), and its neurite or 0."""
    distance, neurite = np.ones(window.shape, np.float32), np.zeros(window.shape, np.int32)
    near = [soma for soma in tissue.somata if not _around(soma).intersection(window).empty]
    if not near:
        return distance, neurite
    bumps = np.float32(_SOMA_UNEVENNESS) * tissue.noise(window).smooth("soma surface", _SOMA_SURFACE)
    for soma in near:
        part = _around(soma).intersection(window)
        grid = np.ogrid[part.slices()]
        squares = [((axis - c) / soma.radius) ** 2 for axis, c in zip(grid, soma.centre, strict=True)]
        inside = part.slices(window.offset)
        far = np.sqrt(squares[0] + squares[1] + squares[2]).astype(np.float32) + bumps[inside]
        nearer = far < distance[inside]
        distance[inside][nearer] = far[nearer]
        neurite[inside][nearer] = soma.neurite
    return distance, neurite


def _around(soma: Soma) -> Box:
    """The box that holds a cell body and its bumps."""
    reach = 1.3 * soma.radius
    low, high = np.floor(soma.centre - reach).astype(int), np.ceil(soma.centre + reach).astype(int) + 1
    return Box.between((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def vessel_distance(tissue: Tissue, window: Box) -> Floats:
    """float32: distance from a vessel's centre line in its radii; 1 outside of vessels."""
    points, radii, owners = _seen(tissue.vessels, window)
    distance, _ = paint_balls(window.shape, points - window.offset, radii, owners)
    return distance


def _is_resin(tissue: Tissue, window: Box) -> NDArray[np.bool_]:
    width = tissue.design.resin
    edge = [
        np.minimum(np.arange(a, b), extent - 1 - np.arange(a, b)).astype(np.float32)
        for a, b, extent in zip(window.offset[1:], window.end[1:], tissue.shape[1:], strict=True)
    ]
    bumps = tissue.noise(window).smooth("resin surface", max(8.0, width / 2))
    resin: NDArray[np.bool_] = (
        np.minimum(edge[0][:, None], edge[1]) + np.float32(_RESIN_UNEVENNESS * width) * bumps < width
    )
    return resin


def _seen(paths: list[Path], window: Box) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Points, radii and numbers of the centre lines that can reach into `window`."""
    points, radii, owners = points_of(paths)
    wide = window.grow((_SEEN,) * 3)
    near = np.all((points >= wide.offset) & (points < wide.end), axis=1)
    return points[near], radii[near], owners[near]
