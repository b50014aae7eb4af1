"""Solving all sections: windows of the stack one after the other, then what no match places, then the canvas.

Within a window all sections are solved at once.  A stack longer than a window streams: the next window holds what the
last one has finished and solves its last `overlap` sections again, so that memory stays bounded, there are no seams,
and a section that is added at the end changes the windows at the end only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from apps.alignment.misfit import Misfits
from apps.alignment.pairing import MatchedPair, matched_pairs
from apps.alignment.poses import Pair, between, solve_poses
from apps.alignment.settings import MatchSettings, SolveSettings
from apps.alignment.springs import residuals, solve_springs
from apps.alignment.stack import Stack
from apps.alignment.storage import StoredMesh, load_mesh, mesh_content, mesh_path, save_mesh
from apps.alignment.transforms import IDENTITY, Grid, Mesh, Points, Rigid, fit_rigid, section_grid
from apps.core.errors import StateError
from apps.core.parameters import json_hash
from apps.core.progress import Reporter

_ROUNDS = 2  # of poses and springs: the springs say better than the points how each section lies as a whole


@dataclasses.dataclass(frozen=True)
class TriedPair:
    """What became of a pair `a` < `b`; `residual` is the root mean square distance of its points, in pixels."""

    a: int
    b: int
    accepted: bool
    matches: int
    matched: float
    correlation: float
    coarse_correlation: float
    residual: float | None


@dataclasses.dataclass(frozen=True)
class Solution:
    """Where all sections lie; the meshes are on disk.

    Attributes:
        contents: hash of the mesh of each section with an image.
        aligned: which of them were placed by matches; the others lie where their neighbours put them.
        pairs: all that were tried.
        misfits: of the sections with matches, how far each misses the others, pixels (misfit.py).
        apart: sections at which the stack falls apart: no match connects them with an earlier one.
    """

    contents: dict[int, str]
    aligned: frozenset[int]
    pairs: list[TriedPair]
    misfits: dict[int, float]
    apart: tuple[int, ...]


def solve_stack(
    stack: Stack, matching: MatchSettings, settings: SolveSettings, output: Path, report: Reporter
) -> Solution:
    """Solve and write the meshes, those excepted that are there from the same matches and parameters.

    Raises StateError where a section has not been matched.
    """
    contents: dict[int, str] = {}
    tried: list[TriedPair] = []
    waiting: list[MatchedPair] = []  # those with a section that is not final
    held: dict[int, StoredMesh] = {}
    misfits = Misfits()
    read = start = stack.first
    while start <= stack.last:
        end = min(start + settings.window, stack.last + 1)
        final = end if end == stack.last + 1 else end - settings.overlap
        for section in range(read, end):
            waiting += matched_pairs(stack, section, matching, output)
            report(section - stack.first, len(stack.numbers), "solving")
        read = end
        solved = _solve_window(stack, range(start, end), final, waiting, held, matching, settings, output)
        contents |= {number: mesh.content for number, mesh in solved.items()}
        known = {number: mesh.mesh for number, mesh in (held | solved).items()}
        tried += [_outcome(pair, known, misfits) for pair in waiting if pair.b < final]
        waiting = [pair for pair in waiting if pair.b >= final]
        held = {number: mesh for number, mesh in (held | solved).items() if number >= final - settings.overlap}
        misfits.finish(range(stack.first, final - settings.overlap))
        start = final
    aligned = frozenset(contents)
    contents |= _place_the_rest(stack, sorted(aligned), matching, output)
    return Solution(contents, aligned, tried, misfits.finished(), _apart(aligned, tried))


def _solve_window(
    stack: Stack,
    window: range,
    final: int,
    pairs: Sequence[MatchedPair],
    held: Mapping[int, StoredMesh],
    matching: MatchSettings,
    settings: SolveSettings,
    output: Path,
) -> dict[int, StoredMesh]:
    """The meshes of the window's sections before `final` that matches place; `held` ones stay."""
    use = [
        pair for pair in pairs if pair.matches.accepted and pair.b in window and (pair.a in window or pair.a in held)
    ]
    placed = sorted({n for pair in use for n in (pair.a, pair.b) if n in window})
    if not placed:
        return {}
    identity = json_hash(
        [
            {key: value for key, value in settings.to_dict().items() if key not in ("window", "overlap")},
            matching.spacing,
            stack.shape(),
            placed,
            [pair.identity for pair in use],
            [held[number].content for number in sorted(held)],
        ]
    )
    kept = [number for number in placed if number < final]
    stored = [(number, load_mesh(mesh_path(output, number))) for number in kept]
    if all(mesh is not None and mesh.identity == identity for _, mesh in stored):
        return {number: mesh for number, mesh in stored if mesh is not None}
    fixed = {number: mesh.mesh for number, mesh in held.items()}
    solved = _solve(stack, placed, fixed, [pair.points() for pair in use], matching.spacing, settings)
    return {number: save_mesh(mesh_path(output, number), solved[number], identity) for number in kept}


