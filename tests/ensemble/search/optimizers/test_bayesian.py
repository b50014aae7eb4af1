"""The Bayesian optimiser: what it learns, and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import check_grad

from apps.core.errors import DataError, ParameterError
from ensemble.search.definition import Configuration
from ensemble.search.optimizers import Observation, make_optimizer, observations_from_table
from ensemble.search.optimizers.bayesian import BayesianOptimizer
from ensemble.search.optimizers.gaussian_process import GaussianProcess
from ensemble.search.optimizers.surrogate import ALL_FORESTS, FORESTS, ForestSurrogate, Surrogate
from ensemble.search.optimizers.targets import STRATEGIES, Targets
from ensemble.search.space import SearchSpace
from tests.ensemble.search.optimizers.spaces import SPACES

EVALUATIONS = 48


@pytest.fixture(scope="module")
def plain() -> SearchSpace:
    return SearchSpace(SPACES["plain"]())


def objective(c: Configuration) -> float:
    """Best, 0, at (3, 0.2, 1e-3)."""
    return float(-(((c["x"] - 3) / 15) ** 2) - (c["y"] - 0.2) ** 2 - (np.log10(c["z"] / 1e-3) / 4) ** 2)


def best_of(name: str, space: SearchSpace, seed: int, batch: int, **options: Any) -> float:
    optimizer = make_optimizer(name, space, seed=seed, options=options)
    best = -np.inf
    for _ in range(EVALUATIONS // batch):
        asked = optimizer.ask(batch)
        assert len(asked) == batch
        observations = [Observation(c, (objective(c),)) for c in asked]
        best = max(best, *(objective(c) for c in asked))
        optimizer.tell(observations)
    return best


@pytest.mark.parametrize(("surrogate", "batch", "better"), [("GP", 12, 20.0), ("ET", 6, 1.5)])
def test_it_finds_better_ones_than_random_search(plain: SearchSpace, surrogate: str, batch: int, better: float) -> None:
    ours = [best_of("cbo", plain, seed, batch, surrogate_model=surrogate) for seed in range(3)]
    random = [best_of("random", plain, seed, batch) for seed in range(9)]
    assert np.median(ours) > np.median(random) / better  # both are distances below 0


@pytest.mark.parametrize("surrogate", ["GP", "ET"])
def test_it_avoids_where_trials_fail(plain: SearchSpace, surrogate: str) -> None:
    """Half of the space fails; few of the later suggestions are there, and what succeeds is still told apart."""
    optimizer = make_optimizer("cbo", plain, seed=2, options={"surrogate_model": surrogate})
    late = []
    for round_ in range(5):
        asked = optimizer.ask(10)
        late += asked if round_ > 2 else []
        optimizer.tell([Observation(c, None if c["y"] > 0.5 else (objective(c),)) for c in asked])
    assert sum(c["y"] > 0.5 for c in late) < len(late) / 5
    assert max(objective(c) for c in late) > -0.02


def test_a_batch_is_diverse(plain: SearchSpace) -> None:
    """While little is known, a large batch is spread over the space, and no two of it are side by side."""
    for surrogate in ("GP", "ET"):
        optimizer = make_optimizer("cbo", plain, seed=0, options={"surrogate_model": surrogate})
        optimizer.tell([Observation(c, (objective(c),)) for c in optimizer.ask(10)])
        batch = plain.vectors(optimizer.ask(64))
        assert (np.ptp(batch, axis=0) > 0.5).all()
        assert len(np.unique(batch.round(2), axis=0)) > 35  # a forest cannot tell apart what is in one of its cells


def test_what_is_pending_is_believed_near_the_truth_until_it_is_told_or_released(plain: SearchSpace) -> None:
    optimizer = make_optimizer("cbo", plain, seed=0)
    assert isinstance(optimizer, BayesianOptimizer)
    known = [Observation(c, (objective(c),)) for c in optimizer.ask(40)]
    optimizer.tell(known)
    pending = optimizer.ask(16)
    optimizer.tell(known[:1])
    later = optimizer.ask(1)  # after a fit with them
    keys = [plain.key(c, plain.vector(c)) for c in pending]
    believed = [optimizer._beliefs[key][0] for key in keys]
    assert believed == pytest.approx([objective(c) for c in pending], abs=0.05)
    optimizer.tell([Observation(c, (objective(c),)) for c in pending[:10]])
    optimizer.release(pending[10:] + later)
    optimizer.ask(1)
    assert not set(keys) & set(optimizer._beliefs)


def test_earlier_outcomes_start_the_search_and_may_be_suggested_again(plain: SearchSpace) -> None:
    source = make_optimizer("random", plain, seed=5)
    earlier = [Observation(c, (objective(c),)) for c in source.ask(60)]
    optimizer = make_optimizer("cbo", plain, seed=6, options={"transfer": earlier})
    informed = np.mean([objective(c) for c in optimizer.ask(8)])
    assert informed > np.mean([objective(c) for c in make_optimizer("cbo", plain, seed=6).ask(8)]) / 2
    tiny = SPACES["tiny"]()
    known = [Observation(c, (1.0 * i,)) for i, c in enumerate(make_optimizer("grid", tiny).ask(7))]
    assert len(make_optimizer("cbo", tiny, options={"transfer": known}).ask(9)) == 7


def test_large_histories_are_sampled(plain: SearchSpace) -> None:
    optimizer = make_optimizer("cbo", plain, seed=0, options={"max_points": 50})
    optimizer.tell([Observation(c, (objective(c),)) for c in make_optimizer("random", plain, seed=1).ask(300)])
    asked = optimizer.ask(20)
    assert np.median([objective(c) for c in asked]) > -0.1


def trade_off(c: Configuration) -> tuple[float, float]:
    """A front from (0, -1) to (-1, 0) at y = 0 and the smallest z (as ZDT1 of Zitzler et al. 2000)."""
    first = (c["x"] + 5) / 15
    others = 1 + 9 * (c["y"] + (np.log10(c["z"]) + 5) / 4) / 2
    return -first, float(-others * (1 - np.sqrt(first / others)))


def dominated_area(points: list[tuple[float, float]]) -> float:
    """The area between points, both coordinates maximised, and (-1, -6)."""
    area, floor = 0.0, -6.0
    for first, second in sorted(points, reverse=True):
        if second > floor:
            area += (first + 1) * (second - floor)
            floor = second
    return area


def test_two_objectives_find_the_whole_front() -> None:
    """One trial in ten fails."""
    area = {}
    for name in ("cbo", "random"):
        optimizer = make_optimizer(name, SPACES["plain"](), seed=0, objectives=2)
        points: list[tuple[float, float]] = []
        for _ in range(8):
            asked = optimizer.ask(10)
            optimizer.tell([Observation(c, trade_off(c) if i else None) for i, c in enumerate(asked)])
            points += [trade_off(c) for c in asked[1:]]
        area[name] = dominated_area(points)
    whole = 6 - 1 / 3
    assert whole - area["cbo"] < (whole - area["random"]) / 3


def test_strategies_are_those_of_deephyper() -> None:
    from deephyper.skopt.moo import moo_functions

    assert set(STRATEGIES) == set(moo_functions)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_targets_of_several_objectives(strategy: str) -> None:
    """What is dominated has no larger target; with all weight on one objective, that one orders."""
    rng = np.random.default_rng(0)
    objectives = np.array([[3.0, 3.0], [2.0, 1.0], [1.0, 2.0], [0.0, 0.0]])
    targets = Targets(2, strategy, None, None, 5)(objectives, 0.1, rng)
    assert targets.shape == (4, 5)
    if strategy != "PBI":  # which prefers the direction of its weights
        assert (targets[0] >= targets[1:3]).all()
        assert (targets[1:3] >= targets[3] - 1e-9).all()
    fixed = Targets(2, "Linear", [0.0, 1.0], None, 5)(objectives, 0.1, rng)
    assert fixed.shape == (4, 1)
    assert list(np.argsort(-fixed[:, 0])) == [0, 2, 1, 3]


def test_targets_with_lower_bounds() -> None:
    objectives = np.array([[1.0, 0.0], [0.9, 1.0], [0.5, 2.0], [0.2, 3.0]])
    rng = np.random.default_rng(0)
    free = Targets(2, "Linear", [1.0, 0.0], None, 1)(objectives, 0.1, rng)
    assert np.argmax(free) == 0
    bounded = Targets(2, "Linear", [1.0, 0.0], [None, 1.5], 1)(objectives, 0.1, rng)
    assert np.argmax(bounded) == 2


def test_targets_of_one_objective_keep_its_order_and_stretch_the_best() -> None:
    objectives = np.array([[-1e9], [-3.0], [-2.0], [-1.0], [-0.9]])
    targets = Targets(1, "Chebyshev", None, None, 8)(objectives, 0.1, np.random.default_rng(0))
    assert targets.shape == (5, 1)
    assert (np.diff(targets[:, 0]) > 0).all()
    assert targets[4, 0] - targets[3, 0] > targets[2, 0] - targets[1, 0]
    assert targets[1, 0] - targets[0, 0] < 30  # the outlier does not drown the rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"surrogate_model": "GPU"}, "surrogate_model = 'GPU': expected one of GP, ET, RF, TB, RS"),
        ({"surrogate_model": "ET", "surrogate_model_kwargs": {"trees": 3}}, "kwargs of ET: .*trees"),
        ({"surrogate_model": "RF", "surrogate_model_kwargs": {"n_estimators": -3}}, "kwargs of RF: .*n_estimators"),
        ({"surrogate_model_kwargs": {"n_estimators": 3}}, "GP has none"),
        ({"moo_scalarization_strategy": "Max"}, "moo_scalarization_strategy = 'Max': expected one of Linear"),
        ({"moo_scalarization_weight": [1.0]}, "moo_scalarization_weight = .*each of 2 objectives"),
        ({"moo_lower_bounds": [None, 1, 2]}, "moo_lower_bounds = .*each of 2 objectives"),
        ({"kappa": -1.0}, "kappa = -1.0: expected at least 0"),
        ({"n_points": 0}, "n_points = 0: expected at least 1"),
        ({"max_points": 2}, "max_points = 2: expected at least 4"),
        ({"transfer": [Observation({"q": 1}, (1.0, 2.0))]}, "this search's hyperparameters are x, y, z"),
    ],
)
def test_options_that_cannot_be(plain: SearchSpace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_optimizer("cbo", plain, objectives=2, options=options)


@pytest.mark.parametrize("name", sorted(FORESTS))
def test_surrogates_have_the_settings_of_cbo(name: str) -> None:
    from deephyper.hpo import CBO

    theirs = CBO._get_surrogate_model(None, name, 1, 3).get_params()
    ours = ForestSurrogate(name, 3, {})._template.get_params()
    assert ours == theirs
    assert ours["n_estimators"] == ALL_FORESTS["n_estimators"]


def surrogates(space: SearchSpace) -> list[Surrogate]:
    return [ForestSurrogate("ET", 0, {}), GaussianProcess(space)]


def test_surrogates_know_what_they_were_told_and_what_they_were_not() -> None:
    """On a conditional space: values at the points themselves, an error of the size they say elsewhere."""
    space = SearchSpace(SPACES["conditional"]())
    rng = np.random.default_rng(0)
    vectors, others = space.sample(60, rng), space.sample(200, rng)

    def truth(vectors: np.ndarray) -> np.ndarray:
        kind, rate = vectors[:, 0], np.nan_to_num(vectors[:, 1])
        return np.stack([np.sin(3 * rate) + kind, kind * 0.5], 1)

    for surrogate in surrogates(space):
        surrogate.fit(vectors, truth(vectors), -truth(vectors))
        known, unknown = surrogate.posterior(vectors), surrogate.posterior(others)
        assert known.mean == pytest.approx(truth(vectors), abs=0.05)
        assert known.mean.shape == known.std.shape == (60, 2)
        assert known.std.mean() < unknown.std.mean()
        assert np.abs(unknown.mean - truth(others)).mean() < 0.1
        assert surrogate.believed(others) == pytest.approx(-unknown.mean, abs=0.02)


def test_a_chosen_candidate_makes_those_beside_it_known() -> None:
    space = SearchSpace(SPACES["plain"]())
    rng = np.random.default_rng(0)
    vectors = space.sample(30, rng)
    candidates = np.array([[0.5, 0.5, 0.5], [0.501, 0.5, 0.5], [0.9, 0.1, 0.9]])
    for surrogate in surrogates(space):
        surrogate.fit(vectors, vectors[:, :1] ** 2, vectors[:, :1])
        posterior = surrogate.posterior(candidates)
        mean, before = posterior.mean.copy(), posterior.std.copy()
        posterior.choose(0)
        left = (posterior.std / before)[:, 0]
        assert left[1] < 0.5
        assert left[2] > 0.8
        assert (posterior.mean == mean).all()


def test_gaussian_process_after_a_choice_is_as_if_it_had_been_tried() -> None:
    """Its variance is exactly that of a process with the point, and parameters that stay."""
    space = SearchSpace(SPACES["mixed"]())
    rng = np.random.default_rng(0)
    vectors, candidates = space.sample(25, rng), space.sample(10, rng)
    targets = np.nan_to_num(vectors[:, 1:3])
    process, again = GaussianProcess(space), GaussianProcess(space)
    process.fit(vectors, targets, targets)
    posterior = process.posterior(candidates)
    posterior.choose(4)
    posterior.choose(2)
    again._theta = process._theta
    again._find_parameters = lambda points, targets: None  # type: ignore[method-assign]
    longer = np.concatenate([vectors, candidates[[4, 2]]])
    again.fit(longer, np.zeros((27, 1)), np.zeros((27, 1)))
    assert posterior.std / process._scale == pytest.approx(again.posterior(candidates).std * [1, 1], rel=1e-6)


def test_gaussian_process_finds_out_what_matters() -> None:
    """The gradient of its density is the density's, and the length scale of what does not matter is long."""
    space = SearchSpace(SPACES["plain"]())
    rng = np.random.default_rng(1)
    vectors = space.sample(40, rng)
    targets = np.sin(6 * vectors[:, :1])
    process = GaussianProcess(space)
    points = process._features(vectors)
    squares = np.stack([(points[:, None, i] - points[None, :, i]) ** 2 for i in range(3)])
    theta = process._prior_mean + 0.2 * rng.standard_normal(5)
    error = check_grad(
        lambda t: process._loss(t, squares, targets)[0], lambda t: process._loss(t, squares, targets)[1], theta
    )
    assert error < 1e-3 * np.linalg.norm(process._loss(theta, squares, targets)[1])
    process.fit(vectors, targets, targets)
    lengths = np.exp(process._theta[:3])
    assert lengths[0] < lengths[1:].min() / 2


