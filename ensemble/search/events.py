"""What a journal's lines say, as plain JSON: one function an event.  `ledger.py` gives them their meaning.

Times are UTC epoch seconds.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration

Event = dict[str, Any]


def search_begun(
    names: Sequence[str], objectives: Sequence[str], rungs: Sequence[int], seed: int, source: str
) -> Event:
    """A driver begins, or goes on with a changed search file: what the trials from here on are trials of."""
    return {
        "event": "search",
        "names": list(names),
        "objectives": list(objectives),
        "rungs": list(rungs),
        "seed": seed,
        "source": source,
        "time": time.time(),
    }


def suggested(trial: int, configuration: Configuration, driver: int = 0) -> Event:
    """A new trial, by the driver of that number."""
    return {
        "event": "suggested",
        "trial": trial,
        "configuration": configuration,
        "driver": driver,
        "time": time.time(),
    }


def submitted(
    trial: int, rung: int = 0, attempt: int = 1, nodes: int = 1, driver: int = 0, lasting: bool = False
) -> Event:
    """An attempt at a rung is about to be handed to the driver's runner, for so many nodes.

    lasting: whether it goes on when the driver ends.
    """
    return {
        "event": "submitted",
        "trial": trial,
        "rung": rung,
        "attempt": attempt,
        "nodes": nodes,
        "driver": driver,
        "lasting": lasting,
        "time": time.time(),
    }


def taken_over(trial: int, driver: int, lasting: bool = False) -> Event:
    """The driver looks after a submitted trial whose own has gone."""
    return {"event": "taken over", "trial": trial, "driver": driver, "lasting": lasting, "time": time.time()}


def reported(trial: int, rung: int, objectives: tuple[float, ...], outcome: Outcome) -> Event:
    """A rung, not the last, has its objectives; the trial waits for a decision."""
    return {"event": "reported", "trial": trial, "rung": rung, "objectives": objectives, **_outcome(outcome)}


def attempt_failed(trial: int, rung: int, outcome: Outcome, not_before: float) -> Event:
    """The machine ended an attempt; there will be another, not before that time."""
    return {"event": "attempt failed", "trial": trial, "rung": rung, "not_before": not_before, **_outcome(outcome)}


def ended(trial: int, rung: int, objectives: tuple[float, ...] | None, outcome: Outcome) -> Event:
    """The trial is over: with the objectives of its last rung, or as the outcome's failure says."""
    return {"event": "ended", "trial": trial, "rung": rung, "objectives": objectives, **_outcome(outcome)}


def stopped(trial: int, reason: str) -> Event:
    """The promotion rule gives the trial up; what it reported stays."""
    return {"event": "stopped", "trial": trial, "reason": reason, "time": time.time()}


def reopened(trial: int) -> Event:
    """The search that stopped the trial by its end goes on: the trial waits at its rung again."""
    return {"event": "reopened", "trial": trial, "time": time.time()}


def _outcome(outcome: Outcome) -> Event:
    return {
        "key": outcome.key,
        "job_id": outcome.job_id,
        "record": outcome.record,
        "failure": outcome.failure.value if outcome.failure else None,
        "message": outcome.message,
        "starts": outcome.attempts,
        "time": time.time(),
    }
