"""Random search: the baseline, and the best choice where trials are so short that thinking costs more than trying."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ensemble.search.optimizers.tracking import TrackingOptimizer
from ensemble.search.space import SearchSpace

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


BLOCK = 256


class RandomSearch(TrackingOptimizer):
    """Configurations drawn from the hyperparameters' distributions, none twice; outcomes change nothing.

    They are one sequence, drawn in blocks of which each has a seed of its own: whoever begins anew after so many
    `asked`, and avoids those, goes on with the sequence where it was.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int = 0, asked: int = 0, objectives: int = 1, initial_points: int = 0
    ) -> None:
        super().__init__(space, seed=seed, asked=asked, objectives=objectives)
        self._seed = seed
        self._block = asked // BLOCK
        self._drawn = deque(self._draw()[asked % BLOCK :])

    def release(self, configurations: Iterable[Configuration]) -> None:
        listed = list(configurations)
        super().release(listed)
        self._drawn.extendleft(reversed(list(self.space.vectors(listed))))

    def ask(self, count: int) -> list[Configuration]:
        taken: list[Configuration] = []
        while len(taken) < count:
            if not self._drawn:
                # Little is left of a small space: it is gone through.  (A long search has taken its first blocks.)
                if self._block * BLOCK > 2 * (len(self.told) + len(self.pending)):
                    return taken + self._take_random(count - len(taken))
                self._block += 1
                self._drawn = deque(self._draw())
            some = [self._drawn.popleft() for _ in range(min(count - len(taken), len(self._drawn)))]
            taken += self._take(np.stack(some), len(some))
        return taken

    def _draw(self) -> np.ndarray:
        return self.space.sample(BLOCK, np.random.default_rng([self._seed, self._block]))
