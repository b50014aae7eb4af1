"""What a search file defines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DataError, ParameterError
from apps.core.parameters import Parameters
from apps.core.stage import load_stage
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

Configuration = dict[str, Any]
Objective = float | tuple[float, ...]


@dataclass(frozen=True)
class Search:
    """A search: the space, how a configuration becomes a stage's parameters, and what is maximised.

    Attributes:
        problem: a DeepHyper HpProblem, or a function of the campaign's data that returns one.
        parameters: (configuration, data, output folder, seed) -> the stage's parameters.
        objective: (the stage's result as plain JSON) -> what DeepHyper maximises; a tuple for several objectives.
        stage: the stage that evaluates a configuration.
        geometry: the largest field of view and deltas in the space; training coordinates are sampled for it.
        initial_points: random configurations before the surrogate is asked.
        optimizer: further keyword arguments of deephyper.hpo.CBO.
    """

    problem: HpProblem | Callable[[CampaignData], HpProblem]
    parameters: Callable[[Configuration, CampaignData, str, int], Parameters]
    objective: Callable[[dict[str, Any]], Objective]
    stage: str = "trial"
    geometry: Geometry = field(default_factory=Geometry)
    initial_points: int = 8
    optimizer: dict[str, Any] = field(default_factory=dict)

    def problem_for(self, data: CampaignData) -> HpProblem:
        """The problem on this data.  Raises ParameterError where it has no free hyperparameter."""
        problem = self.problem(data) if callable(self.problem) else self.problem
        if not hasattr(problem, "space"):
            raise ParameterError(f"the search's problem is a {type(problem).__name__}; expected a deephyper HpProblem")
        if all(getattr(hp, "size", 1) == 1 for hp in problem.space.values()):
            raise ParameterError("the search's problem has no free hyperparameter; add one with a range or choices")
        return problem


def load_search(path: str | Path) -> tuple[str, Search]:
    """Run a search file and return its name (the file's stem) and its `search`.

    Raises DataError where the file is missing or fails, ParameterError where it defines no `search` of type Search.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such search file; searches/ holds some to copy")
    name = file.stem
    spec = importlib.util.spec_from_file_location(f"ensemble_search_{name}", file)
    if spec is None or spec.loader is None:
        raise DataError(f"{file}: is not a Python file; expected one that defines `search = Search(...)`")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{file}: cannot be loaded: {type(error).__name__}: {error}") from error
    search = getattr(module, "search", None)
    if not isinstance(search, Search):
        raise ParameterError(
            f"{file}: defines no search; expected `search = Search(problem=..., ...)` at its top level"
        )
    load_stage(search.stage)
    return name, search
