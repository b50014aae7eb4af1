"""A Gaussian process as a surrogate: for the first hundreds of observations, from which it learns most.

A Matern 5/2 kernel with a length scale a hyperparameter, which says how much each of them matters (Snoek et al. 2012).
Length scales, amplitude and noise are those of the largest posterior density; the length scales' prior widens with the
root of their number, which keeps large spaces from looking like noise (Hvarfner et al. 2024).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from ensemble.search.optimizers.surrogate import Posterior, Surrogate
from ensemble.search.space import SearchSpace

FIT_POINTS = 256  # the kernel's parameters are found with no more points
OPTIONS = {"maxiter": 40}
ROOT5 = math.sqrt(5)
LEAST_NOISE = 1e-6
# log of length scale (before the root of the number of hyperparameters), amplitude and noise: mean, standard deviation.
LENGTH_PRIOR = (math.log(0.4), 0.5)
AMPLITUDE_PRIOR = (0.0, 1.0)
NOISE_PRIOR = (math.log(1e-3), 1.5)


class GaussianProcess(Surrogate):
    """A Gaussian process over a space.

    Ordinal choices are taken for evenly spaced, categorical ones for equally far from each other, an inactive
    hyperparameter for the middle of its range.
    """

    resolution = 1.0  # a smooth model of a peaked function oscillates
    max_points = 600  # its cost grows with their cube

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._free = np.flatnonzero(space.choices > 1)
        n = len(self._free)
        length = LENGTH_PRIOR[0] + 0.5 * math.log(n)
        self._prior_mean = np.array([length] * n + [AMPLITUDE_PRIOR[0], NOISE_PRIOR[0]])
        self._prior_std = np.array([LENGTH_PRIOR[1]] * n + [AMPLITUDE_PRIOR[1], NOISE_PRIOR[1]])
        self._theta = self._prior_mean.copy()

    def fit(self, vectors: np.ndarray, targets: np.ndarray, values: np.ndarray) -> None:
        self._points = self._features(vectors)
        self._centre, self._scale = targets.mean(0), np.where(targets.std(0) > 0, targets.std(0), 1.0)
        scaled = (targets - self._centre) / self._scale
        self._find_parameters(self._points, scaled)
        self._length, self._amplitude, self._noise = self._parameters(self._theta)
        covariance = self._kernel(self._points, self._points)
        covariance[np.diag_indices_from(covariance)] += self._noise
        self._factor = cholesky(covariance, lower=True)
        self._weights = cho_solve((self._factor, True), scaled)
        self._value_centre = values.mean(0)
        self._value_weights = cho_solve((self._factor, True), values - self._value_centre)

    def posterior(self, vectors: np.ndarray) -> Posterior:
        points = self._features(vectors)
        cross = self._kernel(self._points, points)
        mean = self._centre + self._scale * (cross.T @ self._weights)
        return _GaussianPosterior(self, points, mean, solve_triangular(self._factor, cross, lower=True))

    def believed(self, vectors: np.ndarray) -> np.ndarray:
        cross = self._kernel(self._features(vectors), self._points)
        believed: np.ndarray = self._value_centre + cross @ self._value_weights
        return believed

    def _features(self, vectors: np.ndarray) -> np.ndarray:
        """Coordinates (n, features): one a hyperparameter, or one a choice of a categorical one."""
        columns = []
        self._owner = []
        for place, i in enumerate(self._free):
            column, choices = vectors[:, i], self._space.choices[i]
            if self._space.categorical[i]:
                one_hot = (column[:, None] == np.arange(choices)) / math.sqrt(2)
                columns.append(one_hot)
                self._owner += [place] * one_hot.shape[1]
            else:
                width = choices - 1 if self._space.ordinal[i] else 1.0
                columns.append(np.where(np.isnan(column), 0.5, column / width)[:, None])
                self._owner.append(place)
        return np.concatenate(columns, 1)

    def _parameters(self, theta: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Length scales of the features, amplitude and noise."""
        return np.exp(theta[:-2])[self._owner], float(np.exp(theta[-2])), float(np.exp(theta[-1])) + LEAST_NOISE

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = a / self._length, b / self._length
        squares = np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)
        root = ROOT5 * np.sqrt(squares)
        covariance: np.ndarray = self._amplitude * (1 + root + root**2 / 3) * np.exp(-root)
        return covariance

    def _find_parameters(self, points: np.ndarray, targets: np.ndarray) -> None:
        """Set theta to the largest posterior density, sought from where the last fit ended and from the prior's."""
        if len(points) > FIT_POINTS:
            # The best ones, as their neighbourhood matters most, and others evenly.
            order = np.argsort(-targets.max(1), kind="stable")
            others = order[FIT_POINTS // 2 :]
            kept = np.linspace(0, len(others) - 1, FIT_POINTS // 2).astype(int)
            chosen = np.concatenate([order[: FIT_POINTS // 2], others[kept]])
            points, targets = points[chosen], targets[chosen]
        squares = np.zeros((len(self._free), len(points), len(points)))
        for feature, place in enumerate(self._owner):
            squares[place] += (points[:, None, feature] - points[None, :, feature]) ** 2
        bounds = np.stack([self._prior_mean - 3 * self._prior_std, self._prior_mean + 3 * self._prior_std], 1)
        found = [
            minimize(self._loss, start, (squares, targets), "L-BFGS-B", True, bounds=bounds, options=OPTIONS)
            for start in (self._theta, self._prior_mean)
        ]
        best = min(found, key=lambda result: float(result.fun))
        if np.isfinite(best.fun):
            self._theta = best.x

    def _loss(self, theta: np.ndarray, squares: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior density of the kernel's parameters, and its gradient."""
        inverse_lengths = np.exp(-2 * theta[:-2])
        amplitude, noise = np.exp(theta[-2]), np.exp(theta[-1])
        root = ROOT5 * np.sqrt(np.tensordot(inverse_lengths, squares, 1))
        decay = np.exp(-root)
        covariance = amplitude * (1 + root + root**2 / 3) * decay
        n, k = targets.shape
        try:
            factor = cholesky(covariance + (noise + LEAST_NOISE) * np.eye(n), lower=True)
        except np.linalg.LinAlgError:
            return math.inf, np.zeros_like(theta)
        weights = cho_solve((factor, True), targets)
        inner = weights @ weights.T - k * cho_solve((factor, True), np.eye(n))
        density = -0.5 * float((targets * weights).sum()) - k * float(np.log(np.diag(factor)).sum())
        slope = inner * (amplitude * 5 / 3 * (1 + root) * decay)
        gradient = 0.5 * np.concatenate(
            [
                np.tensordot(squares, slope, 2) * inverse_lengths,
                [float((inner * covariance).sum()), noise * float(np.trace(inner))],
            ]
        )
        away = (theta - self._prior_mean) / self._prior_std
        return -density + 0.5 * float((away**2).sum()), -gradient + away / self._prior_std


class _GaussianPosterior(Posterior):
    def __init__(self, process: GaussianProcess, points: np.ndarray, mean: np.ndarray, explained: np.ndarray) -> None:
        self.mean = mean
        self._process, self._points = process, points
        self._explained = explained  # (training points, n): its columns' products are the covariance that is known
        self._variance = process._amplitude - (explained**2).sum(0)
        self._chosen: list[np.ndarray] = []
        self._update()

    def choose(self, i: int) -> None:
        covariance = self._process._kernel(self._points[i : i + 1], self._points)[0]
        covariance -= self._explained[:, i] @ self._explained
        for earlier in self._chosen:
            covariance -= earlier[i] * earlier
        explained = covariance / math.sqrt(max(self._variance[i], 0) + self._process._noise)
        self._chosen.append(explained)
        self._variance = self._variance - explained**2
        self._update()

    def _update(self) -> None:
        self.std = np.sqrt(np.maximum(self._variance, 0))[:, None] * self._process._scale