def _solve(
    stack: Stack,
    placed: Sequence[int],
    fixed: Mapping[int, Mesh],
    pairs: Sequence[Pair],
    spacing: int,
    settings: SolveSettings,
) -> dict[int, Mesh]:
    poses = solve_poses(placed, pairs, {n: mesh.rigid for n, mesh in fixed.items()}, middle(stack), settings)
    meshes = {n: Mesh(poses[n], section_grid(_extent(stack, n), spacing)) for n in placed}
    for _ in range(1 if settings.rigid_anchor else _ROUNDS):
        meshes = solve_springs(meshes, fixed, pairs, settings)
        if not settings.rigid_anchor:
            meshes = {n: _reposed(mesh) for n, mesh in meshes.items()}
    return meshes


def _reposed(mesh: Mesh) -> Mesh:
    """The same mesh with the rigid pose that fits it best, so that springs resist bending and not moving."""
    vertices = mesh.vertices.reshape(-1, 2)
    placed = mesh(vertices)
    rigid = fit_rigid(vertices, placed, np.ones(len(vertices)))
    values = (placed - rigid(vertices)).reshape(mesh.grid.values.shape)
    return Mesh(rigid, Grid(mesh.grid.origin, mesh.grid.spacing, values))


def _place_the_rest(stack: Stack, aligned: Sequence[int], matching: MatchSettings, output: Path) -> dict[int, str]:
    """Give sections with an image that no match places the rigid pose that lies between those of their neighbours."""
    contents = {}
    for section in stack.numbers:
        if section in aligned or not stack.has_image(section):
            continue
        below = [(n, _stored_pose(output, n)) for n in [n for n in aligned if n < section][-1:]]
        above = [(n, _stored_pose(output, n)) for n in [n for n in aligned if n > section][:1]]
        pose = _pose(below + above, section, middle(stack))
        mesh = Mesh(pose, section_grid(_extent(stack, section), matching.spacing))
        identity = json_hash([section, mesh_content(mesh)])
        path = mesh_path(output, section)
        stored = load_mesh(path)
        if stored is None or stored.identity != identity:
            stored = save_mesh(path, mesh, identity)
        contents[section] = stored.content
    return contents


def _stored_pose(output: Path, section: int) -> Rigid:
    stored = load_mesh(mesh_path(output, section))
    if stored is None:
        raise StateError(f"{mesh_path(output, section)}: has gone; solve again")
    return stored.mesh.rigid


def _pose(near: Sequence[tuple[int, Rigid]], section: int, centre: Points) -> Rigid:
    if not near:
        return IDENTITY
    return near[0][1] if len(near) == 1 else between(near[0], near[1], section, centre)


def middle(stack: Stack) -> Points:
    """What the sections turn about."""
    return (np.array(stack.shape()) - 1) / 2


def _extent(stack: Stack, section: int) -> tuple[int, int]:
    _, height, width = stack.image(section).shape
    return height, width


def _outcome(pair: MatchedPair, meshes: Mapping[int, Mesh], misfits: Misfits) -> TriedPair:
    """What the meshes make of a pair, counted in `misfits`."""
    found, residual = pair.matches, None
    if found.accepted and pair.a in meshes and pair.b in meshes:
        residual = float(np.sqrt(np.mean(residuals(pair.points(), meshes) ** 2)))
        misfits.add(pair.points(), meshes)
    return TriedPair(
        a=pair.a,
        b=pair.b,
        accepted=found.accepted,
        matches=len(found.weight),
        matched=found.matched,
        correlation=found.correlation,
        coarse_correlation=found.coarse_correlation,
        residual=residual,
    )


def _apart(aligned: frozenset[int], pairs: Sequence[TriedPair]) -> tuple[int, ...]:
    """The first sections of all parts of the stack but the first that are connected within, but not with each other."""
    part = {section: section for section in aligned}

    def root(section: int) -> int:
        while part[section] != section:
            section = part[section]
        return section

    for pair in pairs:
        if pair.accepted and pair.a in part and pair.b in part:
            a, b = sorted((root(pair.a), root(pair.b)))
            part[b] = a
    return tuple(sorted(section for section in aligned if root(section) == section))[1:]
