"""A grid scan: every combination of a few values of each hyperparameter, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from apps.core.errors import ParameterError
from ensemble.search.optimizers.tracking import TrackingOptimizer
from ensemble.search.space import Key, SearchSpace

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


class GridScan(TrackingOptimizer):
    """The grid in lexicographic order, without what is told or pending; outcomes change nothing.

    Args:
        points: how many values of a range are scanned, evenly on its own scale; an integer range of fewer values and
            listed choices are scanned in full.

    Raises ParameterError where `points` is less than 1.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        asked: int = 0,
        objectives: int = 1,
        initial_points: int = 0,
        points: int = 5,
    ) -> None:
        if points < 1:
            raise ParameterError(f"points = {points}: expected at least 1")
        super().__init__(space, seed=seed, asked=asked, objectives=objectives)
        self._chunks = space.grid(points)
        self._ahead: deque[Key] = deque()
        self._seen: dict[Key, tuple[np.ndarray, Configuration]] = {}  # the grid as far as it was walked

    def release(self, configurations: Iterable[Configuration]) -> None:
        keys = [key for key, _ in self._keyed(configurations) if key in self.pending]
        for key in keys:
            del self.pending[key]
        waiting = set(self._ahead)
        self._ahead.extendleft(key for key in reversed(keys) if key in self._seen and key not in waiting)

    def ask(self, count: int) -> list[Configuration]:
        taken: list[Configuration] = []
        while len(taken) < count and (self._ahead or self._advance()):
            key = self._ahead.popleft()
            if key not in self.told and key not in self.pending:
                vector, configuration = self._seen[key]
                self.pending[key] = vector
                taken.append(dict(configuration))
        return taken

    def _advance(self) -> bool:
        """Walk on until a point of the grid is ahead; False at its end."""
        for vectors in self._chunks:
            for configuration, vector in zip(self.space.configurations(vectors), vectors, strict=True):
                key = self.space.key(configuration, vector)
                self._seen[key] = (vector, configuration)
                self._ahead.append(key)
            if self._ahead:
                return True
        return False
