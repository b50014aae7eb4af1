"""Do: one tower of a pyramid.

A tower is built from the top: a chunk is made of the chunks below it, which are made first, and each is written when it
is made.  Memory is what a chunk of each level is made of, whatever the volume; no voxel is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    _write(site.levels[level], box, made)
    return made


def _write(level: Volume, box: Box, made: Array) -> None:
    """Write a chunk; one of nothing but 0 is no file.

    Zarr's own look for that takes as long as compressing the chunk.  Bits are asked for, as -0.0 is not the 0 of a
    chunk that is not there.
    """
    if made.view(f"u{made.itemsize}").any():
        level = replace(level, array=level.array.with_config({"write_empty_chunks": True}))
    level.write(box, made)
