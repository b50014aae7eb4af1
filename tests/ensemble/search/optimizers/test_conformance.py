"""What every optimiser does, on every kind of space."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apps.core.errors import ParameterError
from ensemble.search.definition import Configuration
from ensemble.search.optimizers import OPTIMIZERS, Observation, Optimizer, OptimizerSpec, make_optimizer
from ensemble.search.space import SearchSpace
from tests.ensemble.search.optimizers.spaces import SPACES, allowed, value

Make = Callable[..., Optimizer]


@pytest.fixture(scope="module", params=sorted(SPACES))
def space_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def space(space_name: str) -> SearchSpace:
    return SearchSpace(SPACES[space_name]())


@pytest.fixture(params=sorted(OPTIMIZERS))
def make(request: pytest.FixtureRequest, space: SearchSpace) -> Make:
    return lambda **options: make_optimizer(request.param, space, **{"seed": 1, "initial_points": 4} | options)


def identity(configuration: Configuration) -> str:
    return json.dumps(configuration, sort_keys=True)


def outcomes(configurations: Sequence[Configuration], objectives: int = 1) -> list[Observation]:
    """Objectives of configurations; every fifth has failed."""
    return [
        Observation(c, None if i % 5 == 3 else tuple(value(c) * (-1) ** k for k in range(objectives)))
        for i, c in enumerate(configurations)
    ]


def searched(optimizer: Optimizer, batches: Sequence[int], objectives: int = 1) -> list[Configuration]:
    """What the optimiser asks for in such batches, all told before the next."""
    asked: list[Configuration] = []
    for count in batches:
        batch = optimizer.ask(count)
        assert len(batch) <= count
        asked += batch
        optimizer.tell(outcomes(batch, objectives))
    return asked


def test_suggestions_are_allowed_distinct_and_plain_json(make: Make, space_name: str) -> None:
    asked = searched(make(), [3, 5, 1, 4, 2])
    assert len(asked) == (7 if space_name == "tiny" else 15)
    assert len({identity(c) for c in asked}) == len(asked)
    for configuration in asked:
        assert allowed(space_name, configuration)
        assert json.loads(json.dumps(configuration)) == configuration


def test_what_is_avoided_or_told_by_others_is_never_suggested(make: Make, space: SearchSpace) -> None:
    known = make(seed=1).ask(6)  # what the same optimiser would suggest
    optimizer = make(seed=1)
    optimizer.avoid(known[:3])
    optimizer.tell(outcomes(known[3:]))
    later = searched(optimizer, [1, 4, 4])
    assert later
    assert not {identity(c) for c in known} & {identity(c) for c in later}


def test_pending_ones_are_not_suggested_again_until_released(make: Make) -> None:
    optimizer = make()
    pending = optimizer.ask(3)
    others = searched(optimizer, [2, 2])
    assert not {identity(c) for c in pending} & {identity(c) for c in others}
    optimizer.release(pending)
    optimizer.tell(outcomes(pending[:1]))  # one was used after all
    rest = optimizer.ask(100)
    assert identity(pending[0]) not in {identity(c) for c in rest}


def test_same_calls_give_the_same_suggestions(make: Make, space_name: str) -> None:
    first, second = (searched(make(), [5, 2, 3]) for _ in range(2))
    assert first == second


def test_numbers_are_told_again_without_being_new(make: Make) -> None:
    optimizer = make()
    asked = optimizer.ask(6)
    for rung in range(3):
        optimizer.tell([Observation(c, (value(c) + rung,)) for c in asked])
    assert not {identity(c) for c in asked} & {identity(c) for c in optimizer.ask(5)}


def test_all_failed(make: Make) -> None:
    optimizer = make()
    first = optimizer.ask(5)
    optimizer.tell([Observation(c, None) for c in first])
    second = optimizer.ask(2)
    assert len(second) == 2
    assert not {identity(c) for c in first} & {identity(c) for c in second}


def test_all_equal(make: Make) -> None:
    optimizer = make()
    optimizer.tell([Observation(c, (0.5,)) for c in optimizer.ask(5)])
    assert len(optimizer.ask(2)) == 2


def test_two_objectives_with_failures(make: Make, space_name: str) -> None:
    asked = searched(make(objectives=2), [6, 3, 4], objectives=2)
    assert len({identity(c) for c in asked}) == (7 if space_name == "tiny" else 13)


def test_nothing_is_asked_for(make: Make) -> None:
    assert make().ask(0) == []


def test_bad_observations_are_refused(make: Make) -> None:
    optimizer = make(objectives=2)
    asked = optimizer.ask(1)[0]
    for objectives in ((1.0,), (1.0, 2.0, 3.0), (1.0, math.nan), (math.inf, 0.0)):
        with pytest.raises(ParameterError, match="expected 2 finite numbers"):
            optimizer.tell([Observation(asked, objectives)])
    with pytest.raises(ParameterError, match="a configuration of other; this search's hyperparameters are"):
        optimizer.tell([Observation({"other": 1}, (1.0, 2.0))])
    with pytest.raises(ParameterError, match="this search's hyperparameters are"):
        optimizer.avoid([{"other": 1}])


def test_a_spec_can_be_pickled(make: Make, space: SearchSpace) -> None:
    spec = pickle.loads(pickle.dumps(OptimizerSpec("random", space, seed=4)))
    assert spec().ask(3) == make_optimizer("random", space, seed=4).ask(3)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
class TestTiny:
    """A space of seven configurations."""

    def space(self) -> Any:
        return SPACES["tiny"]()

    def test_it_is_exhausted_after_all_of_them(self, name: str) -> None:
        optimizer = make_optimizer(name, self.space(), initial_points=2)
        asked = searched(optimizer, [2, 2, 2, 2, 2])
        assert len({identity(c) for c in asked}) == len(asked) == 7
        assert optimizer.ask(1) == []

    def test_one_that_is_released_is_there_again(self, name: str) -> None:
        optimizer = make_optimizer(name, self.space(), initial_points=2)
        asked = optimizer.ask(10)
        assert len(asked) == 7
        assert optimizer.ask(1) == []
        optimizer.release(asked[2:3])
        assert optimizer.ask(3) == asked[2:3]
        assert optimizer.ask(3) == []


@pytest.mark.parametrize("name", ["cbo", "random"])
def test_the_random_stream_goes_on_after_those_asked_before(name: str) -> None:
    space = SearchSpace(SPACES["plain"]())
    seen = [identity(make_optimizer(name, space, seed=s, asked=a).ask(1)[0]) for s, a in ((1, 0), (1, 9), (2, 0))]
    assert len(set(seen)) == 3


def test_grid_is_in_order_and_even() -> None:
    optimizer = make_optimizer("grid", SPACES["plain"](), options={"points": 3})
    asked = optimizer.ask(100)
    assert len(asked) == 27
    assert [c["z"] for c in asked[:3]] == pytest.approx([1e-5, 1e-3, 1e-1])
    assert sorted({c["x"] for c in asked}) == [-5.0, 2.5, 10.0]
    assert asked[0]["x"] == asked[8]["x"] != asked[9]["x"]


def test_grid_gives_a_released_point_next_even_where_others_avoided_it() -> None:
    optimizer = make_optimizer("grid", SPACES["plain"](), options={"points": 2})
    points = make_optimizer("grid", SPACES["plain"](), options={"points": 2}).ask(8)
    optimizer.avoid(points[:2])
    assert optimizer.ask(2) == points[2:4]
    optimizer.release([points[1], points[3]])
    assert optimizer.ask(3) == [points[1], points[3], points[4]]


def test_unknown_names_and_options_are_named_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="'best': no such optimiser; known are cbo, grid, random"):
        make_optimizer("best", SPACES["plain"]())
    with pytest.raises(ParameterError, match="optimizer_options of grid: kappa: no such option; known are points"):
        OptimizerSpec("grid", SPACES["plain"](), options={"kappa": 1})
    with pytest.raises(ParameterError, match="points = 0"):
        make_optimizer("grid", SPACES["plain"](), options={"points": 0})
    with pytest.raises(ParameterError, match="objectives = 0"):
        make_optimizer("random", SPACES["plain"](), objectives=0)
