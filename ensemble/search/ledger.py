"""The journal of a search and the trials rebuilt from it.

Every event is a line of JSON, flushed to disk before it is acted on.  The state of a search is what the lines say: a
driver that starts anew reads them, asks Balsam for the rest, and goes on.  One process writes: the campaign's driver.
"""

from __future__ import annotations

import enum
import json
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, FailureKind
from apps.core.parameters import json_hash
from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration, Objective


class TrialState(enum.StrEnum):
    """SUGGESTED by the optimiser → SUBMITTED to Balsam → DONE with an objective, or FAILED with a kind."""

    SUGGESTED = "SUGGESTED"
    SUBMITTED = "SUBMITTED"
    DONE = "DONE"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        return self in (TrialState.DONE, TrialState.FAILED)


TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.SUGGESTED: frozenset({TrialState.SUBMITTED}),
    TrialState.SUBMITTED: frozenset({TrialState.DONE, TrialState.FAILED}),
    TrialState.DONE: frozenset(),
    TrialState.FAILED: frozenset(),
}


@dataclass
class Trial:
    """One configuration and what has become of it.

    Attributes:
        number: 0, 1, ... in the order of suggestion.
        configuration: hyperparameter -> value; None where a condition makes it inactive.
        state: see TrialState.
        suggested, submitted, ended: UTC epoch seconds.
        objective: number(s) of a DONE trial.
        outcome: how its job ended.
    """

    number: int
    configuration: Configuration
    suggested: float
    state: TrialState = TrialState.SUGGESTED
    submitted: float | None = None
    ended: float | None = None
    objective: Objective | None = None
    outcome: Outcome | None = None

    def move(self, state: TrialState) -> None:
        """Change the state.  Raises ValueError for a transition that is not allowed."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"trial {self.number}: {self.state} -> {state} is no transition")
        self.state = state


class Ledger:
    """All trials of one search, and their journal file.  Thread-safe."""

    def __init__(self, path: Path, repair: bool = False) -> None:
        """Read the journal at `path`, or start one.

        A last line without its end is passed over: a driver is writing it, or was killed while it did; what it would
        have said was not acted on yet.  `repair` cuts it off, which only the driver may do, before it writes.
        Raises DataError where any other line is damaged.
        """
        self._path = path
        if repair and path.is_file():
            _cut_torn_line(path)
        self._lock = threading.RLock()
        self.trials: list[Trial] = []
        self._by_hash: dict[str, Trial] = {}
        if path.is_file():
            for number, event in enumerate(_read_lines(path), start=1):
                try:
                    self._apply(event)
                except (KeyError, ValueError, IndexError, TypeError) as error:
                    raise DataError(
                        f"{path}: line {number} is damaged ({error}); restore the file from a copy"
                    ) from error

    def suggest(self, configurations: Sequence[Configuration]) -> list[Trial]:
        """Make a trial of every configuration that has none; returns one trial a configuration, old or new."""
        with self._lock:
            fresh = {json_hash(c): c for c in configurations if json_hash(c) not in self._by_hash}
            first, now = len(self.trials), time.time()
            self._record(
                [
                    {"event": "suggested", "trial": first + i, "configuration": c, "time": now}
                    for i, c in enumerate(fresh.values())
                ]
            )
            return [self._by_hash[json_hash(c)] for c in configurations]

    def find(self, configuration: Configuration) -> Trial | None:
        """The trial of this configuration, if there is one."""
        with self._lock:
            return self._by_hash.get(json_hash(configuration))

    def submitted(self, trial: Trial) -> None:
        """Say that the trial is about to be submitted (a second time is nothing new)."""
        with self._lock:
            if trial.state is TrialState.SUGGESTED:
                self._record([{"event": "submitted", "trial": trial.number, "time": time.time()}])

    def ended(self, trial: Trial, outcome: Outcome, objective: Objective | None) -> None:
        """Say how the trial ended: an objective, or the outcome's failure."""
        failure = outcome.failure.value if outcome.failure else None
        self._record(
            [
                {
                    "event": "ended",
                    "trial": trial.number,
                    "time": time.time(),
                    "key": outcome.key,
                    "job_id": outcome.job_id,
                    "objective": objective,
                    "record": outcome.record,
                    "failure": failure,
                    "message": outcome.message,
                    "attempts": outcome.attempts,
                }
            ]
        )

    def open_trials(self) -> list[Trial]:
        """Trials that have not ended, in order."""
        with self._lock:
            return [trial for trial in self.trials if not trial.state.final]

    def final_trials(self) -> list[Trial]:
        """Trials that have ended, in order."""
        with self._lock:
            return [trial for trial in self.trials if trial.state.final]

    def _record(self, events: list[dict[str, Any]]) -> None:
        if not events:
            return
        with self._lock:
            text = "".join(json.dumps(event, allow_nan=False) + "\n" for event in events)
            try:
                with self._path.open("a") as stream:
                    stream.write(text)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                raise DataError(f"{self._path}: cannot be written ({error.strerror}); free space, run again") from error
            for event in events:
                self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        kind, number = event["event"], event["trial"]
        if kind == "suggested":
            if number != len(self.trials):
                raise ValueError(f"trial {number} where {len(self.trials)} was expected")
            trial = Trial(number, event["configuration"], event["time"])
            self.trials.append(trial)
            self._by_hash[json_hash(trial.configuration)] = trial
            return
        trial = self.trials[number]
        if kind == "submitted":
            trial.move(TrialState.SUBMITTED)
            trial.submitted = event["time"]
        elif kind == "ended":
            failure = FailureKind(event["failure"]) if event["failure"] else None
            trial.move(TrialState.FAILED if failure else TrialState.DONE)
            trial.ended = event["time"]
            objective = event["objective"]
            trial.objective = tuple(objective) if isinstance(objective, list) else objective
            trial.outcome = Outcome(
                event["key"], event["job_id"], event["record"], failure, event["message"], event["attempts"]
            )
        else:
            raise ValueError(f"unknown event {kind!r}")


def _cut_torn_line(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(stream.read().rfind(b"\n") + 1)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    try:
        return [json.loads(line) for line in data[:whole].splitlines()]
    except ValueError as error:
        raise DataError(f"{path}: holds a line that is no JSON ({error}); restore the file from a copy") from error
