"""What is simulated: how long trials take, how often they fail, what they give.

All of it depends on the seed, the configuration and the budget alone, so that the same trial always does the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.boxes import Box
from apps.core.errors import ParameterError
from apps.core.parameters import json_hash
from apps.simulation.stage import STAGE, Fate, SimulationParameters
from ensemble.campaigns import CampaignData
from ensemble.search.definition import Configuration, Objective, Search, TrialRequest
from ensemble.search.space import SearchSpace

ObjectiveFunction = Callable[[Configuration, int | None], Objective]
"""(configuration, budget of the rung) -> what is maximised."""

FAILURES: tuple[Fate, ...] = ("bad_configuration", "diverged", "killed")
"""A trial that is to fail does so in one of these ways, each as likely; a killed one succeeds in its next attempt."""

# A trial may take so many mean times, where the plan does not say: longer are one in 7,000 log-normal ones (0.5).
LIMIT_IN_MEANS = 6.0


@dataclass(frozen=True)
class Times:
    """A distribution of seconds: `constant`, `uniform` (mean - spread to mean + spread), `exponential` or `lognormal`.

    spread: of a log-normal one the standard deviation of its logarithm.
    """

    kind: str
    mean: float
    spread: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Times:
        """`KIND:MEAN` or `KIND:MEAN,SPREAD`.  Raises ParameterError that shows the forms."""
        kind, _, rest = text.partition(":")
        try:
            numbers = [float(number) for number in rest.split(",")]
        except ValueError:
            numbers = []
        spreads = {"constant": 0, "exponential": 0, "uniform": 1, "lognormal": 1}.get(kind)
        plausible = all(math.isfinite(number) and number >= 0 for number in numbers)
        if spreads is None or not 1 <= len(numbers) <= 1 + spreads or not plausible or numbers[0] == 0:
            raise ParameterError(
                f"trial seconds {text!r}: expected constant:MEAN, uniform:MEAN,HALF_WIDTH, exponential:MEAN "
                "or lognormal:MEAN,SIGMA, for example lognormal:60,0.5"
            )
        spread = numbers[1] if len(numbers) > 1 else (0.5 if kind == "lognormal" else 0.0)
        if kind == "uniform" and spread > numbers[0]:
            raise ParameterError(f"trial seconds {text!r}: the half width is larger than the mean")
        return cls(kind, numbers[0], spread)

    def draw(self, rng: np.random.Generator) -> float:
        if self.kind == "lognormal":
            return float(self.mean * math.exp(rng.normal(-(self.spread**2) / 2, self.spread)))
        if self.kind == "exponential":
            return float(rng.exponential(self.mean))
        return float(rng.uniform(self.mean - self.spread, self.mean + self.spread))


@dataclass(frozen=True)
class Plan:
    """A simulation.  Raises ParameterError for numbers that cannot be.

    Attributes:
        nodes: virtual nodes.
        times: seconds that a trial takes; of a rung its part of the last budget.
        window_s: how long the search is watched once all nodes are busy; None: until `trials` have ended.
        trials: trials in all; None: until the window is over.
        failures: share of the trials that fail (FAILURES).
        hangs: share of the trials that never end by themselves.
        time_limit_s: after which a trial is ended, as hung; None: LIMIT_IN_MEANS times the mean.
        seed: of everything random.
    """

    nodes: int
    times: Times
    window_s: float | None = 120.0
    trials: int | None = None
    failures: float = 0.0
    hangs: float = 0.0
    time_limit_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.window_s is None and self.trials is None:
            raise ParameterError("a simulation needs an end: give a window or a number of trials")
        for name in ("nodes", "window_s", "trials", "time_limit_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ParameterError(f"{name} = {value}: expected a positive number")
        for name in ("failures", "hangs"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"{name} = {getattr(self, name)}: expected a share from 0 to 1")
        if self.failures + self.hangs > 1:
            raise ParameterError(f"failures {self.failures} and hangs {self.hangs}: more than all trials together")

    @property
    def limit_s(self) -> float:
        return self.time_limit_s or LIMIT_IN_MEANS * self.times.mean


def simulated_search(search: Search, plan: Plan, function: ObjectiveFunction | None = None) -> Search:
    """The search with its trials replaced by jobs of the stage `simulation`; what it optimises, and how, stays.

    function: the objective; without one each objective is a bowl over the unit cube of the space, highest (0) at a
    point drawn from the seed, and lower by up to 0.5 at small budgets.
    """
    given = function or _bowls(SearchSpace(search.problem_for(simulated_data())), len(search.objectives), plan.seed)
    last = search.rungs[-1] if search.rungs else None

    def parameters(request: TrialRequest) -> SimulationParameters:
        configuration, budget = request.configuration, request.budget
        rng = np.random.default_rng([plan.seed, int(json_hash(configuration), 16)])
        seconds, kind = plan.times.draw(rng), rng.random()
        failure = FAILURES[rng.integers(len(FAILURES))]
        fate: Fate = "hang" if kind < plan.hangs else failure if kind < plan.hangs + plan.failures else "ok"
        if budget is not None and last is not None:
            before = max((rung for rung in search.rungs if rung < budget), default=0)
            seconds *= (budget - before) / last
        found = given(configuration, budget)
        objectives = tuple(float(number) for number in (found if isinstance(found, tuple | list) else (found,)))
        return SimulationParameters(seconds=seconds, objectives=objectives, fate=fate, output=request.output)

    return replace(
        search,
        parameters=parameters,
        objective=lambda result: tuple(result["objectives"]),
        stage=STAGE.name,
        time_limit_s=plan.limit_s,
    )


def load_function(name: str) -> ObjectiveFunction:
    """The objective that `module:function` or `file.py:function` names.  Raises ParameterError where there is none."""
    place, _, attribute = name.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"ensemble_objective_{Path(place).stem}", place)
            if spec is None or spec.loader is None:
                raise ImportError("no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        function: ObjectiveFunction = getattr(module, attribute)
    except Exception as error:
        raise ParameterError(
            f"objective {name!r}: cannot be loaded ({type(error).__name__}: {error}); expected module:function or "
            "file.py:function, a function of (configuration, budget)"
        ) from error
    if not callable(function):
        raise ParameterError(f"objective {name!r}: is no function")
    return function


def simulated_data() -> CampaignData:
    """The data of a campaign that has none; search files may ask for its sizes."""
    box = Box(offset=(0, 0, 0), shape=(256, 256, 256))
    return CampaignData(
        image="simulated",
        labels="simulated",
        coordinates="simulated",
        image_mean=128.0,
        image_std=33.0,
        voxel_size_nm=(10.0, 10.0, 10.0),
        data_hash="simulated",
        training_box=box,
        validation_box=box,
        test_box=box,
        fov=(33, 33, 33),
        deltas=(8, 8, 8),
        trivial_answers={},
        init="simulated",
    )


def _bowls(space: SearchSpace, objectives: int, seed: int) -> ObjectiveFunction:
    rng = np.random.default_rng(seed)
    optima = rng.uniform(0.2, 0.8, (objectives, len(space.names)))
    # Choices are numbered from 0, ranges go from 0 to 1.
    scale = np.maximum(np.nanmax(space.sample(256, rng), axis=0), 1.0)

    def function(configuration: Configuration, budget: int | None) -> Objective:
        away = (space.vector(configuration) / scale - optima) ** 2
        missing = 0.0 if budget is None else 0.5 / (1 + math.log1p(budget))
        return tuple(float(-total - missing) for total in np.nansum(away, axis=1))

    return function


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan in a report."""
    return {
        "nodes": plan.nodes,
        "trial_seconds": f"{plan.times.kind}:{plan.times.mean:g},{plan.times.spread:g}",
        "failures": plan.failures,
        "hangs": plan.hangs,
        "time_limit_s": plan.limit_s,
        "seed": plan.seed,
    }
