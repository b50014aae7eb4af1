"""The mesh of springs: how all sections of a window bend so that what was matched comes to lie together.

Each section is a grid of vertices on top of its rigid pose (Saalfeld et al., 2012).  Springs between neighbouring
vertices, and of each vertex to its rigid place, resist; matches pull, with Cauchy weights that let go of wrong ones.
For displacements small against the spacing the energy is quadratic: one sparse linear system over all sections, for y
and x alike, solved by conjugate gradients and reweighted.  The springs to the rigid place are what keeps errors from
adding up along z: whatever small error every pair makes in one direction is paid for in every section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import cg

from apps.alignment.poses import Pair
from apps.alignment.settings import SolveSettings
from apps.alignment.transforms import Grid, Mesh, Points

_TOLERANCE = 1e-6
_MOST_STEPS = 2000


@dataclass(frozen=True)
class _Layout:
    """Which unknowns are whose: vertex (i, j) of a free section is unknown first[section] + i * columns + j."""

    first: dict[int, int]
    unknowns: int


def solve_springs(
    free: Mapping[int, Mesh], fixed: Mapping[int, Mesh], pairs: Sequence[Pair], settings: SolveSettings
) -> dict[int, Mesh]:
    """The meshes of `free` bent; their rigid poses, and the meshes of `fixed`, stay as they are.

    Pairs with a section that is in neither are not looked at.
    """
    layout = _layout(free)
    known = {**fixed, **free}
    pairs = [pair for pair in pairs if pair.a in known and pair.b in known and (pair.a in free or pair.b in free)]
    rest = _springs(free, layout, settings)
    values = np.concatenate([mesh.grid.values.reshape(-1, 2) for mesh in free.values()])
    if pairs:
        jacobian, start, weight = _matches(pairs, free, fixed, layout)
        for _ in range(settings.iterations):
            residual = np.hypot(*(jacobian @ values + start).T)
            pull = weight / (1 + (residual / settings.robust_scale) ** 2)
            values = _solve(jacobian, start, pull, rest, values)
    else:
        values = np.zeros_like(values)
    bent = {}
    for section, mesh in free.items():
        shape, first = mesh.grid.values.shape, layout.first[section]
        part = values[first : first + shape[0] * shape[1]].reshape(shape)
        bent[section] = Mesh(mesh.rigid, Grid(mesh.grid.origin, mesh.grid.spacing, part))
    return bent


def residuals(pair: Pair, meshes: Mapping[int, Mesh]) -> NDArray[np.float64]:
    """[n] pixels: how far apart the matched points of a pair lie."""
    found: NDArray[np.float64] = np.hypot(*(meshes[pair.b](pair.second) - meshes[pair.a](pair.first)).T)
    return found


def _layout(free: Mapping[int, Mesh]) -> _Layout:
    first, total = {}, 0
    for section, mesh in free.items():
        first[section] = total
        total += mesh.grid.values.shape[0] * mesh.grid.values.shape[1]
    return _Layout(first, total)


def _springs(free: Mapping[int, Mesh], layout: _Layout, settings: SolveSettings) -> sparse.csr_array:
    """The springs' part of the normal matrix."""
    ends = [np.zeros((2, 0), np.int64)]
    for section, mesh in free.items():
        gy, gx = mesh.grid.values.shape[:2]
        number = layout.first[section] + np.arange(gy * gx).reshape(gy, gx)
        ends.append(np.stack([number[:-1].ravel(), number[1:].ravel()]))
        ends.append(np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()]))
    a, b = np.concatenate(ends, axis=1)
    row = np.arange(len(a))
    one = np.ones(len(a))
    difference = sparse.csr_array(
        (np.concatenate([-one, one]), (np.concatenate([row, row]), np.concatenate([a, b]))),
        shape=(len(a), layout.unknowns),
    )
    anchor = sparse.eye_array(layout.unknowns, format="csr")
    springs: sparse.csr_array = settings.stiffness * (difference.T @ difference) + settings.anchor * anchor
    return springs.tocsr()


def _matches(
    pairs: Sequence[Pair], free: Mapping[int, Mesh], fixed: Mapping[int, Mesh], layout: _Layout
) -> tuple[sparse.csr_array, Points, NDArray[np.float64]]:
    """(J, r, w): the matched points lie J u + r apart where the vertices of the free sections are moved by u."""
    rows, columns, entries, starts, weights = [], [], [], [], []
    count = 0
    for pair in pairs:
        start = np.zeros((len(pair.weight), 2))
        for section, points, sign in ((pair.a, pair.first, -1.0), (pair.b, pair.second, 1.0)):
            if section not in free:
                start += sign * fixed[section](points)
                continue
            start += sign * free[section].rigid(points)
            vertex, share = _corners(free[section].grid, points)
            rows.append(np.repeat(count + np.arange(len(points)), 4))
            columns.append(layout.first[section] + vertex.ravel())
            entries.append(sign * share.ravel())
        starts.append(start)
        weights.append(pair.weight / (pair.b - pair.a))  # what lies further apart has changed more
        count += len(pair.weight)
    jacobian = sparse.csr_array(
        (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), shape=(count, layout.unknowns)
    )
    return jacobian, np.concatenate(starts), np.concatenate(weights)


def _corners(grid: Grid, points: Points) -> tuple[NDArray[np.int64], Points]:
    """The four vertices [n, 4] around each point (number in its section) and their bilinear shares [n, 4]."""
    gy, gx = grid.values.shape[:2]
    place = np.clip((points - grid.origin) / grid.spacing, 0, [gy - 1, gx - 1])
    low = np.minimum(np.floor(place).astype(np.int64), [gy - 2, gx - 2])
    (y, x), (ty, tx) = low.T, (place - low).T
    vertex = np.stack([y * gx + x, y * gx + x + 1, (y + 1) * gx + x, (y + 1) * gx + x + 1], axis=1)
    return vertex, np.stack([(1 - ty) * (1 - tx), (1 - ty) * tx, ty * (1 - tx), ty * tx], axis=1)


def _solve(
    jacobian: sparse.csr_array, start: Points, pull: NDArray[np.float64], rest: sparse.csr_array, guess: Points
) -> Points:
    weighted = (jacobian.T * pull[None, :]).tocsr()
    normal = (weighted @ jacobian + rest).tocsr()
    right = -(weighted @ start)
    scale = sparse.diags_array(1 / normal.diagonal())
    found = []
    for axis in (0, 1):
        values, failed = cg(normal, right[:, axis], x0=guess[:, axis], rtol=_TOLERANCE, maxiter=_MOST_STEPS, M=scale)
        if failed:
            raise RuntimeError(f"the mesh of springs is not solved after {_MOST_STEPS} steps")
        found.append(values)
    return np.stack(found, axis=1)
