"""The search space: vectors, configurations, conditions, forbidden clauses."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import ConfigSpace
import numpy as np
import pytest

from apps.core.errors import ParameterError
from ensemble.search.definition import Configuration
from ensemble.search.space import SearchSpace, plain_configuration
from tests.ensemble.search.optimizers.spaces import SPACES, allowed, problem


@pytest.fixture(scope="module", params=sorted(SPACES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def space(name: str) -> SearchSpace:
    return SearchSpace(SPACES[name]())


def distinct(configurations: list[Configuration]) -> int:
    return len({tuple(c.values()) for c in configurations})


def test_samples_are_allowed_and_vary(name: str, space: SearchSpace) -> None:
    vectors = space.sample(500, np.random.default_rng(0))
    configurations = space.configurations(vectors)
    assert vectors.shape == (500, len(space.names))
    assert all(allowed(name, c) for c in configurations)
    assert all(list(c) == space.names for c in configurations)
    assert distinct(configurations) == 7 if name == "tiny" else distinct(configurations) > 250
    assert (space.sample(500, np.random.default_rng(0))[~np.isnan(vectors)] == vectors[~np.isnan(vectors)]).all()


def test_vectors_and_configurations_are_each_others(space: SearchSpace) -> None:
    vectors = space.sample(200, np.random.default_rng(1))
    again = space.vectors(space.configurations(vectors))
    assert again == pytest.approx(vectors, nan_ok=True)
    one = space.configuration(vectors[0])
    assert space.vector(one) == pytest.approx(vectors[0], nan_ok=True)
    assert space.vectors([]).shape == (0, len(space.names))
    assert space.configurations(vectors[:0]) == []


def test_neighbours_are_allowed_and_near(name: str, space: SearchSpace) -> None:
    rng = np.random.default_rng(2)
    centre = space.sample(1, rng)
    around = space.neighbours(np.repeat(centre, 300, 0), rng)
    assert 100 < len(around) <= 300
    assert all(allowed(name, c) for c in space.configurations(around))
    moved = ~np.isclose(around, centre) & ~(np.isnan(around) & np.isnan(centre))
    assert moved.any(1).mean() > 0.5
    ranges = np.isinf(space.choices) & ~np.isnan(centre[0])
    if ranges.any():
        assert np.nanmedian(np.abs(around - centre)[:, ranges][moved[:, ranges]]) < 0.15


def test_neighbours_reach_the_whole_space(name: str, space: SearchSpace) -> None:
    rng = np.random.default_rng(3)
    walk = space.sample(40, rng)
    seen = []
    for _ in range(30):
        around = space.neighbours(walk, rng)
        walk = np.concatenate([around, walk])[:40]
        seen += space.configurations(around)
    assert distinct(seen) == 7 if name == "tiny" else distinct(seen) > 300
    for hyperparameter, choices in zip(space.names, space.choices, strict=True):
        if choices <= 8:
            assert len({c[hyperparameter] for c in seen} - {None}) == choices - (name == "forbidden" and choices == 5)


def test_grid_has_every_allowed_combination_once(name: str, space: SearchSpace) -> None:
    configurations = [c for chunk in space.grid(3) for c in space.configurations(chunk)]
    assert distinct(configurations) == len(configurations)
    assert all(allowed(name, c) for c in configurations)
    expected = {"plain": 27, "conditional": 1 + 3 * (1 + 1 + 2) + 3, "forbidden": 10, "mixed": 3 * 3 * 4 * 3 * 3 * 2}
    assert len(configurations) == (expected | {"tiny": 7})[name]


def test_a_grid_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace(SPACES["conditional"]())
    whole = np.concatenate(list(space.grid(3)))
    monkeypatch.setattr("ensemble.search.space.GRID_CHUNK", 7)
    assert np.concatenate(list(space.grid(3))) == pytest.approx(whole, nan_ok=True)


def test_a_grid_of_every_value_needs_a_finite_space() -> None:
    assert sum(map(len, SearchSpace(SPACES["tiny"]()).grid())) == 7
    with pytest.raises(ParameterError, match="needs a number of points"):
        next(SearchSpace(SPACES["plain"]()).grid())


def test_it_survives_pickling(space: SearchSpace) -> None:
    again = pickle.loads(pickle.dumps(space))
    first, second = (s.sample(100, np.random.default_rng(4)) for s in (space, again))
    assert again.configurations(second) == space.configurations(first)
    assert again.neighbours(second, np.random.default_rng(5)) == pytest.approx(
        space.neighbours(first, np.random.default_rng(5)), nan_ok=True
    )


def test_coordinates() -> None:
    """A range on its own scale, an ordinal choice by its place, a truth value as itself."""
    made = problem()
    made.add_hyperparameter((1e-4, 1.0, "log-uniform"), "rate")
    made.add_hyperparameter((0.0, 8.0), "width")
    made.add_hyperparameter([8, 16, 32], "features")
    made.add_hyperparameter([True, False], "flip")
    space = SearchSpace(made)
    configuration = {"rate": 1e-2, "width": 2.0, "features": 32, "flip": False}
    vector = dict(zip(space.names, space.vector(configuration), strict=True))
    assert vector == pytest.approx({"rate": 0.5, "width": 0.25, "features": 2, "flip": 1})
    assert space.configuration(space.vector(configuration))["flip"] is False
    assert space.size == np.inf
    assert dict(zip(space.names, space.categorical, strict=True))["flip"]


def test_ends_of_ranges_are_kept_exactly() -> None:
    made = problem()
    made.add_hyperparameter((1e-5, 0.1, "log-uniform"), "rate")
    made.add_hyperparameter((3, 700, "log-uniform"), "n")
    space = SearchSpace(made)
    ends = space.configurations(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert [sorted(c.values()) for c in ends] == [[1e-5, 3], [0.1, 700]]
    for n in range(3, 701):
        assert space.configuration(space.vector({"rate": 0.01, "n": n}))["n"] == n


def test_a_child_of_what_is_inactive_is_inactive() -> None:
    """Even where its condition, `not equal`, would hold for a parent without a value."""
    made = problem()
    top = made.add_hyperparameter(["on", "off"], "top")
    middle = made.add_hyperparameter(["x", "y"], "middle")
    bottom = made.add_hyperparameter((0.0, 1.0), "bottom")
    made.add_condition(ConfigSpace.EqualsCondition(middle, top, "on"))
    made.add_condition(ConfigSpace.NotEqualsCondition(bottom, middle, "x"))
    space = SearchSpace(made)
    for c in space.configurations(space.sample(100, np.random.default_rng(0))):
        assert (c["middle"] is None) == (c["top"] == "off")
        assert (c["bottom"] is not None) == (c["middle"] == "y")


@pytest.mark.parametrize(
    ("conjunction", "holds"), [(ConfigSpace.AndConjunction, all), (ConfigSpace.OrConjunction, any)]
)
def test_conditions_together(conjunction: Any, holds: Any) -> None:
    made = problem()
    a, b = made.add_hyperparameter(["x", "y"], "a"), made.add_hyperparameter((0.0, 1.0), "b")
    child = made.add_hyperparameter((0.0, 1.0), "child")
    conditions = ConfigSpace.EqualsCondition(child, a, "x"), ConfigSpace.GreaterThanCondition(child, b, 0.5)
    made.add_condition(conjunction(*conditions))
    space = SearchSpace(made)
    for c in space.configurations(space.sample(100, np.random.default_rng(0))):
        assert (c["child"] is not None) == holds([c["a"] == "x", c["b"] > 0.5])


def test_values_of_inactive_hyperparameters_are_passed_over() -> None:
    """DeepHyper's tables hold the lowest value there; the configuration is the same one."""
    space = SearchSpace(SPACES["tiny"]())
    own, theirs = {"kind": "b", "m": 3, "n": None}, {"kind": "b", "m": 3, "n": 1}
    vectors = space.vectors([own, theirs])
    assert np.isnan(vectors[:, space.names.index("n")]).all()
    assert space.key(own, vectors[0]) == space.key(theirs, vectors[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": None}, r"n has no value in .*expected one, as it is active"),
        ({"n": 3}, r"n = 3: expected an integer in 1 \.\.\. 2"),
        ({"n": 1.5}, r"n = 1.5: expected an integer"),
        ({"n": "one"}, r"n = 'one': expected an integer"),
        ({"n": True}, r"n = True: expected an integer"),
        ({"kind": "c"}, r"kind = 'c': expected one of 'a', 'b'"),
        ({"kind": None}, r"kind has no value"),
        ({"other": 1}, r"a configuration of kind, m, n, other; this search's hyperparameters are kind, m, n"),
    ],
)
def test_configurations_of_another_space_are_refused(change: dict[str, Any], message: str) -> None:
    space = SearchSpace(SPACES["tiny"]())
    good = {"kind": "a", "m": 1, "n": 2}
    space.vector(good)
    with pytest.raises(ParameterError, match=message):
        space.vectors([good, good | change])


