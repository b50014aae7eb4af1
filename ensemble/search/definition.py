"""What a search file defines."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DataError, EnsembleError, ParameterError
from apps.core.parameters import Parameters
from apps.core.stage import load_stage
from ensemble.campaigns import CampaignData
from ensemble.preparation import Geometry
from ensemble.search.promotion import AsynchronousHalving, PromotionRule

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

Configuration = dict[str, Any]
"""Hyperparameter -> value, as plain JSON; None where a condition makes the hyperparameter inactive."""

Objective = float | tuple[float, ...]


class ObjectivesError(ParameterError):
    """The search's objective function is wrong for every trial: it fails, or gives another number of objectives."""


@dataclass(frozen=True)
class TrialRequest:
    """What a search is asked to make a stage's parameters of.

    Attributes:
        configuration: the suggestion.
        data: the campaign's prepared data.
        output: folder of the trial, the same for all its rungs, so that a rung goes on from the last one's checkpoint.
        seed: of the trial.
        budget: that of the rung (`Search.rungs`); None where the search has no rungs.
    """

    configuration: Configuration
    data: CampaignData
    output: str
    seed: int
    budget: int | None = None


@dataclass(frozen=True)
class JobSize:
    """How much of a machine a trial takes.  Raises ParameterError where a number is not positive."""

    num_nodes: int = 1
    ranks_per_node: int = 1

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.ranks_per_node < 1:
            raise ParameterError(f"{self}: expected at least one node and one rank a node")


@dataclass(frozen=True)
class Retries:
    """How often a rung whose job the machine ended is started, and how long is waited before it is started again.

    Attributes:
        attempts: starts of one rung at most.
        backoff_s: seconds before the second start; twice as many before every further one.
    """

    attempts: int = 3
    backoff_s: float = 30.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.backoff_s < 0:
            raise ParameterError(f"{self}: expected at least one attempt and no negative wait")

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after attempt `attempt` (1 is the first) has failed."""
        return float(self.backoff_s * 2 ** (attempt - 1))


@dataclass(frozen=True)
class Search:
    """A search: the space, how a configuration becomes a stage's parameters, and what is maximised.

    Attributes:
        problem: a DeepHyper HpProblem, or a function of the campaign's data that returns one.
        parameters: (what is asked for) -> the stage's parameters.
        objective: (the stage's result as plain JSON) -> what is maximised; a tuple for several objectives.
        objectives: their names; a result of another number of objectives is an error.
        stage: the stage that evaluates a configuration.
        geometry: the largest field of view and deltas in the space; training coordinates are sampled for it.  None for
            a stage that needs none: the campaign's columns are divided, and its labels may be classes.
        optimizer: who suggests, a name in ensemble.search.optimizers.OPTIMIZERS.
        initial_points: random configurations before the surrogate is asked.
        optimizer_options: further keyword arguments of the optimiser.
        rungs: budgets of successive halving, increasing (steps of training, say); none: every trial is run whole, once.
        promotion: which trials go on to the next rung.
        size: nodes and ranks of a trial's job, the same for all or by configuration.
        time_limit_s: what one rung's job may take at most; it is ended then, and the trial has failed as `hung`.
        retries: of jobs that the machine ended.
        source: hash of the search file, which `load_search` sets: trials of a changed file are not mixed unawares.
    """

    problem: HpProblem | Callable[[CampaignData], HpProblem]
    parameters: Callable[[TrialRequest], Parameters]
    objective: Callable[[dict[str, Any]], Objective]
    objectives: tuple[str, ...] = ("objective",)
    stage: str = "trial"
    geometry: Geometry | None = field(default_factory=Geometry)
    optimizer: str = "cbo"
    initial_points: int = 8
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    rungs: tuple[int, ...] = ()
    promotion: PromotionRule = field(default_factory=AsynchronousHalving)
    size: Callable[[Configuration], JobSize] | JobSize = field(default_factory=JobSize)
    time_limit_s: float | None = None
    retries: Retries = field(default_factory=Retries)
    source: str = ""

    def __post_init__(self) -> None:
        if not self.objectives:
            raise ParameterError("objectives: expected at least one name")
        if self.rungs and (self.rungs[0] < 1 or any(b <= a for a, b in pairwise(self.rungs))):
            raise ParameterError(f"rungs {self.rungs}: expected increasing positive budgets")
        if self.time_limit_s is not None and self.time_limit_s <= 0:
            raise ParameterError(f"time_limit_s = {self.time_limit_s}: expected a positive number of seconds, or None")

    def problem_for(self, data: CampaignData) -> HpProblem:
        """The problem on this data.

        Raises ParameterError where it is none, has no free hyperparameter, or its function fails (a default outside its
        range, an empty list of choices).
        """
        from ensemble.search.space import SearchSpace

        try:
            problem = self.problem(data) if callable(self.problem) else self.problem
        except EnsembleError:
            raise
        except Exception as error:
            raise ParameterError(
                f"the search file's problem cannot be made: {type(error).__name__}: {error}"
            ) from error
        SearchSpace(problem)
        return problem

    def size_of(self, configuration: Configuration) -> JobSize:
        """Nodes and ranks of the trial.  Raises what `size` raises, ParameterError where that gives no JobSize."""
        size = self.size(configuration) if callable(self.size) else self.size
        if not isinstance(size, JobSize):
            raise ParameterError(f"size: the search file gives {size!r}; expected a JobSize")
        return size

    @property
    def last_rung(self) -> int:
        return max(0, len(self.rungs) - 1)

    def budget(self, rung: int) -> int | None:
        return self.rungs[rung] if self.rungs else None

    def measure(self, result: dict[str, Any]) -> tuple[float, ...]:
        """The objectives of a result, as many as are named.

        Raises ObjectivesError where they are more or fewer, ValueError where one is no finite number, and what the
        search file's function raises.
        """
        found = self.objective(result)
        numbers = tuple(float(number) for number in (found if isinstance(found, tuple | list) else (found,)))
        if len(numbers) != len(self.objectives):
            raise ObjectivesError(
                f"the search's objective function gives {found}, expected {len(self.objectives)} number(s): "
                f"{', '.join(self.objectives)}; correct the search file and run it again with --accept-changes, which "
                "finds the results again"
            )
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"the objective is {found}, which is not finite")
        return numbers


def load_search(path: str | Path) -> tuple[str, Search]:
    """Run a search file and return its name (the file's stem) and its `search`.

    Raises DataError where the file is missing or fails, ParameterError where it defines no `search` of type Search, or
    one whose space or optimiser cannot work.
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
    _check_early(search)
    return name, replace(search, source=hashlib.sha256(file.read_bytes()).hexdigest()[:16])


def _check_early(search: Search) -> None:
    """Refuse, before there is a campaign, what can be known to be wrong without its data.  Raises ParameterError."""
    from ensemble.search.optimizers import OPTIMIZERS, OptimizerSpec

    if not callable(search.problem):
        OptimizerSpec(search.optimizer, search.problem, options=search.optimizer_options)
    elif search.optimizer not in OPTIMIZERS:
        raise ParameterError(f"optimizer = {search.optimizer!r}: expected one of {', '.join(sorted(OPTIMIZERS))}")
