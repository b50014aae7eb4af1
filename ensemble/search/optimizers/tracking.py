"""The part that all optimisers share: which configurations are told, which pending, which fresh."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from apps.core.errors import ParameterError
from ensemble.search.optimizers.contract import Observation, Optimizer
from ensemble.search.space import ENUMERABLE, Key, SearchSpace

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration


@dataclass(frozen=True)
class Told:
    """An outcome: the vector of its configuration, and its objectives (None: it failed)."""

    vector: np.ndarray
    objectives: tuple[float, ...] | None


class TrackingOptimizer(Optimizer):
    """An optimiser that keeps account of told and pending configurations; a subclass adds ask().

    Attributes:
        told: outcomes by configuration, in the order they were first told.
        pending: vectors of configurations that were asked or are avoided and not told.
    """

    def __init__(self, space: SearchSpace, *, seed: int, asked: int, objectives: int) -> None:
        if objectives < 1:
            raise ParameterError(f"objectives = {objectives}: expected at least 1")
        self.space, self.objectives = space, objectives
        self.told: dict[Key, Told] = {}
        self.pending: dict[Key, np.ndarray] = {}
        self.rng = np.random.default_rng([seed, asked])

    def tell(self, observations: Sequence[Observation]) -> None:
        for key, told in self._checked(observations).items():
            self.pending.pop(key, None)
            self.told[key] = told

    def avoid(self, configurations: Iterable[Configuration]) -> None:
        for key, vector in self._keyed(configurations):
            if key not in self.told:
                self.pending[key] = vector

    def release(self, configurations: Iterable[Configuration]) -> None:
        for key, _ in self._keyed(configurations):
            self.pending.pop(key, None)

    def _keyed(self, configurations: Iterable[Configuration]) -> list[tuple[Key, np.ndarray]]:
        listed = list(configurations)
        vectors = self.space.vectors(listed)
        return [(self.space.key(c, vector), vector) for c, vector in zip(listed, vectors, strict=True)]

    def _checked(self, observations: Sequence[Observation]) -> dict[Key, Told]:
        """The observations by configuration, the last of each.  Raises ParameterError as tell() does."""
        vectors = self.space.vectors([observation.configuration for observation in observations])
        outcomes: dict[Key, Told] = {}
        for observation, vector in zip(observations, vectors, strict=True):
            found = observation.objectives
            if found is not None and (len(found) != self.objectives or not all(map(math.isfinite, found))):
                raise ParameterError(
                    f"objectives {found} of {observation.configuration}: expected {self.objectives} finite "
                    f"number{'s' * (self.objectives > 1)}"
                )
            outcomes[self.space.key(observation.configuration, vector)] = Told(vector, found)
        return outcomes

    def _take(self, vectors: np.ndarray, count: int) -> list[Configuration]:
        """The first `count` fresh configurations among the vectors, now pending."""
        taken: list[Configuration] = []
        for configuration, vector in zip(self.space.configurations(vectors), vectors, strict=True):
            if len(taken) >= count:
                break
            key = self.space.key(configuration, vector)
            if key not in self.told and key not in self.pending:
                self.pending[key] = vector
                taken.append(configuration)
        return taken

    def _take_random(self, count: int) -> list[Configuration]:
        """`count` fresh configurations drawn at random, now pending; fewer only where there are no more."""
        taken: list[Configuration] = []
        while len(taken) < count:
            missing = count - len(taken)
            drawn = self._take(self.space.sample(max(64, 2 * missing), self.rng), missing)
            taken += drawn
            if not drawn:
                break
        if len(taken) < count and self.space.size <= ENUMERABLE:
            for chunk in self.space.grid():
                taken += self._take(chunk, count - len(taken))
                if len(taken) == count:
                    break
        return taken
