"""Which two segments a cleft lies between, and which of them is before it.

The cleft is taken for a disc: its middle, the normal in which its voxels spread least, and its radius.  On either side
of the disc, each segment's contact is the number of its voxels in the column over the disc that are near the cleft,
near ones counting more.  The partners are the two different segments, one on either side, of which the one with less
contact has most.  Before (pre) is the one whose vesicles are more: the sum of their probabilities over its voxels
within reach.  Without a probability of vesicles the one with more contact is called pre, which is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import edt
import numpy as np
from numpy.typing import NDArray

from apps.core.volumes import VoxelSize
from apps.synapses.detector import FULL, Probabilities

Floats = NDArray[np.float64]

_FLATTEST, _NARROWEST_NM = 1.0, 15.0  # of a disc: a cleft of a few voxels has no radius to speak of


@dataclass(frozen=True)
class Reach:
    """How far from a cleft its partners are looked for, in nm.

    Attributes:
        contact: where a segment touches the cleft.
        vesicles: how far vesicles lie from it, and how deep in a partner its point may be.
    """

    contact: float
    vesicles: float


@dataclass(frozen=True)
class Partners:
    """What lies before and behind a cleft; places are voxels of the window, zyx.

    Attributes:
        segments: pre and post; 0 where no segment touches the cleft.
        points: float64 [2, 3], inside of either, or the cleft's middle.
        direction: float64 [3], unit vector from pre to post, in nm along each axis alike.
        certainty: how sure the direction is, 0.5 to 1.
    """

    segments: tuple[int, int]
    points: Floats
    direction: Floats
    certainty: float


def find_partners(
    cleft: NDArray[np.bool_],
    segments: NDArray[Any],
    vesicles: Probabilities | None,
    voxel_size_nm: VoxelSize,
    reach: Reach,
) -> Partners:
    """Partners of the cleft whose voxels are `cleft`, in a window that holds it with `reach` around it.

    Args:
        cleft: [z, y, x], true in at least one voxel.
        segments: integers of that shape, 0 none.
        vesicles: of that shape, probabilities of 0 to 255, or None.
        voxel_size_nm: zyx.
        reach: see Reach.
    """
    size = np.array(voxel_size_nm)
    voxels = np.argwhere(cleft)
    centre = voxels.mean(axis=0)
    normal, radius = _disc((voxels - centre) * size, float(size.min()))
    distance = edt.edt(~cleft, anisotropy=voxel_size_nm, black_border=False, parallel=1)
    near = np.flatnonzero((distance.ravel() <= max(reach.contact, reach.vesicles)) & ~cleft.ravel())
    places = np.stack(np.unravel_index(near, cleft.shape), axis=1)
    offset = (places - centre) * size
    along = offset @ normal
    across = np.sqrt(np.maximum((offset**2).sum(axis=1) - along**2, 0))
    column = across <= radius
    near, places, along, across = near[column], places[column], along[column], across[column]
    far, owner = distance.ravel()[near], segments.ravel()[near]
    weight = np.maximum(0, 1 - far / reach.contact)
    behind = along > 0

    pair = _best_pair(owner, weight, behind)
    sides = [(behind == bool(side)) & ((owner == pair[side]) if pair[side] else True) for side in (0, 1)]
    if vesicles is not None:
        mass = [float(vesicles.ravel()[near[s & (far <= reach.vesicles)]].sum()) / FULL for s in sides]
    else:
        mass = [float(weight[s].sum()) for s in sides]
    pre = 0 if mass[0] >= mass[1] else 1
    total = mass[0] + mass[1]
    certainty = max(mass) / total if vesicles is not None and total else 0.5
    points = [
        _inside(places[s], far[s], across[s], reach.contact) if pair[side] and s.any() else centre
        for side, s in enumerate(sides)
    ]
    return Partners(
        segments=(pair[pre], pair[1 - pre]),
        points=np.array([points[pre], points[1 - pre]], np.float64),
        direction=normal if pre == 0 else -normal,
        certainty=certainty,
    )


def _disc(offsets_nm: Floats, shortest: float) -> tuple[Floats, float]:
    """(normal, radius in nm) of voxels by their offsets from their middle; the normal's largest part is positive."""
    moments = offsets_nm.T @ offsets_nm / len(offsets_nm)
    values, vectors = np.linalg.eigh(moments)
    normal: Floats = vectors[:, 0]
    normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
    # The mean square of a full disc's voxels along one of its axes is radius^2 / 4.
    return normal, max(2 * float(np.sqrt(values[1])), shortest * _FLATTEST, _NARROWEST_NM)


def _best_pair(owner: NDArray[Any], weight: Floats, behind: NDArray[np.bool_]) -> tuple[int, int]:
    """The segments before and behind the disc, 0 where there is none: see the module."""
    contacts = []
    for side in (~behind, behind):
        ids, number = np.unique(owner[side], return_inverse=True)
        sums = np.bincount(number, weight[side], minlength=len(ids)) if len(ids) else np.zeros(0)
        # Descending contact, and of equal ones the smallest id.
        kept = sorted(((-float(s), int(i)) for i, s in zip(ids, sums, strict=True) if i and s > 0))
        contacts.append([(identity, -value) for value, identity in kept[:3]])
    before, after = contacts
    pairs = [(min(v, w), v + w, -a, -b) for a, v in before for b, w in after if a != b]
    if pairs:
        *_, a, b = max(pairs)
        return -a, -b
    # On one side there is nothing, or the same segment is all there is on both: the side with more of it has it.
    one, other = (side[0] if side else (0, 0.0) for side in contacts)
    return (one[0], 0) if one[1] >= other[1] else (0, other[0])


def _inside(places: NDArray[Any], far: Floats, across: Floats, depth: float) -> Floats:
    """Of a segment's voxels the one over the middle of the disc that is as deep as contact reaches, nearly."""
    chosen: Floats = places[np.lexsort((far, np.round(across + np.abs(far - depth), 3)))[0]].astype(np.float64)
    return chosen
