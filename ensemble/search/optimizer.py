"""Who suggests configurations: an ask/tell contract, and DeepHyper's Bayesian optimiser behind it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ensemble.search.definition import Configuration, Objective, Search
from ensemble.search.evaluator import BalsamEvaluator, plain_configuration
from ensemble.search.ledger import Trial

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

# The cheap settings of DeepHyper's optimiser (shared/design: a `tell` of milliseconds, not seconds).
FAST = {"surrogate_model": "ET", "acq_optimizer": "sampling", "n_points": 2000, "multi_point_strategy": "cl_max"}
BATCH_SIZES = (1, 2, 4, 8)
RANDOM_POINTS = 2000


class Optimizer(Protocol):
    """Suggests configurations and learns from results.  Not thread-safe; one driver owns it."""

    def ask(self, known: Sequence[Configuration]) -> Configuration | None:
        """One configuration that is not among `known`; None where the space holds no other."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from trials that have ended; a failed one is an observation too."""


class BayesianOptimizer:
    """DeepHyper's CBO by ask and tell.

    Restarted with the trials told again, it continues: what it would suggest depends on `seed`, on how many suggestions
    there were (`asked`) and on what was told, not on the process it runs in.
    """

    def __init__(
        self, problem: HpProblem, search: Search, evaluator: BalsamEvaluator, seed: int, asked: int, log_dir: str
    ) -> None:
        from deephyper.hpo import CBO

        stream = int(np.random.SeedSequence([seed, asked]).generate_state(1)[0] % 2**31)
        options: dict[str, Any] = {**FAST, "n_initial_points": search.initial_points, **search.optimizer}
        self._names, self._space = list(problem.hyperparameter_names), problem.space
        self._cbo = CBO(problem, evaluator, random_state=stream, log_dir=log_dir, **options)
        self._cbo._setup_optimizer()

    def ask(self, known: Sequence[Configuration]) -> Configuration | None:
        # Between two tells CBO repeats its best point; a larger batch has others, which a constant liar makes diverse.
        for size in BATCH_SIZES:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The objective has been evaluated")
                suggestions = self._cbo.ask(size)
            for suggestion in suggestions:
                configuration = self._active(suggestion)
                if configuration not in known:
                    return configuration
        for point in self._cbo._opt._ask_random_points(size=RANDOM_POINTS):
            configuration = self._active(self._cbo._to_dict(point))
            if configuration not in known:
                return configuration
        return None

    def tell(self, trials: Sequence[Trial]) -> None:
        if trials:
            self._cbo._tell([(self._values(trial.configuration), _objective(trial)) for trial in trials])

    def _active(self, suggestion: dict[str, Any]) -> Configuration:
        """The suggestion as plain values, None where a condition makes a hyperparameter inactive.

        DeepHyper gives an inactive hyperparameter its lowest value, which in a table would be taken for a choice.
        """
        configuration = plain_configuration(suggestion)
        inactive = [c.child.name for c in self._space.conditions if not c.satisfied_by_value(configuration)]
        return configuration | dict.fromkeys(inactive)

    def _values(self, configuration: Configuration) -> dict[str, Any]:
        """The configuration as DeepHyper suggested it, in its order."""
        filled = [
            self._space[name].default_value if configuration[name] is None else configuration[name]
            for name in self._names
        ]
        values = self._cbo._opt.space.deactivate_inactive_dimensions(filled)
        return dict(zip(self._names, values, strict=True))


def _objective(trial: Trial) -> Objective | str:
    if trial.objective is not None:
        return trial.objective
    assert trial.outcome is not None
    return f"F_{trial.outcome.failure}"