def table(tmp_path: Path, suffix: str, **columns: Any) -> Path:
    path = tmp_path / f"results{suffix}"
    made = pd.DataFrame(columns)
    made.to_csv(path, index=False) if suffix == ".csv" else made.to_parquet(path)
    return path


def test_observations_from_our_table(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        ".parquet",
        **{
            "p:x": [1.0, 2.0, 3.0, 4.0, 5.0],
            "p:n": [3, None, 5, 6, 7],
            "objective": [0.5, None, None, None, 0.25],
            "m:failure": [None, "diverged", "lost_node", None, None],
            "m:seed": 3,
        },
    )
    assert observations_from_table(path, ["x", "n"]) == [
        Observation({"x": 1.0, "n": 3}, (0.5,)),
        Observation({"x": 2.0, "n": None}, None),
        Observation({"x": 5.0, "n": 7}, (0.25,)),
    ]


def test_observations_from_deephypers_table(tmp_path: Path) -> None:
    one = table(tmp_path, ".csv", **{"p:x": [1, 2, 3], "objective": [0.5, "F_bad_configuration", "F_walltime"]})
    assert observations_from_table(one, ["x"]) == [Observation({"x": 1}, (0.5,)), Observation({"x": 2}, None)]
    two = table(tmp_path, ".csv", **{"p:x": [1, 2], "objective_0": [0.5, "F"], "objective_1": [2, "F"]})
    assert observations_from_table(two, ["x"], 2) == [Observation({"x": 1}, (0.5, 2.0)), Observation({"x": 2}, None)]


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    path = table(tmp_path, ".csv", **{"p:x": [1.0], "p:y": [1.0], "objective": [0.5]})
    with pytest.raises(DataError, match="another space: its hyperparameters are x, y, those of this search x, z"):
        observations_from_table(path, ["z", "x"])
    with pytest.raises(DataError, match="has objective; expected objective_0, objective_1 for 2"):
        observations_from_table(path, ["x", "y"], 2)
    with pytest.raises(DataError, match="no such results table"):
        observations_from_table(tmp_path / "none.csv", ["x"])
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a table"):
        observations_from_table(broken, ["x"])


@pytest.mark.parametrize("seed", range(5))
def test_first_suggestions_try_all_choices_evenly(seed: int) -> None:
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter((0.0, 1.0), "x")
    problem.add_hyperparameter(["a", "b", "c"], "kind")
    problem.add_hyperparameter((3, 4), "depth")
    optimizer = make_optimizer("cbo", problem, seed=seed, initial_points=6)
    asked = [optimizer.ask(1)[0] for _ in range(6)]
    assert sorted(c["kind"] for c in asked) == ["a", "a", "b", "b", "c", "c"]
    assert sorted(c["depth"] for c in asked) == [3, 3, 3, 4, 4, 4]
    assert len({c["x"] for c in asked}) == 6
