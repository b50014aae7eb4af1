"""Promotion rules: which trials go on to the next rung (a larger budget), and which are given up.

A rung is a job of its own that continues the trial's checkpoint to the next budget; nothing inside a job talks to the
search.  A rule is a pure function of what the trials have reported, called whenever something was reported.

To add one: subclass `PromotionRule` as a frozen dataclass that checks its settings, put it into `PROMOTIONS`; the
conformance tests (tests/ensemble/search/test_promotion.py) then run over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.dominance import best_first, front
from apps.core.errors import ParameterError

Values = NDArray[np.float64]  # [trial, objective]


@dataclass(frozen=True)
class RungTrial:
    """What a rule sees of a trial.

    Attributes:
        number: of the trial in its search.
        values: its objectives (maximised) at rung 0, 1, ..., as far as it has reported.
        waiting: whether it waits for a decision; False: it runs, or will not run again.
    """

    number: int
    values: tuple[tuple[float, ...], ...]
    waiting: bool


@dataclass(frozen=True)
class Decision:
    """What is to become of waiting trials.  Those that are in neither go on waiting.

    Attributes:
        promote: trials that may start their next rung, the most worthwhile first: higher rungs first, then better
            values.  A driver without room for all takes the first and asks again later.
        stop: trials that will never go on.
    """

    promote: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()


class PromotionRule(ABC):
    """Decides from reported values alone.

    Deterministic, without state, independent of the order of the trials, and thread-safe.  It decides only about trials
    that wait and have reported at least one and not yet the last rung; each is in one list of a decision at most.
    Of equally good trials the one with the smaller number comes first.
    """

    @abstractmethod
    def decide(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
        """What becomes of those that wait, in a search of `rungs` rungs.

        Raises ParameterError where a trial has more values than there are rungs, or objectives of another number than
        the others, or one that is not finite.
        """

    def finish(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
        """The same at the end of a search: nothing runs, no trial will be added, and `decide` promotes nothing.

        A search shall not end without a trial of the full budget: until there is one, the best of those that wait on
        the highest rung is promoted.  Then all that still wait are stopped.
        Raises ParameterError as `decide` does.
        """
        reports = _Reports.of(trials, rungs)
        if (reports.reached < rungs).all():
            for rung in reversed(range(rungs)):
                if (best := reports.waiting_at(rung)).size:
                    return Decision(promote=(int(reports.numbers[best[0]]),))
        return Decision(stop=_numbers([reports.numbers[reports.undecided]]))


@dataclass(frozen=True)
class _Reports:
    """The trials that have reported, by number.

    Attributes:
        numbers: [trial].
        values: [trial, rung, objective], NaN where a rung is not reported.
        reached: [trial] rungs reported.
        undecided: [trial] whether a decision about it can be taken.
    """

    numbers: NDArray[np.int64]
    values: NDArray[np.float64]
    reached: NDArray[np.int64]
    undecided: NDArray[np.bool_]

    @classmethod
    def of(cls, trials: Sequence[RungTrial], rungs: int) -> _Reports:
        known = sorted((trial for trial in trials if trial.values), key=attrgetter("number"))
        numbers = np.fromiter((trial.number for trial in known), np.int64, len(known))
        reached = np.fromiter((len(trial.values) for trial in known), np.int64, len(known))
        waiting = np.fromiter((trial.waiting for trial in known), bool, len(known))
        if (reached > rungs).any():
            wrong = int(np.argmax(reached))
            raise ParameterError(
                f"trial {numbers[wrong]} has reported {reached[wrong]} rungs; expected at most {rungs}"
            )
        width = len(known[0].values[0]) if known else 1
        values = np.full((len(known), rungs, width), np.nan)
        for rung in range(rungs):
            there = reached > rung
            reports = [trial.values[rung] for trial in known if len(trial.values) > rung]
            if not reports:
                break
            if set(map(len, reports)) != {width}:
                wrong = next(i for i, report in enumerate(reports) if len(report) != width)
                raise ParameterError(
                    f"trial {numbers[there][wrong]} reported {len(reports[wrong])} objectives at rung {rung}; expected "
                    f"{width}, as trial {numbers[0]} did"
                )
            array = np.array(reports, np.float64)
            if not (finite := np.isfinite(array).all(axis=1)).all():
                wrong = int(numbers[there][~finite][0])
                raise ParameterError(f"trial {wrong} reported an objective at rung {rung} that is not a finite number")
            values[there, rung] = array
        return cls(numbers, values, reached, waiting & (reached < rungs))

    def at(self, rung: int) -> NDArray[np.int64]:
        """Places of the trials that have reported the rung, the best there first."""
        there = np.flatnonzero(self.reached > rung)
        return there[best_first(self.values[there, rung], there)]

    def waiting_at(self, rung: int) -> NDArray[np.int64]:
        """Places of the trials that wait on the rung, the best first."""
        return self.of_waiting(self.at(rung), rung)

    def of_waiting(self, places: NDArray[np.int64], rung: int) -> NDArray[np.int64]:
        """Those of the places whose trial waits on the rung, in the same order."""
        return places[self.undecided[places] & (self.reached[places] == rung + 1)]

    def rungs_with_waiting(self) -> list[int]:
        """The rungs on which a trial waits, the highest first."""
        return sorted({int(count) - 1 for count in np.unique(self.reached[self.undecided])}, reverse=True)


def _numbers(parts: Sequence[NDArray[np.int64]]) -> tuple[int, ...]:
    return tuple(number for part in parts for number in part.tolist())


@dataclass(frozen=True)
class AsynchronousHalving(PromotionRule):
    """Asynchronous successive halving (ASHA; Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").

    A trial goes on once it is among the best `1/factor` of all that have reported its rung.  Nothing is ever waited
    for, and nothing stopped before the end: later reports can lift a trial into the best.
    """

    factor: int = 3

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ParameterError(f"factor = {self.factor}: expected at least 2")

    def decide(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
        reports = _Reports.of(trials, rungs)
        return Decision(promote=_numbers([self.promotable(reports, rung) for rung in reports.rungs_with_waiting()]))

    def promotable(self, reports: _Reports, rung: int) -> NDArray[np.int64]:
        """Numbers of the trials that wait on the rung and are among its best, the best first."""
        there = reports.at(rung)
        return reports.numbers[reports.of_waiting(there[: len(there) // self.factor], rung)]


@dataclass(frozen=True)
class MedianRule(PromotionRule):
    """The median rule (Golovin et al. 2017, "Google Vizier"): a trial below the median of its rung is given up.

    The first `warmup` trials that report a rung go on whatever they report: a median of few says little.  With several
    objectives the better half of the order goes on.
    """

    warmup: int = 8

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ParameterError(f"warmup = {self.warmup}: expected at least 1")

    def decide(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
        reports = _Reports.of(trials, rungs)
        promoted, stopped = [], []
        for rung in reports.rungs_with_waiting():
            there = reports.at(rung)
            waiting = reports.of_waiting(there, rung)
            if len(there) <= self.warmup:
                good = np.ones(len(waiting), bool)
            elif reports.values.shape[2] == 1:
                values = reports.values[:, rung, 0]
                good = values[waiting] >= np.median(values[there])
            else:
                good = np.isin(waiting, there[: (len(there) + 1) // 2])
            promoted.append(reports.numbers[waiting[good]])
            stopped.append(reports.numbers[waiting[~good]])
        return Decision(_numbers(promoted), _numbers(stopped))


@dataclass(frozen=True)
class LearningCurveRule(PromotionRule):
    """Give up a trial whose learning curve, extrapolated to the last rung, is unlikely to reach the best.

    The curve is one of damped gains: from rung to rung a trial gains `damping` times what it gained before, with the
    same damping for all trials of a search (damped trend; Gardner & McKenzie 1985).  That is a power law where budgets
    grow by a factor, an exponential approach where they grow by an amount.  The damping and its error come from the
    trials that went on; for a trial that has no gain of its own yet, the first gain comes from theirs, by regression on
    the first value.  A trial is stopped where the value that it exceeds with probability `chance` falls short of the
    best expected one, in every objective (compare Domhan et al. 2015).

    While fewer than `warmup` trials have shown what follows a rung, that rung is decided as asynchronous halving by
    `factor` would.
    """

    chance: float = 0.1
    warmup: int = 8
    factor: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.chance < 0.5:
            raise ParameterError(f"chance = {self.chance}: expected a probability between 0 and 0.5")
        if self.warmup < 4:
            raise ParameterError(f"warmup = {self.warmup}: expected at least 4, to know an error of the regression")
        AsynchronousHalving(self.factor)

    def decide(self, trials: Sequence[RungTrial], rungs: int) -> Decision:
        reports = _Reports.of(trials, rungs)
        halving = AsynchronousHalving(self.factor)
        enough = [int((reports.reached > rung + 1).sum()) >= self.warmup for rung in range(rungs)]
        expected, error = _forecast(reports.values, reports.reached, enough)
        best = expected[~np.isnan(expected).any(axis=1)]
        best = best[front(best)]
        hopeful = expected + NormalDist().inv_cdf(1 - self.chance) * error
        promoted, stopped = [], []
        for rung in reports.rungs_with_waiting():
            if not enough[rung]:
                promoted.append(halving.promotable(reports, rung))
                continue
            waiting = reports.waiting_at(rung)
            short = _dominated(hopeful[waiting], best)
            promoted.append(reports.numbers[waiting[~short]])
            stopped.append(reports.numbers[waiting[short]])
        return Decision(_numbers(promoted), _numbers(stopped))


def _forecast(values: NDArray[np.float64], reached: NDArray[np.int64], enough: Sequence[bool]) -> tuple[Values, Values]:
    """Expected objectives of every trial at the last rung, and their standard error, both [trial, objective].

    values: [trial, rung, objective], of which `reached` are reported.  NaN for trials on a rung of which not `enough`
    is known.
    """
    rungs = values.shape[1]
    gains = np.diff(values, axis=1)
    damping, later_error = _damping(gains)
    first_gain, first_error = _first_gain(values)
    if np.isnan(later_error).any():
        later_error = first_error
    expected = np.full((len(values), values.shape[2]), np.nan)
    error = np.zeros_like(expected)
    for rung in range(rungs):
        here = reached == rung + 1
        left = rungs - 1 - rung
        if left and not enough[rung]:
            continue
        # A gain of 1 in the next step adds sums[k] after k + 1 steps; so does an error in it.
        sums = np.cumsum(damping ** np.arange(left)[:, None], axis=0)
        expected[here] = values[here, rung]
        if left:
            following = damping * gains[here, rung - 1] if rung else first_gain[here]
            expected[here] += following * sums[-1]
            errors = np.where(np.arange(left)[:, None] == left - 1, later_error if rung else first_error, later_error)
            error[here] = np.sqrt(((errors * sums) ** 2).sum(axis=0))
    return expected, error


def _damping(gains: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ratio of a gain to the one before, and the error of foretelling it so, [objective] each, over all trials.

    Where no trial has two gains: gains that do not fade, so that nothing is given up by a guess; the error is NaN.
    """
    before, after = gains[:, :-1], gains[:, 1:]
    both = ~np.isnan(after)
    count = both.sum(axis=(0, 1))
    if not count.all():
        return np.ones(gains.shape[2]), np.full(gains.shape[2], np.nan)
    squares = np.where(both, before**2, 0).sum(axis=(0, 1))
    products = np.where(both, before * after, 0).sum(axis=(0, 1))
    damping = np.clip(products / np.where(squares > 0, squares, 1), 0, 1)
    residuals = np.where(both, after - damping * before, 0)
    return damping, np.sqrt((residuals**2).sum(axis=(0, 1)) / np.maximum(count - 1, 1))


def _first_gain(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The gain [trial, objective] after the first rung by regression on the value there, and its error [objective]."""
    start = values[:, 0]
    known = ~np.isnan(values[:, 1, 0]) if values.shape[1] > 1 else np.zeros(len(values), bool)
    if known.sum() < 3:
        return np.full_like(start, np.nan), np.full(start.shape[1], np.nan)
    gain = values[known, 1] - start[known]
    middle, mean = start[known].mean(axis=0), gain.mean(axis=0)
    spread = ((start[known] - middle) ** 2).sum(axis=0)
    slope = ((start[known] - middle) * (gain - mean)).sum(axis=0) / np.where(spread > 0, spread, 1)
    residuals = gain - mean - slope * (start[known] - middle)
    return mean + slope * (start - middle), np.sqrt((residuals**2).sum(axis=0) / (known.sum() - 2))


def _dominated(points: Values, best: Values) -> NDArray[np.bool_]:
    """Which points [point] some row of `best` dominates; a NaN is never dominated."""
    found = np.zeros(len(points), bool)
    for row in best:
        found |= (row >= points).all(axis=1) & (row > points).any(axis=1)
    return found


PROMOTIONS: dict[str, type[PromotionRule]] = {
    "halving": AsynchronousHalving,
    "median": MedianRule,
    "curve": LearningCurveRule,
}


def make_promotion(name: str, **settings: Any) -> PromotionRule:
    """The rule of that name.  Raises ParameterError for an unknown name or setting, or a value outside its range."""
    if name not in PROMOTIONS:
        raise ParameterError(f"promotion rule {name!r}: expected one of {', '.join(PROMOTIONS)}")
    rule = PROMOTIONS[name]
    known = [field.name for field in fields(rule)]  # type: ignore[arg-type]
    if unknown := sorted(set(settings) - set(known)):
        raise ParameterError(f"promotion rule {name}: unknown setting {unknown[0]!r}; expected {', '.join(known)}")
    return rule(**settings)