def test_problems_that_cannot_be_searched_are_refused() -> None:
    with pytest.raises(ParameterError, match="is a dict; expected a deephyper HpProblem"):
        SearchSpace({})
    with pytest.raises(ParameterError, match="no free hyperparameter"):
        SearchSpace(problem())
    constant = problem()
    constant.add_hyperparameter(3, "constant")
    constant.add_hyperparameter(["one"], "single")
    with pytest.raises(ParameterError, match="no free hyperparameter"):
        SearchSpace(constant)
    pairs = problem()
    pairs.add_hyperparameter(ConfigSpace.CategoricalHyperparameter("shape", [(1, 2), (3, 4)]))
    with pytest.raises(ParameterError, match=r"shape: the choice \(1, 2\) is no text"):
        SearchSpace(pairs)
    nothing = problem()
    nothing.add_hyperparameter(ConfigSpace.CategoricalHyperparameter("mask", ["yes", None]))
    with pytest.raises(ParameterError, match="mask: the choice None is no text"):
        SearchSpace(nothing)
    outside = problem()
    outside.add_hyperparameter((0.0, 1.0), "x").default_value = 3.0
    with pytest.raises(ParameterError, match=r"x: its default 3.0 is outside its range"):
        SearchSpace(outside)


def test_a_space_of_nothing_but_forbidden_ones_is_refused() -> None:
    made = problem()
    a = made.add_hyperparameter([1, 2], "a")
    made.space.add(ConfigSpace.ForbiddenEqualsClause(a, 2))
    space = SearchSpace(made)
    space._forbidden.append(ConfigSpace.ForbiddenEqualsClause(a, 1))
    space._forbidden[-1].set_vector_idx(made.space.index_of)
    assert space.sample(3, np.random.default_rng(0)).shape == (0, 1)


def test_rare_configurations_are_found_by_enumeration() -> None:
    """Two of 4,096 configurations are allowed."""
    made = problem()
    digits = [made.add_hyperparameter(list(range(8)), f"d{i}") for i in range(4)]
    for d, e in itertools.pairwise(digits):
        made.add_forbidden_clause(ConfigSpace.ForbiddenLessThanRelation(d, e))
        made.add_forbidden_clause(ConfigSpace.ForbiddenGreaterThanRelation(d, e))
    made.add_forbidden_clause(ConfigSpace.ForbiddenInClause(digits[0], [1, 2, 3, 4, 5, 6]))
    space = SearchSpace(made)
    assert {tuple(c.values()) for c in space.configurations(space.sample(5000, np.random.default_rng(0)))} == {
        (0, 0, 0, 0),
        (7, 7, 7, 7),
    }


def test_plain_configuration() -> None:
    assert plain_configuration({"a": np.float64(0.5), "b": np.int64(2), "c": float("nan"), "d": np.str_("x")}) == {
        "a": 0.5,
        "b": 2,
        "c": None,
        "d": "x",
    }
