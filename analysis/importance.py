"""Which hyperparameters decide: permutation importance of a forest that foretells the metric from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.errors import AnalysisError

FEWEST = 12
MOST = 1000
FOLDS, REPEATS, TREES = 5, 5, 60
BUDGET = "m:budget"


@dataclass(frozen=True)
class Importance:
    """How much each hyperparameter decides.

    Attributes:
        shares: columns name (of the hyperparameter's column), share, error; the most important first.  The share of
            the order of the trials that can no longer be foretold once the hyperparameter is shuffled.
        explained: share that all of them foretell of trials not seen (cross-validated R^2); below 0.1 or so the shares
            mean nothing.
        trials: how many trials it is from.
    """

    shares: pd.DataFrame
    explained: float
    trials: int


def hyperparameter_importance(table: pd.DataFrame, metric: str, seed: int = 0) -> Importance:
    """Importance of the varied hyperparameters for a metric.

    A random forest learns the ranks of the metric (so that a few very poor trials do not count for everything) from
    four fifths of the trials; on the last fifth one hyperparameter after the other is shuffled, and the loss in
    foretelling is its importance (Breiman 2001).  Trials that a promotion rule stopped count, with their budget as one
    more input.  Hyperparameters that go together share their importance.  Of more than 1,000 trials 1,000 are drawn.

    Raises AnalysisError where the metric is missing, fewer than 12 trials have it, or no hyperparameter varies.
    """
    from sklearn.ensemble import RandomForestRegressor

    if metric not in table or not pd.api.types.is_numeric_dtype(table[metric]):
        raise AnalysisError(f"{metric!r} is not a column of numbers of this table")
    trials = table[table["job_status"].isin(("DONE", "STOPPED")) & np.isfinite(table[metric])]
    if len(trials) < FEWEST:
        raise AnalysisError(f"{len(trials)} trials have a value of {metric}; importance needs at least {FEWEST}")
    rng = np.random.default_rng(seed)
    trials = trials.iloc[rng.permutation(len(trials))[:MOST]]
    names = varied_hyperparameters(trials)
    if not names:
        raise AnalysisError("no hyperparameter varies among the finished trials; there is nothing to compare")
    columns = [*names, *([BUDGET] if BUDGET in trials and trials[BUDGET].nunique() > 1 else [])]
    inputs = np.column_stack([encode(trials[name]) for name in columns])
    target = trials[metric].rank().to_numpy(np.float64)
    target = (target - target.mean()) / (target.std() or 1.0)
    fold = np.arange(len(trials)) % FOLDS
    squares = np.zeros(FOLDS)
    losses = np.zeros((len(names), FOLDS))
    for held in range(FOLDS):
        learn, ask = fold != held, fold == held
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=seed + held, n_jobs=1)
        forest.fit(inputs[learn], target[learn])
        squares[held] = ((forest.predict(inputs[ask]) - target[ask]) ** 2).mean()
        for place in range(len(names)):
            shuffled = np.tile(inputs[ask], (REPEATS, 1))
            order = np.concatenate([rng.permutation(int(ask.sum())) for _ in range(REPEATS)])
            shuffled[:, place] = inputs[ask][order, place]
            wrong = ((forest.predict(shuffled) - np.tile(target[ask], REPEATS)) ** 2).mean()
            losses[place, held] = wrong - squares[held]
    shares = pd.DataFrame(
        {"name": names, "share": losses.mean(axis=1), "error": losses.std(axis=1, ddof=1) / np.sqrt(FOLDS)}
    )
    explained = 1 - float(squares.mean())
    return Importance(shares.sort_values("share", ascending=False, ignore_index=True), explained, len(trials))


def varied_hyperparameters(trials: pd.DataFrame) -> list[str]:
    """The `p:` columns with more than one value, a missing one (inactive by a condition) counted as a value."""
    return [n for n in trials.columns if n.startswith("p:") and trials[n].astype(str).nunique(dropna=False) > 1]


def encode(values: pd.Series) -> NDArray[np.float64]:
    """A hyperparameter as numbers: its own, or the place of a choice in alphabetical order; missing: below all."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(np.float64)
    else:
        texts = values.map(str, na_action="ignore")
        places = {text: float(place) for place, text in enumerate(sorted(texts.dropna().unique()))}
        numbers = texts.map(places).to_numpy(np.float64)
    known = numbers[~np.isnan(numbers)]
    below = known.min() - 1 - np.ptp(known) if len(known) else 0.0
    return np.where(np.isnan(numbers), below, numbers)
