"""Where the tiles of one section lie: pairs measured, by the own method or by Feabas, and solved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.montage.feabas_backend import match_with_feabas
from apps.montage.offsets import Look
from apps.montage.pairs import Pair, at_positions, check_pair, measure_pair
from apps.montage.parameters import MontageParameters
from apps.montage.records import MeasuredPair, Scores
from apps.montage.solve import Solution, solve
from apps.montage.table import TileRow
from apps.montage.workers import Workers

_CLOSE = 0.25  # pixels: an offset solved as near as this to the measured one has the measured correlation


@dataclass(frozen=True)
class Placement:
    """Solved positions, and what the pairs say.

    Attributes:
        solution: positions in stage coordinates; its pairs are those that had an offset.
        pairs: all overlapping pairs.
        used, looks: pairs [m, 2] that were used, and how their two sides look in the overlap.
        scores: quality without ground truth.
    """

    solution: Solution
    pairs: tuple[MeasuredPair, ...]
    used: NDArray[np.intp]
    looks: list[Look]
    scores: Scores


@dataclass(frozen=True)
class _Offset:
    """What a pair gave before the solving."""

    pair: Pair
    offset: tuple[float, float] | None
    confidence: float
    significance: float
    spread: float
    look: Look | None
    trusted: bool


def place(rows: list[TileRow], pairs: list[Pair], parameters: MontageParameters, workers: Workers) -> Placement:
    """Positions for the tiles of `rows`, whose overlapping pairs are `pairs`."""
    stage = np.array([(row.y, row.x) for row in rows])
    if parameters.backend == "feabas":
        measured = _from_feabas(rows, pairs, parameters)
    else:
        measured = _measure(pairs, parameters, workers)
    trusted = [m for m in measured if m.trusted]
    solution = solve(
        stage,
        np.array([(m.pair.a, m.pair.b) for m in trusted], np.intp).reshape(-1, 2),
        np.array([m.offset for m in trusted], np.float64).reshape(-1, 2),
        np.array([m.spread for m in trusted], np.float64),
        parameters.max_residual,
    )
    return _collect(rows, measured, solution, workers)


def _measure(pairs: list[Pair], parameters: MontageParameters, workers: Workers) -> list[_Offset]:
    answers = []
    for pair, found in zip(pairs, workers.map(measure_pair, pairs), strict=True):
        if found is None:
            answers.append(_Offset(pair, None, 0.0, 0.0, 0.0, None, False))
            continue
        trusted = found.confidence >= parameters.min_confidence and found.significance >= parameters.min_significance
        answers.append(
            _Offset(pair, found.offset, found.confidence, found.significance, found.spread, found.look, trusted)
        )
    return answers


def _from_feabas(rows: list[TileRow], pairs: list[Pair], parameters: MontageParameters) -> list[_Offset]:
    """Feabas returns no pair that it does not trust."""
    if not pairs:
        return []
    found = match_with_feabas(rows, pairs[0].shape, parameters.search, parameters.min_overlap, parameters.feabas_python)
    answers = []
    for pair in pairs:
        match = found.get((pair.a, pair.b))
        offset, confidence = match if match is not None else (None, 0.0)
        answers.append(_Offset(pair, offset, confidence, 0.0, 1.0, None, match is not None))
    return answers


def _collect(rows: list[TileRow], measured: list[_Offset], solution: Solution, workers: Workers) -> Placement:
    used: list[bool] = []
    residuals: list[float | None] = []
    solved = iter(zip(solution.used, solution.residuals, strict=True))
    for m in measured:
        if m.trusted:
            taken, residual = next(solved)
            used.append(bool(taken))
            residuals.append(float(residual))
        else:
            used.append(False)
            residuals.append(None)
    close = [
        u and r is not None and r <= _CLOSE and m.look is not None
        for u, r, m in zip(used, residuals, measured, strict=True)
    ]
    to_check = at_positions([m.pair for m, c in zip(measured, close, strict=True) if not c], solution.positions)
    checked = workers.map(check_pair, to_check)
    correlations: list[float] = []
    looks: list[Look | None] = []
    for m, c in zip(measured, close, strict=True):
        if c and m.look is not None:
            correlations.append(m.confidence)
            looks.append(m.look)
            continue
        answer = next(checked)
        correlations.append(0.0 if answer is None else answer[0])
        looks.append(m.look if answer is None else answer[1])
    both = [(m, look) for m, u, look in zip(measured, used, looks, strict=True) if u and look is not None]
    kept = [r for r, u in zip(residuals, used, strict=True) if u and r is not None]
    records = [
        MeasuredPair(
            a=m.pair.a,
            b=m.pair.b,
            offset=m.offset,
            confidence=m.confidence,
            significance=m.significance,
            residual=r,
            used=u,
        )
        for m, u, r in zip(measured, used, residuals, strict=True)
    ]
    scores = Scores(
        seam_residual=float(np.sqrt(np.mean(np.square(kept)))) if kept else None,
        overlap_correlation=float(np.mean(correlations)) if correlations else None,
        pairs_used=sum(used) / len(used) if used else None,
        tiles_connected=float(solution.connected.mean()) if rows else None,
    )
    used_pairs = np.array([(m.pair.a, m.pair.b) for m, _ in both], np.intp).reshape(-1, 2)
    return Placement(solution, tuple(records), used_pairs, [look for _, look in both], scores)
