"""Centre lines of the phantom's neurites: correlated random walks through the box, some branching off others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apps.core.boxes import Triple
from apps.phantom.design import PhantomDesign

STEP = 2.0  # voxels between two points of a path
MARGIN = 16.0  # voxels around the box in which paths still run, so that the box's border is like its inside
_CANDIDATES = 6  # start points drawn for one path; the one farthest from all earlier paths is taken
_REBUILD = 4  # a tree of the points of all paths is made anew when a quarter of them is not in it
_INNER = 0.6  # of the box's extent, in which the vessels' starts lie
_VESSEL_TORTUOSITY, _VESSEL_VARIATION = 0.1, 0.05
_PERSISTENCE = 0.9  # of the bending from step to step: neurites curve, they do not jitter

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Path:
    """One centre line: `points` [n, 3] zyx in voxels, `radius` [n], and the number (from 1) of its neurite.

    `origin` is the point (index of an earlier path, index in it) that a branch begins at; None of a path of its own.
    """

    points: Points
    radius: NDArray[np.float64]
    neurite: int
    origin: tuple[int, int] | None = None


def filling_paths(rng: np.random.Generator, shape: Triple, design: PhantomDesign) -> list[Path]:
    """As many paths as fill a box of `shape` when each takes a cross-section of the design's calibre."""
    extent = np.asarray(shape) + 2 * MARGIN
    wanted = float(np.prod(extent)) / (np.pi / 4 * design.calibre**2)
    paths: list[Path] = []
    taken = _Taken()
    length, neurites = 0.0, 0
    while length < wanted or not paths:
        branch = bool(paths) and rng.random() < design.branching
        origin = None
        if branch:
            number = int(rng.integers(len(paths)))
            parent = paths[number]
            origin = number, int(rng.integers(len(parent.points)))
            start, neurite = parent.points[origin[1]], parent.neurite
        else:
            neurites += 1
            start, neurite = _free_point(rng, extent, taken), neurites
        points = _walk(rng, start, extent, design.tortuosity, both_ways=not branch)
        if len(points) < 2:
            continue
        radius = design.calibre / 2 * np.exp(design.calibre_variation * rng.standard_normal())
        radii = radius * _varicosities(rng, len(points), design.calibre_variation)
        paths.append(Path(points, radii, neurite, origin))
        taken.add(points)
        length += STEP * len(points)
    return paths


def thin_paths(rng: np.random.Generator, shape: Triple, design: PhantomDesign, first: int) -> list[Path]:
    """Thin processes, numbered from `first` on; `points` may lie in anything."""
    extent = np.asarray(shape) + 2 * MARGIN
    paths: list[Path] = []
    taken = _Taken()
    for number in range(round(design.thin_processes * float(np.prod(shape)) / 1e6)):
        points = _walk(rng, _free_point(rng, extent, taken), extent, design.tortuosity, both_ways=True)
        taken.add(points)
        radius = rng.uniform(*design.thin_diameter) / 2
        # Beads only: a thin process that narrows under its membranes would be cut into pieces.
        beads = np.maximum(1.0, _varicosities(rng, len(points), design.calibre_variation))
        paths.append(Path(points, radius * beads, first + number))
    return paths


def vessel_paths(rng: np.random.Generator, shape: Triple, design: PhantomDesign) -> list[Path]:
    """Blood vessels: nearly straight, far from each other, numbered from 1."""
    extent = np.asarray(shape) + 2 * MARGIN
    paths: list[Path] = []
    taken = _Taken()
    for number in range(1, design.vessels + 1):
        # Away from the border, so that the box holds a good part of it.
        start = extent / 2 - MARGIN + (_free_point(rng, extent, taken) + MARGIN - extent / 2) * _INNER
        points = _walk(rng, start, extent, _VESSEL_TORTUOSITY, both_ways=True)
        taken.add(points)
        radius = rng.uniform(*design.vessel_diameter) / 2
        paths.append(Path(points, radius * _varicosities(rng, len(points), _VESSEL_VARIATION), number))
    return paths


class _Taken:
    """The points of all paths so far, to be asked for distances while more are added: the tree is seldom rebuilt."""

    def __init__(self) -> None:
        self._tree: cKDTree | None = None
        self._known: list[Points] = []
        self._recent: list[Points] = []
        self._sizes = [0, 0]  # points in the tree and beside it

    def add(self, points: Points) -> None:
        if not len(points):
            return
        self._recent.append(points)
        self._sizes[1] += len(points)
        if self._sizes[1] > self._sizes[0] / _REBUILD:
            self._known, self._recent = self._known + self._recent, []
            self._tree = cKDTree(np.concatenate(self._known))
            self._sizes = [sum(self._sizes), 0]

    def distance(self, points: Points) -> NDArray[np.float64]:
        """Of every one of `points` to the nearest that is taken; infinite where none is."""
        nearest: NDArray[np.float64] = (
            np.full(len(points), np.inf) if self._tree is None else self._tree.query(points)[0]
        )
        for recent in self._recent:
            nearest = np.minimum(nearest, np.sqrt(((points[:, None] - recent) ** 2).sum(axis=2).min(axis=1)))
        return nearest


def _free_point(rng: np.random.Generator, extent: Points, taken: _Taken) -> Points:
    candidates = rng.random((_CANDIDATES, 3)) * extent - MARGIN
    return candidates[int(np.argmax(taken.distance(candidates)))]


def _walk(rng: np.random.Generator, start: Points, extent: Points, tortuosity: float, both_ways: bool) -> Points:
    """Points every `STEP` from where the path enters the box (with its margin) to where it leaves it."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    ahead = _half_walk(rng, start, direction, extent, tortuosity)
    if not both_ways:
        return ahead
    return np.concatenate([_half_walk(rng, start, -direction, extent, tortuosity)[:0:-1], ahead])


def _half_walk(rng: np.random.Generator, start: Points, heading: Points, extent: Points, tortuosity: float) -> Points:
    steps = int(2 * np.linalg.norm(extent) / STEP)
    kicks = rng.standard_normal((steps, 3)) * (tortuosity * (1 - _PERSISTENCE))
    point, bend, direction = start, np.zeros(3), heading
    points = []
    for kick in kicks:
        if ((point < -MARGIN) | (point >= extent - MARGIN)).any():
            break
        points.append(point)
        bend = _PERSISTENCE * bend + kick
        # The pull to the first heading keeps a path from coiling up in a ball.
        direction = direction + bend + 0.05 * (heading - direction)
        direction = direction / np.linalg.norm(direction)
        point = point + STEP * direction
    return np.asarray(points).reshape(-1, 3)


def _varicosities(rng: np.random.Generator, points: int, variation: float) -> NDArray[np.float64]:
    """Factor on the radius along a path: a smooth log-normal noise with a correlation length of 10 points."""
    width = 10
    noise = np.convolve(rng.standard_normal(points + 2 * width), np.hanning(2 * width + 1), mode="valid")
    factor: NDArray[np.float64] = np.exp(variation * noise / np.sqrt((np.hanning(2 * width + 1) ** 2).sum()))
    return factor
