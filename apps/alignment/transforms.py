"""Rigid motions and meshes of sections.  Points are float64 arrays [..., 2] of (y, x) pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Rigid:
    """p -> R p + shift, where R turns by `angle` (radians) from y towards x."""

    angle: float
    shift: tuple[float, float]

    @property
    def matrix(self) -> Points:
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.array([[c, -s], [s, c]])

    def __call__(self, points: Points) -> Points:
        moved: Points = points @ self.matrix.T + np.asarray(self.shift)
        return moved

    def inverse(self) -> Rigid:
        back = -(self.matrix.T @ np.asarray(self.shift))
        return Rigid(-self.angle, (float(back[0]), float(back[1])))

    def after(self, first: Rigid) -> Rigid:
        """The motion that does `first`, then this."""
        shift = self(np.asarray(first.shift))
        return Rigid(self.angle + first.angle, (float(shift[0]), float(shift[1])))


IDENTITY = Rigid(0.0, (0.0, 0.0))


def fit_rigid(source: Points, target: Points, weight: NDArray[np.float64]) -> Rigid:
    """The rigid motion that brings `source` [n, 2] nearest to `target` [n, 2], least squares (Kabsch in the plane)."""
    weight = weight / weight.sum()
    a, b = weight @ source, weight @ target
    (ay, ax), (by, bx) = (source - a).T, (target - b).T
    angle = math.atan2(float(weight @ (ay * bx - ax * by)), float(weight @ (ay * by + ax * bx)))
    shift = b - Rigid(angle, (0.0, 0.0))(a)
    return Rigid(angle, (float(shift[0]), float(shift[1])))


def fit_rigid_robustly(source: Points, target: Points, scale: float, rounds: int = 10) -> Rigid:
    """`fit_rigid` with weights that fall with the residual (Cauchy, from a large scale down to `scale` pixels)."""
    weight = np.ones(len(source))
    rigid = fit_rigid(source, target, weight)
    for _ in range(rounds):
        residual = np.hypot(*(rigid(source) - target).T)
        weight = 1 / (1 + (residual / max(scale, float(np.median(residual)))) ** 2)
        rigid = fit_rigid(source, target, weight)
    return rigid


@dataclass(frozen=True)
class Grid:
    """Displacements (y, x) [gy, gx, 2] at nodes `origin + (i, j) * spacing`; bilinear between, constant outside."""

    origin: float
    spacing: float
    values: Points

    def __call__(self, points: Points) -> Points:
        place = (points - self.origin) / self.spacing
        flat = place.reshape(-1, 2).T
        found = [map_coordinates(self.values[..., k], flat, order=1, mode="nearest") for k in (0, 1)]
        return np.stack(found, axis=-1).reshape(points.shape)


@dataclass(frozen=True)
class Mesh:
    """Where a section lies in the aligned volume: p -> rigid(p) + grid(p).

    Attributes:
        rigid: of the whole section.
        grid: what the springs add, in the aligned frame, at vertices on the section.
    """

    rigid: Rigid
    grid: Grid

    def __call__(self, points: Points) -> Points:
        return self.rigid(points) + self.grid(points)

    @property
    def vertices(self) -> Points:
        """[gy, gx, 2], positions on the section."""
        return grid_nodes(self.grid)

    def inverse(self, points: Points, tolerance: float = 1e-4, rounds: int = 50) -> Points:
        """The points of the section that lie at `points` of the aligned frame.

        By fixed-point iteration, which converges where the mesh is not folded; in a fold it gives one of the points.
        """
        back = self.rigid.inverse()
        found = back(points)
        for _ in range(rounds):
            following = back(points - self.grid(found))
            step = float(np.abs(following - found).max(initial=0.0))
            found = following
            if step < tolerance:
                break
        return found

    def deformation(self) -> Points:
        """Deformation gradient [gy - 1, gx - 1, 2, 2] of each mesh cell with the rotation still in it."""
        placed = self(self.vertices)
        along_y = (placed[1:, :-1] - placed[:-1, :-1] + placed[1:, 1:] - placed[:-1, 1:]) / (2 * self.grid.spacing)
        along_x = (placed[:-1, 1:] - placed[:-1, :-1] + placed[1:, 1:] - placed[1:, :-1]) / (2 * self.grid.spacing)
        return np.stack([along_y, along_x], axis=-1)

    def strain(self) -> tuple[float, float]:
        """Root mean square and largest |principal stretch - 1| over the cells."""
        stretch = np.linalg.svd(self.deformation(), compute_uv=False) - 1
        return float(np.sqrt(np.mean(stretch**2))), float(np.abs(stretch).max())

    def folds(self) -> int:
        """Number of cells with a corner at which the mesh is turned over."""
        placed = self(self.vertices)
        down, right = np.diff(placed, axis=0), np.diff(placed, axis=1)
        folded = np.zeros((placed.shape[0] - 1, placed.shape[1] - 1), bool)
        for dy in (slice(None, -1), slice(1, None)):
            for dx in (slice(None, -1), slice(1, None)):
                v, h = down[:, dx], right[dy, :]
                folded |= v[..., 0] * h[..., 1] - v[..., 1] * h[..., 0] <= 0
        return int(folded.sum())


def grid_nodes(grid: Grid) -> Points:
    """[gy, gx, 2], positions of a grid's nodes."""
    gy, gx = grid.values.shape[:2]
    y, x = np.meshgrid(np.arange(gy) * grid.spacing, np.arange(gx) * grid.spacing, indexing="ij")
    return np.stack([y, x], axis=-1) + grid.origin


def section_grid(shape: tuple[int, int], spacing: float) -> Grid:
    """A grid of zeros whose nodes cover a section of `shape` (H, W)."""
    gy, gx = (math.ceil((extent - 1) / spacing) + 1 for extent in shape)
    return Grid(0.0, spacing, np.zeros((max(gy, 2), max(gx, 2), 2)))
