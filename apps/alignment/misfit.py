"""How far a section as a whole misses the others, told from the noise of single matches.

A matched point errs by itself; points that lie together err together only where the section lies wrong.  So what their
residuals have in common, over small cells of the section and over all sections that it was matched with, says more
about the section's error than how large they are one by one; and as most of those others lie right, their own errors
are averaged out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from apps.alignment.poses import Pair
from apps.alignment.transforms import Mesh, Points

_CELL = 2  # vertices of the mesh a side


class Misfits:
    """Sums over the cells of sections, to which pairs are added as they are solved.

    A section's sums are kept until it is finished, so that memory is bounded by the sections at work.
    """

    def __init__(self) -> None:
        self._sums: dict[int, NDArray[np.float64]] = {}  # [cells, 3]: weight, and weighted residuals along y and x
        self._finished: dict[int, float] = {}

    def add(self, pair: Pair, meshes: Mapping[int, Mesh]) -> None:
        """Count a pair, both sections of which lie where `meshes` put them."""
        apart = meshes[pair.b](pair.second) - meshes[pair.a](pair.first)
        weight = pair.weight / (pair.b - pair.a)  # what lies further apart has changed more
        for section, points, sign in ((pair.a, pair.first, -1.0), (pair.b, pair.second, 1.0)):
            cell, cells = _cells(meshes[section], points)
            sums = self._sums.setdefault(section, np.zeros((cells, 3)))
            for column, values in enumerate((weight, sign * weight * apart[:, 0], sign * weight * apart[:, 1])):
                sums[:, column] += np.bincount(cell, values, cells)

    def finish(self, sections: Iterable[int]) -> None:
        """No pair with these sections will be added."""
        for section in sections:
            if section in self._sums:
                self._finished[section] = _common(self._sums.pop(section))

    def finished(self) -> dict[int, float]:
        """Section -> root mean square of its cells' mean residuals, pixels."""
        self.finish(list(self._sums))
        return self._finished


def _cells(mesh: Mesh, points: Points) -> tuple[NDArray[np.int64], int]:
    """The cell of each point, and how many the section has."""
    rows, columns = (-(-nodes // _CELL) for nodes in mesh.grid.values.shape[:2])
    place = np.floor(points / (_CELL * mesh.grid.spacing)).astype(np.int64)
    y, x = np.clip(place, 0, [rows - 1, columns - 1]).T
    return y * columns + x, rows * columns


def _common(sums: NDArray[np.float64]) -> float:
    weight, *parts = sums[sums[:, 0] > 0].T
    squares = sum(part**2 for part in parts) / weight
    return float(np.sqrt(squares.sum() / weight.sum()))
