"""How a search stands: numbers made of its journal and of what its driver is asked to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.dominance import front
from ensemble.search.control import Orders
from ensemble.search.driver import best_trial
from ensemble.search.ledger import Ledger, Trial, TrialState

# Utilisation and pace are of the last so many seconds, or of the last so many trials' lengths where those are longer.
WINDOW_S = 600.0
WINDOW_TRIALS = 3.0


@dataclass(frozen=True)
class RungStanding:
    """One rung: its budget (None without rungs), and how many trials run at it, wait at it and have reported at it."""

    rung: int
    budget: int | None
    running: int
    waiting: int
    reported: int


@dataclass(frozen=True)
class Standing:
    """How a search stands at one moment.

    Attributes:
        states: state -> number of trials, of every state.
        failures: failure kind -> number of trials.
        retried: starts beyond the first one of every rung.
        rungs: one each; one alone for a search without rungs.
        wanted: trials in all that are asked for; None where no driver has begun.
        workers: asked for, of all drivers; None likewise.
        drivers: how many there are.
        busy: nodes that trials hold.
        utilisation: busy node-seconds by the trials' own clocks / (workers x window); None without workers.
        pace: trials that ended in the window, a second.
        left_s: seconds until the trials asked for have ended, at this pace; None where there is no telling.
        best: the trial with the largest (first) objective of those that came furthest.
        front: numbers of the trials that no other of those beats in all objectives, where there are several.
        objectives: their names.
        quiet_s: seconds since the last event.
    """

    states: dict[TrialState, int]
    failures: dict[str, int]
    retried: int
    rungs: tuple[RungStanding, ...]
    wanted: int | None
    workers: int | None
    drivers: int
    busy: int
    utilisation: float | None
    pace: float
    left_s: float | None
    best: Trial | None
    front: tuple[int, ...]
    objectives: tuple[str, ...]
    quiet_s: float

    @property
    def trials(self) -> int:
        return sum(self.states.values())

    @property
    def ended(self) -> int:
        return sum(number for state, number in self.states.items() if state.final)

    @property
    def finished(self) -> bool:
        """Whether all the trials that were asked for have ended."""
        return self.wanted is not None and self.ended >= self.wanted


def standing(ledger: Ledger, orders: Sequence[Orders], changed: float, now: float) -> Standing:
    """How the search of this ledger stands at `now`, its last event being of `changed` (UTC epoch seconds).

    orders: of every driver.
    """
    trials = ledger.trials
    found = Counter(trial.state for trial in trials)
    states = {state: found[state] for state in TrialState}
    begun = ledger.begun or {"rungs": [], "objectives": []}
    since = window_start(trials, orders, now)
    ended = sum(1 for trial in trials if trial.ended is not None and trial.ended > since)
    pace = ended / (now - since) if now > since else 0.0
    wanted = max((one.trials for one in orders), default=None)
    workers = sum(one.workers for one in orders) if orders else None
    open_ones = max(0, wanted - sum(states[state] for state in TrialState if state.final)) if wanted is not None else 0
    return Standing(
        states=states,
        failures=dict(Counter(trial.failure.value for trial in trials if trial.failure)),
        retried=sum(trial.starts - rungs_begun(trial) for trial in trials if trial.starts > rungs_begun(trial)),
        rungs=tuple(rung_standings(trials, begun["rungs"])),
        wanted=wanted,
        workers=workers,
        drivers=len(orders),
        busy=sum(trial.nodes for trial in ledger.in_state(TrialState.SUBMITTED)),
        utilisation=utilisation(trials, orders, since, now) if orders and now > since else None,
        pace=pace,
        left_s=open_ones / pace if pace and wanted is not None else None,
        best=best_trial(ledger),
        front=pareto_front(trials) if len(begun["objectives"]) > 1 else (),
        objectives=tuple(begun["objectives"]),
        quiet_s=max(0.0, now - changed),
    )


def pareto_front(trials: Sequence[Trial]) -> tuple[int, ...]:
    """Numbers of the trials that none beats in all objectives, of those that have reported at the highest rung."""
    known = [trial for trial in trials if trial.objectives is not None]
    highest = max((trial.reports[-1].rung for trial in known), default=0)
    there = [trial for trial in known if trial.reports[-1].rung == highest]
    if not there:
        return ()
    unbeaten = front(np.array([trial.reports[-1].objectives for trial in there]))
    return tuple(trial.number for trial, best in zip(there, unbeaten, strict=True) if best)


def window_start(trials: Sequence[Trial], orders: Sequence[Orders], now: float) -> float:
    """Begin of the window that ends at `now`: long enough for several trials, and within the time of these drivers."""
    spans = [end - start for trial in trials for start, end, _ in reported_spans(trial)]
    length = max(WINDOW_S, WINDOW_TRIALS * sum(spans) / len(spans) if spans else 0.0)
    begun = min((one.begun for one in orders), default=min((trial.suggested for trial in trials), default=now))
    return max(now - length, begun)


def rung_standings(trials: Sequence[Trial], budgets: Sequence[int]) -> Iterator[RungStanding]:
    """Every rung, from the lowest."""
    running = Counter(trial.rung for trial in trials if trial.state is TrialState.SUBMITTED)
    waiting = Counter(trial.rung for trial in trials if trial.state in (TrialState.PAUSED, TrialState.WAITING))
    reported = Counter(report.rung for trial in trials for report in trial.reports)
    for rung in range(max(1, len(budgets))):
        budget = budgets[rung] if budgets else None
        yield RungStanding(rung, budget, running[rung], waiting[rung], reported[rung])


def rungs_begun(trial: Trial) -> int:
    """How many rungs a trial has had jobs at that have ended."""
    return len(trial.reports) + (trial.state in (TrialState.FAILED, TrialState.WAITING))


def utilisation(trials: Sequence[Trial], orders: Sequence[Orders], since: float, now: float) -> float:
    """Busy node-seconds / (workers x window), of the window from `since` to `now`, each driver's from its begin.

    A rung that has reported counts by its own clock; one that runs from when it was submitted, for as many nodes as
    there are workers at most (the rest wait for one); one that the machine ended is not counted.
    """
    reported = sum(nodes * _overlap(start, end, since, now) for t in trials for start, end, nodes in reported_spans(t))
    running = sorted((running_since(trial), trial.nodes) for trial in trials if trial.state is TrialState.SUBMITTED)
    free, held = sum(one.workers for one in orders), 0.0
    for start, nodes in running:
        held += min(nodes, free) * _overlap(start, now, since, now)
        free -= min(nodes, free)
    offered = sum(one.workers * _overlap(one.begun, now, since, now) for one in orders)
    return min(1.0, (reported + held) / offered) if offered else 0.0


def reported_spans(trial: Trial) -> Iterator[tuple[float, float, int]]:
    """Start and end (UTC epoch seconds, by the clock of the trial) and nodes of every rung that has reported."""
    for report in trial.reports:
        cost = (report.outcome.record or {}).get("cost")
        if cost:
            yield cost["start"], cost["end"], trial.nodes


def running_since(trial: Trial) -> float:
    """When the running job of a trial was submitted, as far as the ledger tells."""
    return max(trial.submitted or -math.inf, trial.not_before, trial.reports[-1].time if trial.reports else -math.inf)


def _overlap(start: float, end: float, since: float, now: float) -> float:
    return max(0.0, min(end, now) - max(start, since))
