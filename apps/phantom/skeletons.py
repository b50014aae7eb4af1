"""The truth's skeletons: the centre lines along which the neurites were grown, cut to the objects of the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.phantom.paths import Path


@dataclass(frozen=True)
class Skeletons:
    """Of all objects together; an object's may be in several pieces, and a small object may have none.

    Attributes:
        nodes: float32 [n, 3], zyx in voxels of the tissue.
        radius: float32 [n], of the neurite there, in voxels of the tissue.
        label: uint32 [n], the object in which the node lies.
        edges: int64 [m, 2], pairs of nodes; both of one object.
    """

    nodes: NDArray[np.float32]
    radius: NDArray[np.float32]
    label: NDArray[np.uint32]
    edges: NDArray[np.int64]


def cut_skeletons(paths: list[Path], labels: NDArray[np.uint32]) -> Skeletons:
    """Skeletons along `paths`; `labels` are those of all their points in turn, 0 where a point is in no object."""
    first = np.concatenate([[0], np.cumsum([len(path.points) for path in paths])])
    node_of = np.cumsum(labels > 0) - 1
    edges: list[NDArray[np.int64]] = []
    for number, path in enumerate(paths):
        own = labels[first[number] : first[number + 1]]
        for label in np.unique(own[own > 0]):
            nodes = node_of[first[number] + np.flatnonzero(own == label)]
            edges.append(np.stack([nodes[:-1], nodes[1:]], axis=1))
        if path.origin is not None and own[0]:
            # A branch begins in the very point of its parent, and so in the same object.
            parent = first[path.origin[0]] + path.origin[1]
            edges.append(np.array([[node_of[parent], node_of[first[number]]]]))
    kept = labels > 0
    return Skeletons(
        np.concatenate([path.points for path in paths])[kept].astype(np.float32),
        np.concatenate([path.radius for path in paths])[kept].astype(np.float32),
        labels[kept],
        np.concatenate([np.zeros((0, 2), np.int64), *edges]),
    )
