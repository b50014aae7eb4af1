"""What a surrogate is fitted to: objectives and failures as targets that are to be large."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from apps.core.errors import ParameterError

STRATEGIES = ("Linear", "Chebyshev", "AugChebyshev", "PBI", "Quadratic")  # of deephyper.skopt.moo.moo_functions
# What DeepHyper adds for an objective below its lower bound, in units of the scaled objective.
BOUND_PENALTY = 2.0


class Targets:
    """Turns objectives (n, m) into targets (n, k), one column a scalarisation.

    One objective is its own scalarisation.  Several are scaled to their ranks in [0, 1] and combined by DeepHyper's
    functions (deephyper.skopt.moo), with random weights drawn for each column at each call, or with fixed ones.

    Args:
        objectives: m.
        strategy: a key of deephyper.skopt.moo.moo_functions.
        weight: one weight an objective, for all columns; None for random ones.
        lower_bounds: what an objective should reach, None where it has no bound.
        columns: k for several objectives with random weights.

    Raises ParameterError for an unknown strategy, or weights or bounds of another number than the objectives.
    """

    def __init__(
        self,
        objectives: int,
        strategy: str,
        weight: Sequence[float] | None,
        lower_bounds: Sequence[float | None] | None,
        columns: int,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ParameterError(f"moo_scalarization_strategy = {strategy!r}: expected one of {', '.join(STRATEGIES)}")
        for name, given in (("moo_scalarization_weight", weight), ("moo_lower_bounds", lower_bounds)):
            if given is not None and len(given) != objectives:
                raise ParameterError(f"{name} = {list(given)}: expected one number for each of {objectives} objectives")
        self._strategy, self._weight = strategy, None if weight is None else list(weight)
        self._bounds = np.array([-np.inf if b is None else b for b in lower_bounds or [None] * objectives], float)
        self.columns = columns if objectives > 1 and weight is None else 1

    def __call__(self, objectives: np.ndarray, resolution: float, rng: np.random.Generator) -> np.ndarray:
        """The targets (n, k) of finite objectives (n, m).

        They tell the best apart down to the part `resolution` of the distance from the best to the median.
        """
        if objectives.shape[1] == 1:
            return _emphasised(objectives, resolution)
        from deephyper.skopt.moo import moo_functions

        losses = _losses(objectives)
        # The loss of the worst observation that reaches its bounds.
        bounds = (objectives >= self._bounds).mean(0) - 1 / len(objectives)
        losses += BOUND_PENALTY * np.maximum(losses - bounds, 0).sum(1, keepdims=True)
        functions = [
            moo_functions[self._strategy](
                n_objectives=losses.shape[1], weight=self._weight, random_state=int(rng.integers(2**31))
            )
            for _ in range(self.columns)
        ]
        return _emphasised(np.stack([_scalarised(function, losses) for function in functions], 1), resolution)


def _scalarised(function: Any, losses: np.ndarray) -> np.ndarray:
    """What a scalarisation of DeepHyper, a loss, makes of losses (n, m): (n,), to be large."""
    function.normalize(losses)
    return -np.array([function.scalarize(row) for row in losses], float)


def _losses(objectives: np.ndarray) -> np.ndarray:
    """The part of all observations that is better, for each objective: 0 for the best, towards 1 for the worst."""
    n = len(objectives)
    better = [n - np.searchsorted(np.sort(column), column, "right") for column in objectives.T]
    return np.stack(better, 1) / n


def _emphasised(values: np.ndarray, resolution: float) -> np.ndarray:
    """Values (n, k) on a scale that is logarithmic in the distance to the best.

    Differences among the best count most, and bad outliers hardly anything, which a model would otherwise bend for.
    """
    best = values.max(0)
    unit = best - np.median(values, axis=0)
    distance = (best - values) / np.where(unit > 0, unit, 1.0)
    return -np.log(distance + resolution)
