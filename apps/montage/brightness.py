"""Brightness and contrast of tiles, from what two neighbours make of their common part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve

from apps.montage.offsets import Look

_TO_OWN = 0.01  # weight, of a pair's, that holds a tile at its own contrast and brightness
_STRONGEST = 2.0  # factor of contrast


@dataclass(frozen=True)
class Equaliser:
    """Per tile: grey -> (grey - pivot) * gain + pivot + brightness.

    gain, brightness: float64 [n].
    """

    pivot: float
    gain: NDArray[np.float64]
    brightness: NDArray[np.float64]


def equalise(n: int, pairs: NDArray[np.intp], looks: list[Look]) -> Equaliser:
    """Gains and brightnesses with which the two sides of every pair (indices [m, 2]) look alike, least squares.

    Contrast first, in its logarithm, then brightness about the mean grey level of all overlaps.
    """
    if not looks:
        return Equaliser(0.0, np.ones(n), np.zeros(n))
    means = np.array([(look.mean_a, look.mean_b) for look in looks])
    spreads = np.maximum([(look.std_a, look.std_b) for look in looks], 0.5)
    pivot = float(means.mean())
    limit = float(np.log(_STRONGEST))
    gain = np.exp(np.clip(_fit(n, pairs, np.log(spreads[:, 0] / spreads[:, 1])), -limit, limit))
    levels = (means - pivot) * gain[pairs]
    return Equaliser(pivot, gain, _fit(n, pairs, levels[:, 0] - levels[:, 1]))


def _fit(n: int, pairs: NDArray[np.intp], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """v with v_b - v_a = step as nearly as can be, and v small."""
    m = len(pairs)
    incidence = sparse.csr_matrix((np.tile([-1.0, 1.0], m), (np.repeat(np.arange(m), 2), pairs.ravel())), shape=(m, n))
    matrix = (incidence.T @ incidence + _TO_OWN * sparse.identity(n)).tocsc()
    solved: NDArray[np.float64] = np.atleast_1d(spsolve(matrix, incidence.T @ steps))
    return solved
