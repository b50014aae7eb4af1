"""Bayesian optimisation in batches of any size, from one fit of a surrogate.

The surrogate is fitted to what was told and, with the values that the last model believed in, to what is pending (the
kriging believer of Ginsbourger et al. 2010).  Candidates are random configurations and neighbours of the best ones.
Each suggestion takes the candidate with the largest upper confidence bound for a kappa of its own, drawn from an
exponential distribution (Hutter et al. 2012; DeepHyper's qUCB), and takes away from what is unknown at those that
resemble it to the surrogate (GP-BUCB, Desautels et al. 2014): a batch spreads without a second fit.

Failures count as the worst value seen.  Several objectives are scalarised with random weights; a fit has several
weight vectors, one target of the surrogate each, which suggestions use in turn.

The surrogate is a Gaussian process, or one of the forests of deephyper.hpo.CBO.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from apps.core.errors import ParameterError
from ensemble.search.optimizers.contract import Observation
from ensemble.search.optimizers.gaussian_process import GaussianProcess
from ensemble.search.optimizers.surrogate import FORESTS, ForestSurrogate, Surrogate
from ensemble.search.optimizers.targets import Targets
from ensemble.search.optimizers.tracking import Told, TrackingOptimizer
from ensemble.search.space import Key, SearchSpace

if TYPE_CHECKING:
    from ensemble.search.definition import Configuration

BEST = 10  # of each target: their neighbours are candidates
NEIGHBOURS = 0.5  # part of the candidates
CLIMBERS, CLIMBS = 50, 500  # so many of the most promising candidates get so many neighbours together
SCALARISATIONS = 8  # of several objectives, in one fit
RANDOM = 0.05  # part of the suggestions that are drawn at random, whatever the surrogate believes
LEAST_KAPPA = 0.5  # of its mean: what is pending close by is worth less than elsewhere, to every suggestion
CANDIDATES_EACH = 8  # at least so many candidates a suggestion
FEW_CHOICES = 16  # of hyperparameters with no more values than this, the first suggestions try all evenly
EVEN = 64  # for so many suggestions
EVEN_DRAWS = 64  # of so many random ones, each of them is the evenest


class BayesianOptimizer(TrackingOptimizer):
    """See the module.

    Args:
        space, seed, asked, objectives: as make_optimizer has them.
        initial_points: random suggestions, with all choices tried evenly, until so many outcomes are known, two of
            them not failed.
        surrogate_model: GP (GaussianProcess), or ET, RF, TB or RS (ForestSurrogate).
        surrogate_model_kwargs: keyword arguments of a forest.
        kappa: mean weight of what is unknown; half of it is fixed, half drawn for each suggestion (exponentially).
        n_points: candidates of an ask; more for a large batch.
        max_points: the surrogate is fitted to no more points than this, the best quarter of them and others drawn at
            random; None: as many as that surrogate can take at a bearable cost.
        moo_scalarization_strategy, moo_scalarization_weight, moo_lower_bounds: as Targets has them.
        transfer: outcomes of an earlier search of this space (observations_from_table).  The surrogate learns from
            them; their configurations may be suggested again, and what is told of them here replaces them.

    Raises ParameterError for an option that cannot be.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int = 0,
        asked: int = 0,
        objectives: int = 1,
        initial_points: int = 8,
        surrogate_model: str = "GP",
        surrogate_model_kwargs: dict[str, Any] | None = None,
        kappa: float = 1.96,
        n_points: int = 2000,
        max_points: int | None = None,
        moo_scalarization_strategy: str = "Chebyshev",
        moo_scalarization_weight: Sequence[float] | None = None,
        moo_lower_bounds: Sequence[float | None] | None = None,
        transfer: Sequence[Observation] = (),
    ) -> None:
        super().__init__(space, seed=seed, asked=asked, objectives=objectives)
        self._surrogate = _surrogate(surrogate_model, space, seed, surrogate_model_kwargs or {})
        self._max_points = self._surrogate.max_points if max_points is None else max_points
        for name, value, least in (
            ("initial_points", initial_points, 0),
            ("kappa", kappa, 0),
            ("n_points", n_points, 1),
            ("max_points", self._max_points, 4),
        ):
            if not value >= least:
                raise ParameterError(f"{name} = {value}: expected at least {least}")
        self._initial_points, self._kappa, self._n_points = initial_points, kappa, n_points
        self._targets = Targets(
            objectives, moo_scalarization_strategy, moo_scalarization_weight, moo_lower_bounds, SCALARISATIONS
        )
        self._earlier = self._checked(transfer)
        self._beliefs: dict[Key, np.ndarray] = {}  # believed objectives of what is pending
        self._centres: np.ndarray | None = None  # vectors of the best, as of the last fit; None: to be fitted
        self._turn = 0
        self._libraries = ThreadpoolController()

    def tell(self, observations: Sequence[Observation]) -> None:
        super().tell(observations)
        if observations:
            self._centres = None

    def release(self, configurations: Iterable[Configuration]) -> None:
        listed = list(configurations)
        super().release(listed)
        for key, _ in self._keyed(listed):
            self._beliefs.pop(key, None)

    def ask(self, count: int) -> list[Configuration]:
        known = [told for key, told in self._earlier.items() if key not in self.told] + list(self.told.values())
        succeeded = sum(told.objectives is not None for told in known)
        if count < 1 or len(known) < self._initial_points or succeeded < 2:
            taken = self._take_even(count)
            return taken + self._take_random(count - len(taken))
        guessed = self.rng.binomial(count, RANDOM)
        with self._libraries.limit(limits=1, user_api="blas"):  # for small matrices threads cost more than they give
            if self._centres is None:
                self._centres = self._fit(known)
            taken = self._take_best(self._candidates(count, self._centres), count - guessed)
        return taken + self._take_random(count - len(taken))

    def _take_even(self, count: int) -> list[Configuration]:
        """The first suggestions of a search: random, but each choice as often as the others.

        With a handful of random trials a choice is easily left out that is the best.
        """
        few = (self.space.choices > 1) & (self.space.choices <= FEW_CHOICES)
        taken: list[Configuration] = []
        while few.any() and len(taken) < count and len(self.told) + len(self.pending) < EVEN:
            drawn = self.space.sample(EVEN_DRAWS, self.rng)
            before = [told.vector for told in self.told.values()] + list(self.pending.values())
            if before:
                same = np.array(before)[:, None, few] == drawn[None, :, few]
                drawn = drawn[np.argsort(same.sum((0, 2)), kind="stable")]
            found = self._take(drawn, 1)
            if not found:
                break
            taken += found
        return taken

    def _fit(self, known: list[Told]) -> np.ndarray:
        """Fit the surrogate to what is known and believed; returns the vectors of the best."""
        self._beliefs = {key: belief for key, belief in self._beliefs.items() if key in self.pending}
        vectors = np.array([told.vector for told in known] + [self.pending[key] for key in self._beliefs])
        lacking = (np.nan,) * self.objectives
        objectives = np.array([told.objectives or lacking for told in known] + list(self._beliefs.values()), float)
        objectives = np.where(np.isnan(objectives), np.nanmin(objectives, axis=0), objectives)
        targets = self._targets(objectives, self._surrogate.resolution, self.rng)
        order = np.argsort(-targets[: len(known)], axis=0, kind="stable")
        chosen = self._sample(len(vectors), np.unique(order[: max(1, self._max_points // 4 // targets.shape[1])]))
        self._surrogate.fit(vectors[chosen], targets[chosen], objectives[chosen])
        lost = [key for key in self.pending if key not in self._beliefs]  # they are avoided, or were asked for blindly
        if lost:
            believed = self._surrogate.believed(np.array([self.pending[key] for key in lost]))
            self._beliefs |= dict(zip(lost, believed, strict=True))
        return vectors[np.unique(order[:BEST])]

    def _sample(self, count: int, kept: np.ndarray) -> np.ndarray:
        """Indices of the points that the surrogate is fitted to: all, or those kept and others drawn at random."""
        if count <= self._max_points:
            return np.arange(count)
        others = np.setdiff1d(np.arange(count), kept)
        drawn = self.rng.choice(others, self._max_points - len(kept), replace=False)
        return np.sort(np.concatenate([kept, drawn]))

    def _candidates(self, count: int, centres: np.ndarray) -> np.ndarray:
        """Vectors to choose from: random ones, the best themselves, and neighbours of the best and most promising."""
        size = max(self._n_points, CANDIDATES_EACH * count)
        near = int(NEIGHBOURS * size)
        found = [self.space.sample(size - near, self.rng), centres, self._neighbours(centres, near)]
        candidates = np.concatenate(found)
        posterior = self._surrogate.posterior(candidates)
        bound = (posterior.mean + self._kappa * posterior.std).max(1)
        top = np.argsort(-bound, kind="stable")[:CLIMBERS]
        return np.concatenate([candidates, self._neighbours(candidates[top], CLIMBS)])

    def _neighbours(self, centres: np.ndarray, count: int) -> np.ndarray:
        return self.space.neighbours(centres[self.rng.integers(len(centres), size=count)], self.rng)

    def _take_best(self, vectors: np.ndarray, count: int) -> list[Configuration]:
        """At most `count` of the fresh ones among the vectors, now pending with what is believed of them."""
        fresh: dict[Key, int] = {}
        configurations = self.space.configurations(vectors)
        for i, (configuration, vector) in enumerate(zip(configurations, vectors, strict=True)):
            key = self.space.key(configuration, vector)
            if key not in self.told and key not in self.pending:
                fresh.setdefault(key, i)
        if not fresh:
            return []
        keys, rows = list(fresh), np.array(list(fresh.values()))
        chosen = self._choose(vectors[rows], min(count, len(rows)))
        believed = self._surrogate.believed(vectors[rows[chosen]])
        for i, belief in zip(chosen, believed, strict=True):
            self.pending[keys[i]] = vectors[rows[i]]
            self._beliefs[keys[i]] = belief
        return [configurations[rows[i]] for i in chosen]

    def _choose(self, vectors: np.ndarray, count: int) -> list[int]:
        """Indices of `count` candidates."""
        posterior = self._surrogate.posterior(vectors)
        # A forest's mean has steps; not the first of equals is to be taken.
        mean = posterior.mean + 1e-9 * self.rng.random(posterior.mean.shape)
        chosen: list[int] = []
        for _ in range(count):
            column = self._turn % mean.shape[1]
            self._turn += 1
            kappa = self._kappa * (LEAST_KAPPA + (1 - LEAST_KAPPA) * self.rng.exponential())
            score = mean[:, column] + kappa * posterior.std[:, column]
            score[chosen] = -np.inf
            best = int(np.argmax(score))
            posterior.choose(best)
            chosen.append(best)
        return chosen


def _surrogate(name: str, space: SearchSpace, seed: int, options: dict[str, Any]) -> Surrogate:
    if name in FORESTS:
        return ForestSurrogate(name, int(np.random.SeedSequence(seed).generate_state(1)[0] % 2**31), options)
    if name != "GP":
        raise ParameterError(f"surrogate_model = {name!r}: expected one of GP, {', '.join(FORESTS)}")
    if options:
        raise ParameterError(f"surrogate_model_kwargs = {options}: GP has none")
    return GaussianProcess(space)
