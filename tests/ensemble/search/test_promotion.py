"""Promotion rules: what every rule keeps to, and cases worked out by hand."""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from apps.core.errors import ParameterError
from ensemble.search.promotion import (
    PROMOTIONS,
    AsynchronousHalving,
    Decision,
    LearningCurveRule,
    MedianRule,
    PromotionRule,
    RungTrial,
    make_promotion,
)

RUNGS = 3


def trial(number: int, *values: float, waiting: bool = True) -> RungTrial:
    return RungTrial(number, tuple((value,) for value in values), waiting)


def many(count: int, objectives: int = 1, rungs: int = RUNGS, seed: int = 0) -> list[RungTrial]:
    """Trials with learning curves that rise towards their own end; a third each goes on; some run or have failed."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        reached = 1 + int(rng.random() < 1 / 3) + int(rng.random() < 1 / 9)
        end = rng.random(objectives)
        values = tuple(tuple((end * (1 - 0.5 ** (r + 1))).tolist()) for r in range(min(reached, rungs)))
        trials.append(RungTrial(number, values if rng.random() < 0.9 else (), bool(rng.random() < 0.7)))
    return trials


@pytest.fixture(params=sorted(PROMOTIONS))
def rule(request: pytest.FixtureRequest) -> PromotionRule:
    return make_promotion(request.param)


@pytest.mark.parametrize("objectives", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 7, 60])
class TestEveryRule:
    def test_decides_only_about_trials_that_wait_and_have_a_rung_before_them(
        self, rule: PromotionRule, count: int, objectives: int
    ) -> None:
        trials = many(count, objectives)
        decision = rule.decide(trials, RUNGS)
        decided = [*decision.promote, *decision.stop]
        assert len(decided) == len(set(decided))
        open_ones = {t.number for t in trials if t.waiting and 0 < len(t.values) < RUNGS}
        assert set(decided) <= open_ones
        assert all(type(number) is int for number in decided)

    def test_does_not_depend_on_the_order_of_the_trials(self, rule: PromotionRule, count: int, objectives: int) -> None:
        trials = many(count, objectives)
        shuffled = random.Random(1).sample(trials, len(trials))
        assert rule.decide(shuffled, RUNGS) == rule.decide(trials, RUNGS)
        assert rule.finish(shuffled, RUNGS) == rule.finish(trials, RUNGS)

    def test_promotes_from_higher_rungs_first(self, rule: PromotionRule, count: int, objectives: int) -> None:
        trials = many(count, objectives)
        reached = {t.number: len(t.values) for t in trials}
        promoted = [reached[number] for number in rule.decide(trials, RUNGS).promote]
        assert promoted == sorted(promoted, reverse=True)

    def test_a_search_played_to_its_end_leaves_nobody_waiting_and_has_a_full_budget(
        self, rule: PromotionRule, count: int, objectives: int
    ) -> None:
        ended, stopped = play(rule, count, lambda number, rung: (float(number),) * objectives)
        assert sorted([*ended, *stopped]) == list(range(count))
        assert count - 1 in ended  # the best of all has the full budget

    def test_a_last_rung_that_never_succeeds_ends_the_search_too(
        self, rule: PromotionRule, count: int, objectives: int
    ) -> None:
        ended, _ = play(rule, count, lambda n, rung: (float(n),) * objectives if rung < RUNGS - 1 else None)
        assert not ended


def play(
    rule: PromotionRule, count: int, value: Callable[[int, int], tuple[float, ...] | None], workers: int = 4
) -> tuple[list[int], list[int]]:
    """Run a search as a driver would, one report at a time; numbers that reached the last rung, and that stopped."""
    values: dict[int, list[tuple[float, ...]]] = {number: [] for number in range(count)}
    fresh, running, waiting, stopped = list(range(count)), list[int](), set[int](), list[int]()

    def trials() -> list[RungTrial]:
        return [RungTrial(n, tuple(v), n in waiting) for n, v in values.items()]

    for _ in range(20 * count + 20):
        decision = rule.decide(trials(), RUNGS)
        if not fresh and not running and not decision.promote:
            decision = rule.finish(trials(), RUNGS)
        for number in decision.stop:
            waiting.remove(number)
            stopped.append(number)
        for number in [*decision.promote, *fresh][: workers - len(running)]:
            waiting.discard(number)
            if number in fresh:
                fresh.remove(number)
            running.append(number)
        if not running:
            break
        number = running.pop(0)
        found = value(number, len(values[number]))
        if found is not None:
            values[number].append(found)
            if len(values[number]) < RUNGS:
                waiting.add(number)
    assert not waiting and not running and not fresh
    return [n for n, v in values.items() if len(v) == RUNGS], stopped


def test_nothing_is_decided_without_reports(rule: PromotionRule) -> None:
    assert rule.decide([], RUNGS) == Decision()
    assert rule.decide([RungTrial(0, (), False)], RUNGS) == Decision()
    assert rule.finish([], RUNGS) == Decision()


def test_one_rung_leaves_nothing_to_decide(rule: PromotionRule) -> None:
    trials = [trial(number, float(number)) for number in range(12)]
    assert rule.decide(trials, 1) == Decision()
    assert rule.finish(trials, 1) == Decision()


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([trial(0, 1, 2, 3, 4)], "trial 0 has reported 4 rungs; expected at most 3"),
        ([trial(0, 1), trial(7, float("nan"))], "trial 7 reported an objective at rung 0"),
        ([trial(0, 1), RungTrial(3, ((1.0, 2.0),), True)], "trial 3 reported 2 objectives at rung 0; expected 1"),
    ],
)
def test_reports_that_cannot_be_are_refused(rule: PromotionRule, trials: Sequence[RungTrial], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        rule.decide(trials, RUNGS)


def test_twenty_thousand_trials_are_decided_at_once(rule: PromotionRule) -> None:
    for objectives in (1, 2):
        trials = many(20_000, objectives)
        seconds = []
        for _ in range(3):
            begin = time.process_time()
            rule.decide(trials, RUNGS)
            seconds.append(time.process_time() - begin)
        assert min(seconds) < 0.2  # 10 to 40 ms on an idle core


def test_halving_promotes_the_best_third() -> None:
    trials = [trial(n, v) for n, v in enumerate([0.1, 0.9, 0.5, 0.7, 0.3, 0.2])]
    assert AsynchronousHalving(3).decide(trials, RUNGS) == Decision(promote=(1, 3))
    assert AsynchronousHalving(2).decide(trials, RUNGS).promote == (1, 3, 2)
    assert AsynchronousHalving(4).decide(trials, RUNGS).promote == (1,)


def test_halving_counts_those_that_have_left_the_rung() -> None:
    # Six have reported rung 0; its best two are trials 0 (gone on already) and 3.
    trials = [trial(0, 0.9, waiting=False), *(trial(n, 0.1 * n) for n in (1, 2, 3)), trial(4, 0.0), trial(5, 0.05)]
    assert AsynchronousHalving(3).decide(trials, RUNGS).promote == (3,)
    # One report fewer, and only the best third of five, one trial, may go on.
    assert AsynchronousHalving(3).decide(trials[:-1], RUNGS).promote == ()


def test_halving_never_stops_and_prefers_the_older_of_equals() -> None:
    trials = [trial(n, 1.0) for n in (5, 2, 9)]
    assert AsynchronousHalving(3).decide(trials, RUNGS) == Decision(promote=(2,))


def test_halving_takes_the_higher_rung_first() -> None:
    low = [trial(n, 0.1 * n) for n in range(3)]
    high = [trial(10 + n, 1.0, 2.0 + n) for n in range(3)]
    assert AsynchronousHalving(3).decide([*low, *high], RUNGS).promote == (12,)
    assert AsynchronousHalving(3).decide([*low, *high[:2], trial(20, 3.0)], RUNGS).promote == (20,)


def test_halving_with_two_objectives_takes_the_front_then_the_least_crowded() -> None:
    points = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5), (0.45, 0.55), (0.1, 0.1), (0.2, 0.2)]
    trials = [RungTrial(n, (point,), True) for n, point in enumerate(points)]
    # Front: 0 to 3; its ends first (equally far from all, so by number), then 2, whose neighbours are further away.
    assert AsynchronousHalving(2).decide(trials, RUNGS).promote == (0, 1, 2)
    assert AsynchronousHalving(3).decide(trials, RUNGS).promote == (0, 1)


def test_median_keeps_the_upper_half_after_its_warmup() -> None:
    trials = [trial(n, v) for n, v in enumerate([0.1, 0.9, 0.5, 0.7, 0.3])]
    assert MedianRule(warmup=4).decide(trials, RUNGS) == Decision(promote=(1, 3, 2), stop=(4, 0))
    assert MedianRule(warmup=5).decide(trials, RUNGS) == Decision(promote=(1, 3, 2, 4, 0))


def test_median_with_two_objectives_keeps_the_better_half_of_the_order() -> None:
    points = [(0.0, 1.0), (1.0, 0.0), (0.1, 0.1), (0.2, 0.2)]
    trials = [RungTrial(n, (point,), True) for n, point in enumerate(points)]
    assert MedianRule(warmup=2).decide(trials, RUNGS) == Decision(promote=(0, 1), stop=(3, 2))


def curves(ends: Sequence[float], reached: int, first: int = 0, fading: float = 0.5) -> list[RungTrial]:
    """Trials whose distance to their end is 1 at the first rung and fades by the factor."""
    return [trial(first + n, *(end - fading**r for r in range(reached)), waiting=False) for n, end in enumerate(ends)]


def test_learning_curve_extrapolates_to_the_last_rung() -> None:
    # All curves are end - 0.5^rung.  The best known end is 2.0 - 0.5^3 at the last of four rungs.
    known = curves([1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0], reached=4)
    # At rung 1 (values 1.0 and 1.5 below their ends): 20 will get to 2.5 - 0.125, 21 to 1.0 - 0.125.
    waiting = [trial(20, 1.5, 2.0), trial(21, 0.0, 0.5)]
    rule = LearningCurveRule(chance=0.1, warmup=8)
    assert rule.decide([*known, *waiting], 4) == Decision(promote=(20,), stop=(21,))


def test_learning_curve_knows_that_a_late_starter_catches_up() -> None:
    """Two trials at the same value: the one that gains much is promoted, the one that has flattened is not."""
    rng = np.random.default_rng(0)
    known = []
    for number in range(12):
        end, gap = 1.0 + 0.02 * number, 0.2 + 0.8 * rng.random()
        known.append(trial(number, *(end - gap * 0.5**r for r in range(4)), waiting=False))
    steep = trial(20, 0.2, 0.8)  # goes on to gain 0.3 and 0.15
    flat = trial(21, 0.79, 0.8)
    assert LearningCurveRule().decide([*known, steep, flat], 4) == Decision(promote=(20,), stop=(21,))
    assert MedianRule().decide([*known, steep, flat], 4).stop == ()  # equal values: the median cannot tell


def test_learning_curve_halves_until_it_knows_what_follows_a_rung() -> None:
    trials = [trial(n, 0.1 * n) for n in range(9)]
    known = [trial(20 + n, 0.5, 0.6, waiting=False) for n in range(3)]
    halved = AsynchronousHalving(3).decide([*trials, *known], RUNGS)
    assert halved.promote
    assert LearningCurveRule(warmup=4).decide([*trials, *known], RUNGS) == halved


def test_learning_curve_promotes_what_noise_could_lift() -> None:
    """The same gap to the best is hopeless where gains are regular, and not where they scatter."""
    for noise, stopped in ((0.001, (50,)), (0.5, ())):
        rng = np.random.default_rng(3)
        known = []
        for number in range(20):
            first, gain = rng.random(), 0.3 + noise * rng.standard_normal()
            known.append(trial(number, first, first + gain, waiting=False))
        best = max(t.values[1][0] for t in known)
        late = trial(50, best - 0.3 - 0.2)
        assert LearningCurveRule().decide([*known, late], 2).stop == stopped


def test_learning_curve_spares_a_trial_that_leads_in_one_objective() -> None:
    known = [RungTrial(n, ((0.1 * n, 1.0), (0.1 * n + 0.3, 1.0)), False) for n in range(9)]
    cheap = RungTrial(20, ((0.0, 2.0),), True)
    poor = RungTrial(21, ((0.0, 0.5),), True)
    assert LearningCurveRule().decide([*known, cheap, poor], 2) == Decision(promote=(20,), stop=(21,))


def test_the_end_of_a_search_promotes_the_best_until_one_has_the_full_budget() -> None:
    rule = AsynchronousHalving(3)
    waiting = [trial(0, 0.5), trial(1, 0.7)]
    assert rule.decide(waiting, RUNGS) == Decision()
    assert rule.finish(waiting, RUNGS) == Decision(promote=(1,))
    assert rule.finish([waiting[0], trial(1, 0.7, 0.8)], RUNGS) == Decision(promote=(1,))
    assert rule.finish([waiting[0], trial(1, 0.7, 0.8, 0.9, waiting=False)], RUNGS) == Decision(stop=(0,))


def test_halving_spends_less_than_full_budgets_and_finds_the_same_best() -> None:
    """81 trials with budgets 1, 3, 9: the best gets its full budget for well under half of the steps."""
    steps = []

    def value(number: int, rung: int) -> tuple[float, ...]:
        steps.append((1, 2, 6)[rung])  # a rung continues the one before
        return (-abs((number * 37) % 81 - 40.0) + rung,)

    ended, _ = play(AsynchronousHalving(3), 81, value)
    assert next(number for number in range(81) if (number * 37) % 81 == 40) in ended
    assert sum(steps) < 81 * 9 / 2


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("hyperband", {}, "promotion rule 'hyperband': expected one of halving, median, curve"),
        ("halving", {"factor": 1}, "factor = 1: expected at least 2"),
        ("halving", {"warmup": 1}, "unknown setting 'warmup'; expected factor"),
        ("median", {"warmup": 0}, "warmup = 0: expected at least 1"),
        ("curve", {"chance": 0.7}, "chance = 0.7"),
        ("curve", {"warmup": 3}, "warmup = 3"),
        ("curve", {"factor": 0}, "factor = 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(name: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_promotion(name, **settings)
