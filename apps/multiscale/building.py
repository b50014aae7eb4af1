"""Do: one tower of a pyramid.

A tower is built from the top: a chunk is made of the chunks below it, which are made first, and each is written when it
is made.  Memory is what a chunk of each level is made of, whatever the volume; no voxel is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from apps.core.boxes import Box
from apps.core.volumes import Array, Volume
from apps.multiscale.downsampling import Rule, mean, mode
from apps.multiscale.pyramid import Pyramid, below, chunks_of

Kind = Literal["image", "labels"]

RULES: dict[str, Rule] = {"image": mean, "labels": mode}


@dataclass(frozen=True)
class Site:
    """Where a pyramid is built.

    Attributes:
        levels: the open arrays, level 0 first; those above are written.
        kind: which rule makes a voxel.
    """

    pyramid: Pyramid
    levels: list[Volume]
    kind: Kind


def build_tower(site: Site, storey: range, tower: Box) -> None:
    """Make and write all chunks of one tower, given as its chunk of the storey's last level.

    Writing it again, after a kill or beside another process, gives the same bytes.  Raises DataError where the ground
    cannot be read.
    """
    _make(site, storey[0], storey[-1], tower)


def _make(site: Site, first: int, level: int, box: Box) -> Array:
    """Write the chunk `box` of `level` and what the storey has below it; returns its voxels."""
    under = below(site.pyramid, level, box)
    if level == first:
        voxels = site.levels[level - 1].read(under)
    else:
        voxels = np.empty(under.shape, site.levels[0].dtype)
        for chunk in chunks_of(site.pyramid, under):
            voxels[chunk.slices(under.offset)] = _make(site, first, level - 1, chunk)
    made = RULES[site.kind](voxels, site.pyramid.levels[level].factor)
    site.levels[level].write(box, made)
    return made
