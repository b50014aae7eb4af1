"""What a simulation makes of a search: how long trials take, how they fail, what they give."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("deephyper")

from apps.core.errors import ParameterError
from apps.simulation.stage import SimulationParameters
from ensemble.search.definition import TrialRequest
from ensemble.simulation.plan import Plan, Times, load_function, simulated_data, simulated_search
from tests.ensemble.search.simulated import simulated_search as some_search

TIMES = Times("lognormal", 10.0, 0.5)


def draw(x: float, budget: int | None = None, search: Any = None, **plan: Any) -> SimulationParameters:
    made = simulated_search(
        search or some_search(rungs=(10, 40) if budget else ()), Plan(4, **{"times": TIMES, **plan})
    )
    found = made.parameters(TrialRequest({"x": x, "kind": "a"}, simulated_data(), "out", 0, budget))
    assert isinstance(found, SimulationParameters)
    return found


@pytest.mark.parametrize(
    ("text", "mean", "lowest"),
    [("constant:3", 3.0, 3.0), ("uniform:3,1", 3.0, 2.0), ("exponential:3", 3.0, 0.0), ("lognormal:3,0.8", 3.0, 0.0)],
)
def test_times_have_their_mean(text: str, mean: float, lowest: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [Times.parse(text).draw(rng) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(mean, rel=0.03)
    assert min(drawn) >= lowest


@pytest.mark.parametrize(
    "text", ["60", "lognormal", "lognormal:", "lognormal:x", "weibull:3", "constant:0", "constant:1,2", "uniform:1,2",
             "lognormal:-1", "lognormal:inf", "lognormal:1,2,3"]
)  # fmt: skip
def test_bad_times(text: str) -> None:
    with pytest.raises(ParameterError, match="trial seconds"):
        Times.parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"nodes": 0},
        {"failures": -0.1},
        {"hangs": 1.5},
        {"failures": 0.6, "hangs": 0.6},
        {"window_s": None},
        {"window_s": 0.0},
        {"time_limit_s": -1.0},
    ],
)
def test_bad_plans(fields: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Plan(**{"nodes": 4, "times": TIMES, **fields})


def test_the_same_trial_does_the_same_and_another_seed_something_else() -> None:
    assert draw(1.0) == draw(1.0)
    assert draw(1.0).seconds != draw(2.0).seconds
    assert draw(1.0).seconds != draw(1.0, seed=1).seconds


def test_fates_come_in_their_shares() -> None:
    made = simulated_search(some_search(), Plan(4, TIMES, failures=0.3, hangs=0.1))
    requests = [TrialRequest({"x": x, "kind": "a"}, simulated_data(), "o", 0) for x in np.linspace(0, 10, 3000)]
    counts = Counter(made.parameters(request).to_dict()["fate"] for request in requests)
    assert counts["hang"] == pytest.approx(300, rel=0.25)
    for fate in ("bad_configuration", "diverged", "killed"):
        assert counts[fate] == pytest.approx(300, rel=0.25)


def test_rungs_share_the_seconds_of_the_last_budget() -> None:
    whole = draw(1.0).seconds
    assert draw(1.0, budget=10).seconds == pytest.approx(whole * 10 / 40)
    assert draw(1.0, budget=40).seconds == pytest.approx(whole * 30 / 40)


def test_the_rest_of_the_search_stays() -> None:
    before = some_search(rungs=(10, 40), initial_points=7)
    made = simulated_search(before, Plan(4, TIMES, time_limit_s=33.0))
    assert (made.stage, made.time_limit_s, made.initial_points) == ("simulation", 33.0, 7)
    assert made.problem is before.problem
    assert made.measure({"objectives": [1.5]}) == (1.5,)
    assert simulated_search(before, Plan(4, TIMES)).time_limit_s == 60.0


def test_without_a_function_there_is_a_bowl_for_each_objective() -> None:
    search = some_search(objectives=("a", "b"))
    values = np.array([draw(x, search=search).objectives for x in np.linspace(0, 10, 50)])
    assert values.shape == (50, 2)
    assert (values <= 0).all()
    best = values.argmax(axis=0)
    assert (best > 0).all() and (best < 49).all()
    assert best[0] != best[1]


def test_objective_functions_are_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(configuration, budget):\n    return configuration['x'], budget\nnumber = 3\n")
    assert load_function(f"{file}:f")({"x": 2.0}, 5) == (2.0, 5)
    assert load_function("math:hypot") is __import__("math").hypot
    for wrong in ("f", "math:nothing", "no_such_module:f", f"{file}:number", f"{tmp_path}/missing.py:f"):
        with pytest.raises(ParameterError, match="objective"):
            load_function(wrong)
