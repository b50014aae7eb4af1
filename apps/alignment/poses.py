"""Rigid poses of many sections at once, from the points that pairs of them have in common.

Gauss-Newton on angle and shift of every section, with Cauchy weights; no section is placed by a chain of others, so the
error of one pair is shared between all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.alignment.settings import SolveSettings
from apps.alignment.transforms import IDENTITY, Points, Rigid

_POINTS = 400  # of a pair, evenly taken; three unknowns need no more
_ROUNDS = 8
_LINK = 1e-4  # weight of what holds parts of the stack together that no match connects


@dataclass(frozen=True)
class Pair:
    """Matched points [n, 2] of the sections `a` < `b`, their weights [n], and the rigid motion from a to b."""

    a: int
    b: int
    first: Points
    second: Points
    weight: NDArray[np.float64]
    rigid: Rigid


def solve_poses(
    sections: Sequence[int],
    pairs: Sequence[Pair],
    fixed: Mapping[int, Rigid],
    centre: Points,
    settings: SolveSettings,
) -> dict[int, Rigid]:
    """Pose of each of `sections` (section -> aligned frame); those in `fixed` stay.

    Without any fixed one the first section stays where it is, or, with `rigid_anchor`, all are pulled there.
    """
    poses, links = _first_guess(sections, pairs, fixed)
    held = dict(fixed)
    if not held and settings.rigid_anchor == 0:
        held[sections[0]] = poses[sections[0]]
    free = [section for section in sections if section not in held]
    if not free:
        return poses
    place = {section: 3 * k for k, section in enumerate(free)}
    thinned = [_thin(pair) for pair in pairs]
    radius = max(float(np.hypot(*centre)) / 2, 1.0)
    for _ in range(_ROUNDS):
        normal, right = np.zeros((3 * len(free),) * 2), np.zeros(3 * len(free))
        for pair in thinned:
            _add_pair(normal, right, pair, poses, place, centre, settings.robust_scale)
        for a, b in links:
            _add_link(normal, right, (a, b), poses, place, centre, radius)
        for section, k in place.items():
            scale = settings.rigid_anchor * np.array([radius**2, 1.0, 1.0])
            normal[k : k + 3, k : k + 3] += np.diag(scale)
            right[k : k + 3] -= scale * _coordinates(poses[section], centre)
        step = np.linalg.lstsq(normal, right, rcond=1e-12)[0]
        for section, k in place.items():
            poses[section] = _rigid(_coordinates(poses[section], centre) + step[k : k + 3], centre)
        if np.abs(step).max() < 1e-7:
            break
    return poses


def between(below: tuple[int, Rigid], above: tuple[int, Rigid], section: int, centre: Points) -> Rigid:
    """The pose of a section without matches: on the way from that of the one below to that of the one above."""
    share = (section - below[0]) / (above[0] - below[0])
    start, end = _coordinates(below[1], centre), _coordinates(above[1], centre)
    return _rigid((1 - share) * start + share * end, centre)


def _coordinates(rigid: Rigid, centre: Points) -> NDArray[np.float64]:
    """(angle, how far the centre moves along y and x)."""
    return np.array([rigid.angle, *(rigid(centre) - centre)])


def _rigid(coordinates: NDArray[np.float64], centre: Points) -> Rigid:
    turn = Rigid(float(coordinates[0]), (0.0, 0.0))
    shift = centre + coordinates[1:] - turn(centre)
    return Rigid(turn.angle, (float(shift[0]), float(shift[1])))


def _first_guess(
    sections: Sequence[int], pairs: Sequence[Pair], fixed: Mapping[int, Rigid]
) -> tuple[dict[int, Rigid], list[tuple[int, int]]]:
    """Poses along the pairs, breadth first, and the links that were needed to reach every section."""
    poses, links = dict(fixed), list[tuple[int, int]]()
    if not poses:
        poses[sections[0]] = IDENTITY
    while True:
        grown = True
        while grown:
            grown = False
            for pair in pairs:
                if pair.a in poses and pair.b not in poses:
                    poses[pair.b] = poses[pair.a].after(pair.rigid.inverse())
                    grown = True
                elif pair.b in poses and pair.a not in poses:
                    poses[pair.a] = poses[pair.b].after(pair.rigid)
                    grown = True
        left = [section for section in sections if section not in poses]
        if not left:
            return poses, links
        nearest = min(poses, key=lambda known: (abs(known - left[0]), known))
        poses[left[0]] = poses[nearest]
        links.append((nearest, left[0]))


def _thin(pair: Pair) -> Pair:
    every = np.unique(np.linspace(0, len(pair.weight) - 1, _POINTS).astype(int))
    return Pair(pair.a, pair.b, pair.first[every], pair.second[every], pair.weight[every], pair.rigid)


def _add_pair(
    normal: Points,
    right: NDArray[np.float64],
    pair: Pair,
    poses: Mapping[int, Rigid],
    place: Mapping[int, int],
    centre: Points,
    scale: float,
) -> None:
    residual = poses[pair.b](pair.second) - poses[pair.a](pair.first)
    size = np.hypot(*residual.T)
    # The sections are not rigid: residuals of their common size are no outliers.
    weight = pair.weight / (1 + (size / max(scale, 2 * float(np.median(size)))) ** 2)
    weight /= weight.sum() * (pair.b - pair.a)
    parts = [
        (place[section], sign * _jacobian(poses[section], points, centre))
        for section, points, sign in ((pair.a, pair.first, -1), (pair.b, pair.second, 1))
        if section in place
    ]
    for k, jacobian in parts:
        right[k : k + 3] -= np.einsum("n,nij,ni->j", weight, jacobian, residual)
        for m, other in parts:
            normal[k : k + 3, m : m + 3] += np.einsum("n,nij,nik->jk", weight, jacobian, other)


def _jacobian(rigid: Rigid, points: Points, centre: Points) -> Points:
    """[n, 2, 3]: derivative of where the points lie by angle and shift."""
    dy, dx = ((points - centre) @ rigid.matrix.T).T
    one, zero = np.ones_like(dy), np.zeros_like(dy)
    return np.stack([np.stack([-dx, one, zero], axis=-1), np.stack([dy, zero, one], axis=-1)], axis=1)


def _add_link(
    normal: Points,
    right: NDArray[np.float64],
    link: tuple[int, int],
    poses: Mapping[int, Rigid],
    place: Mapping[int, int],
    centre: Points,
    radius: float,
) -> None:
    a, b = link
    scale = _LINK * np.array([radius**2, 1.0, 1.0])
    off = _coordinates(poses[b], centre) - _coordinates(poses[a], centre)
    for section, sign in ((a, -1), (b, 1)):
        if section not in place:
            continue
        k = place[section]
        right[k : k + 3] -= sign * scale * off
        for other, other_sign in ((a, -1), (b, 1)):
            if other in place:
                m = place[other]
                normal[k : k + 3, m : m + 3] += sign * other_sign * np.diag(scale)
