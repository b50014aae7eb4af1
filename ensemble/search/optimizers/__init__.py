"""The optimisers by name.

To add one: write a subclass of `Optimizer` (contract.py) whose constructor takes a SearchSpace and, by keyword, `seed`,
`asked`, `objectives`, `initial_points` and its own options; name it in `OPTIMIZERS`; add it to the list in
tests/ensemble/search/optimizers/.  An entry is imported when it is first made.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from apps.core.errors import ParameterError
from ensemble.search.optimizers.contract import Observation, Optimizer
from ensemble.search.optimizers.transfer import observations_from_table
from ensemble.search.space import SearchSpace

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

__all__ = ["OPTIMIZERS", "Observation", "Optimizer", "OptimizerSpec", "make_optimizer", "observations_from_table"]

OPTIMIZERS = {
    "cbo": "ensemble.search.optimizers.bayesian:BayesianOptimizer",
    "random": "ensemble.search.optimizers.random_search:RandomSearch",
    "grid": "ensemble.search.optimizers.grid:GridScan",
}
COMMON = ("space", "seed", "asked", "objectives", "initial_points")


def make_optimizer(
    name: str,
    problem: HpProblem | SearchSpace,
    seed: int = 0,
    asked: int = 0,
    objectives: int = 1,
    initial_points: int = 8,
    options: dict[str, Any] | None = None,
) -> Optimizer:
    """The optimiser of this name.

    Args:
        name: a key of OPTIMIZERS.
        problem: a DeepHyper HpProblem, or the space made of it.
        seed: of its random stream.
        asked: how many suggestions earlier processes were given; the random stream goes on after them.
        objectives: how many numbers an observation has.
        initial_points: random configurations before a surrogate is asked.
        options: keyword arguments of that optimiser.

    Raises ParameterError for an unknown name or option, and for a space that cannot be searched.
    """
    kind = _kind(name, options or {})
    space = problem if isinstance(problem, SearchSpace) else SearchSpace(problem)
    return kind(space, seed=seed, asked=asked, objectives=objectives, initial_points=initial_points, **(options or {}))


@dataclass(frozen=True)
class OptimizerSpec:
    """The arguments of make_optimizer, checked, to be pickled: called, it makes the optimiser (for ProcessSuggestions).

    A problem is kept as its SearchSpace, so that another process need not import DeepHyper for it.
    """

    name: str
    problem: HpProblem | SearchSpace
    seed: int = 0
    asked: int = 0
    objectives: int = 1
    initial_points: int = 8
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _kind(self.name, self.options)
        if not isinstance(self.problem, SearchSpace):
            object.__setattr__(self, "problem", SearchSpace(self.problem))

    def __call__(self) -> Optimizer:
        return make_optimizer(
            self.name, self.problem, self.seed, self.asked, self.objectives, self.initial_points, self.options
        )


def _kind(name: str, options: dict[str, Any]) -> Callable[..., Optimizer]:
    """The class of this name.  Raises ParameterError where there is none, or it has none of these options."""
    if name not in OPTIMIZERS:
        raise ParameterError(f"optimizer = {name!r}: no such optimiser; known are {', '.join(sorted(OPTIMIZERS))}")
    module, _, attribute = OPTIMIZERS[name].partition(":")
    kind: type[Optimizer] = getattr(importlib.import_module(module), attribute)
    known = [option for option in inspect.signature(kind).parameters if option not in COMMON]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ParameterError(
            f"optimizer_options of {name}: {', '.join(unknown)}: no such option; known are {', '.join(known) or 'none'}"
        )
    return kind
