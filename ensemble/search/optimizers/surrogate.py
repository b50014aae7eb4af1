"""Surrogates: what is believed of configurations that were not tried, and how much one trial says of another.

Here are the contract and DeepHyper's forests (the models of deephyper.hpo.CBO).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from apps.core.errors import ParameterError

# The settings that deephyper.hpo.CBO gives its surrogate models, which are not to be had without importing all of
# deephyper.hpo (Ray and JAX with it).
FORESTS: dict[str, dict[str, Any]] = {
    "ET": {"splitter": "random", "bootstrap": False, "max_samples": None, "max_features": 1.0},
    "RF": {"splitter": "best", "bootstrap": True, "max_samples": 0.8, "max_features": "sqrt"},
    "TB": {"splitter": "best", "bootstrap": True, "max_samples": 0.8, "max_features": 1.0},
    "RS": {"splitter": "best", "bootstrap": False, "max_samples": None, "max_features": "sqrt"},
}
ALL_FORESTS = {"n_estimators": 100, "min_samples_split": 2, "n_jobs": 1}
INACTIVE = -1.0  # beside every coordinate: trees part it from all of them
SPREAD = 0.1  # where a forest's kernel leaves less than this unknown at every candidate, a batch starts anew


class Posterior(ABC):
    """What a surrogate believes of candidates, while a batch is chosen among them.

    Attributes:
        mean: of the targets, (n, k).
        std: its standard deviation, (n, k), as of what was chosen.
    """

    mean: np.ndarray
    std: np.ndarray

    @abstractmethod
    def choose(self, i: int) -> None:
        """Candidate i will be tried: less is unknown at those that resemble it.  The mean stays."""


class Surrogate(ABC):
    """A model of targets (n, k), which are to be large, over vectors (n, hyperparameters).

    Attributes:
        resolution: how finely its targets are to tell the best apart (Targets).
        max_points: how many points it is to be fitted to at most, for its cost.
    """

    resolution: float
    max_points: int

    @abstractmethod
    def fit(self, vectors: np.ndarray, targets: np.ndarray, values: np.ndarray) -> None:
        """Fit anew; `values` (n, m) are what believed() is of."""

    @abstractmethod
    def posterior(self, vectors: np.ndarray) -> Posterior:
        """What is believed of the targets at these vectors."""

    @abstractmethod
    def believed(self, vectors: np.ndarray) -> np.ndarray:
        """What is believed of the values, (n, m), at these vectors."""


class ForestSurrogate(Surrogate):
    """A forest of regression trees.

    Its mean is that of its trees, its standard deviation the trees' disagreement (Hutter et al. 2014, section 4.3.2,
    without the leaves' own variance).  Two points that fall into the same leaf of a tree are one to that tree; over
    all trees that is the forest's kernel, by which a chosen candidate says something of the others.

    Args:
        name: ET (extremely randomised trees), RF (random forest), TB (bagged trees) or RS (random subspaces), with the
            settings of deephyper.hpo.CBO.
        seed: of the trees.
        options: keyword arguments of the forest; they replace CBO's.

    Raises ParameterError for an unknown option.
    """

    resolution = 0.01  # its steps see no difference that is small beside the others
    max_points = 3000

    def __init__(self, name: str, seed: int, options: dict[str, Any]) -> None:
        from deephyper.skopt.learning import RandomForestRegressor

        try:
            self._template = RandomForestRegressor(**{**ALL_FORESTS, **FORESTS[name], "random_state": seed, **options})
            self._template._validate_params()
        except (TypeError, ValueError) as error:
            raise ParameterError(f"surrogate_model_kwargs of {name}: {error}") from error

    def fit(self, vectors: np.ndarray, targets: np.ndarray, values: np.ndarray) -> None:
        from sklearn.base import clone

        forest = clone(self._template).fit(_finite(vectors), targets if targets.shape[1] > 1 else targets[:, 0])
        self._trees = [tree.tree_ for tree in forest.estimators_]
        leaves = self._leaves(vectors)
        self._values = [_leaf_means(tree, leaf, values) for tree, leaf in zip(self._trees, leaves.T, strict=True)]

    def posterior(self, vectors: np.ndarray) -> Posterior:
        leaves = self._leaves(vectors)
        targets = [tree.value[:, :, 0] for tree in self._trees]
        mean = _tree_mean(targets, leaves)
        squares = _tree_mean([target**2 for target in targets], leaves)
        return _ForestPosterior(leaves, mean, np.sqrt(np.maximum(squares - mean**2, 0)))

    def believed(self, vectors: np.ndarray) -> np.ndarray:
        return _tree_mean(self._values, self._leaves(vectors))

    def _leaves(self, vectors: np.ndarray) -> np.ndarray:
        """The leaf that each vector falls into, int32 (n, trees)."""
        points = _finite(vectors)
        return np.stack([tree.apply(points) for tree in self._trees], 1).astype(np.int32)


class _ForestPosterior(Posterior):
    def __init__(self, leaves: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean, self.std = mean, std
        self._leaves, self._prior = leaves, std
        self._unknown = np.ones(leaves.shape, bool)
        self._open = np.ones(len(leaves), bool)

    def choose(self, i: int) -> None:
        self._unknown &= self._leaves != self._leaves[i]
        self._open[i] = False
        share = self._unknown.mean(1)
        if share[self._open].max(initial=0.0) < SPREAD:
            self._unknown[:] = True
            share[:] = 1
        self.std = self._prior * share[:, None]


def _tree_mean(tables: list[np.ndarray], leaves: np.ndarray) -> np.ndarray:
    """The mean over trees of what their tables (nodes, k) say for leaves (n, trees): (n, k)."""
    total = np.zeros((len(leaves), tables[0].shape[1]))
    for table, leaf in zip(tables, leaves.T, strict=True):
        total += table[leaf]
    return total / len(tables)


def _leaf_means(tree: Any, leaf: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The mean of values (n, m) over the points in each leaf: (nodes, m).

    Each leaf has some: a tree is fitted to these points, or to a sample of them.
    """
    counts = np.bincount(leaf, minlength=tree.node_count)
    sums = [np.bincount(leaf, column, minlength=tree.node_count) for column in values.T]
    means: np.ndarray = np.stack(sums, 1) / np.maximum(counts, 1)[:, None]
    return means


def _finite(vectors: np.ndarray) -> np.ndarray:
    """As float32, which trees work on, with inactive hyperparameters beside the others."""
    return np.where(np.isnan(vectors), INACTIVE, vectors).astype(np.float32)
