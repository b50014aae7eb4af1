"""Skeletons of the truth: centre lines of its objects, from the .npz file that the stage `phantom` writes."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.boxes import Box
from apps.core.errors import DataError


@dataclass(frozen=True)
class Skeletons:
    """Of all objects together; a skeleton is all that carries one label, and may be in several pieces.

    Attributes:
        nodes: float64 [n, 3], zyx in voxels of the label volume; whole numbers are the middles of voxels.
        label: [n], integers over 0, the object of each node.
        edges: int64 [m, 2], pairs of nodes, both of one object; none twice.
    """

    nodes: NDArray[np.float64]
    label: NDArray[Any]
    edges: NDArray[np.int64]

    def within(self, box: Box) -> Skeletons:
        """The nodes whose voxel lies in `box`, placed from its first voxel on, and the edges between them."""
        voxel = np.rint(self.nodes)
        inside = np.all((voxel >= box.offset) & (voxel < box.end), axis=1)
        number = np.cumsum(inside) - 1
        edges = self.edges[inside[self.edges].all(axis=1)]
        return Skeletons(self.nodes[inside] - np.array(box.offset), self.label[inside], number[edges])

    def sample(self, volume: NDArray[Any]) -> NDArray[Any]:
        """The value of the voxel that each node is in; of an array (zyx) that holds all nodes."""
        z, y, x = np.rint(self.nodes).astype(np.int64).T
        values: NDArray[Any] = volume[z, y, x]
        return values


def load_skeletons(path: str) -> Skeletons:
    """Read `nodes`, `label` and `edges`; other arrays in the file, as `radius`, are left alone.

    Raises DataError, with the file's name, where it is missing or is not what `Skeletons` says.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; expected skeletons, an .npz with nodes, label and edges")
    try:
        with np.load(path, allow_pickle=False) as file:
            nodes, label, edges = (np.asarray(file[name]) for name in ("nodes", "label", "edges"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: is not an .npz with nodes, label and edges ({error})") from error
    wrong = _fault(nodes, label, edges)
    if wrong:
        raise DataError(f"{path}: {wrong}")
    return Skeletons(nodes.astype(np.float64), label, edges.astype(np.int64))


def _fault(nodes: NDArray[Any], label: NDArray[Any], edges: NDArray[Any]) -> str:
    """What is wrong with the arrays; empty where nothing is."""
    count = label.size
    if label.ndim != 1 or label.dtype.kind not in "ui" or (label <= 0).any():
        return f"label of shape {label.shape} and dtype {label.dtype}: expected one whole number over 0 for every node"
    if nodes.shape != (count, 3) or nodes.dtype.kind not in "fui" or not np.isfinite(nodes).all():
        return f"nodes of shape {nodes.shape} and dtype {nodes.dtype}: expected {count} finite places (z, y, x)"
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "ui":
        return f"edges of shape {edges.shape} and dtype {edges.dtype}: expected pairs of node numbers"
    if edges.size and (edges.min() < 0 or edges.max() >= count):
        return f"edges name the nodes {edges.min()} to {edges.max()}: expected numbers from 0 to {count - 1}"
    if (label[edges[:, 0]] != label[edges[:, 1]]).any():
        return "an edge joins nodes of two labels: expected skeletons of one object each"
    if len(np.unique(np.sort(edges, axis=1), axis=0)) < len(edges):
        return "an edge is given twice: expected each pair of nodes once, as its length would count twice"
    return ""
