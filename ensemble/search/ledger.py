"""The journal of a search and the trials rebuilt from it.

Every event is a line of JSON, flushed to disk before it is acted on.  The state of a search is what the lines say: a
driver that starts anew reads them, asks the runner for the rest, and goes on.  Whoever writes holds the file's lock and
has read all of it, so that several drivers can share one journal.  Anyone may read, also while it is written.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, FailureKind, StateError
from apps.core.parameters import json_hash
from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration, Objective
from ensemble.search.events import Event, suggested
from ensemble.search.optimizers.contract import Observation


class TrialState(enum.StrEnum):
    """Where a trial stands.

    SUGGESTED: the optimiser gave it.  SUBMITTED: the runner has it.  WAITING: the machine ended its job, another
    attempt is due later.  PAUSED: a rung is done, the promotion rule will say whether it goes on.  DONE: it has the
    objectives of the last rung.  FAILED: with a kind; one whose objective could not be computed of its result can still
    get it, once the search file is mended.  STOPPED: the rule gave it up, or the search ended, with what it
    has reported; a search that goes on with more trials has the latter wait again.
    """

    SUGGESTED = "SUGGESTED"
    SUBMITTED = "SUBMITTED"
    WAITING = "WAITING"
    PAUSED = "PAUSED"
    DONE = "DONE"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def final(self) -> bool:
        return self in (TrialState.DONE, TrialState.FAILED, TrialState.STOPPED)


TRANSITIONS: dict[TrialState, frozenset[TrialState]] = {
    TrialState.SUGGESTED: frozenset({TrialState.SUBMITTED}),
    TrialState.SUBMITTED: frozenset({TrialState.WAITING, TrialState.PAUSED, TrialState.DONE, TrialState.FAILED}),
    TrialState.WAITING: frozenset({TrialState.SUBMITTED}),
    TrialState.PAUSED: frozenset({TrialState.SUBMITTED, TrialState.STOPPED}),
    TrialState.DONE: frozenset(),
    TrialState.FAILED: frozenset({TrialState.PAUSED, TrialState.DONE}),
    TrialState.STOPPED: frozenset({TrialState.PAUSED}),
}

# Failures that the configuration is to blame for: the optimiser learns to stay away.  The others say nothing of it.
OWN_FAULT = frozenset({FailureKind.BAD_CONFIGURATION, FailureKind.DIVERGED, FailureKind.HUNG})


@dataclass(frozen=True)
class RungReport:
    """What a trial gave at one rung."""

    rung: int
    time: float
    objectives: tuple[float, ...]
    outcome: Outcome


@dataclass
class Trial:
    """One configuration and what has become of it.

    Attributes:
        number: 0, 1, ... in the order of suggestion.
        configuration: hyperparameter -> value; None where a condition makes it inactive.
        state: see TrialState.
        suggested_by: number of the driver that suggested it.
        driver: number of the driver that looks after it, or did last.
        suggested, submitted, ended: UTC epoch seconds; submitted is the first time, ended when the state became final.
        rung, attempt, nodes: of its last submission.
        lasting: whether its job goes on when the driver ends (Runner.lasting).
        starts: how often a job of it was started, over all rungs.
        not_before: when a WAITING trial may be submitted again.
        reports: of the rungs that it completed, in order.
        outcome: how its last job ended.
        reason: why a STOPPED trial was given up.
    """

    number: int
    configuration: Configuration
    suggested: float
    state: TrialState = TrialState.SUGGESTED
    suggested_by: int = 0
    driver: int = 0
    submitted: float | None = None
    ended: float | None = None
    rung: int = 0
    attempt: int = 0
    nodes: int = 1
    lasting: bool = False
    starts: int = 0
    not_before: float = 0.0
    reports: list[RungReport] = field(default_factory=list)
    outcome: Outcome | None = None
    reason: str = ""

    @property
    def objectives(self) -> tuple[float, ...] | None:
        """Those of the last rung that it completed; None before there is one, and of a trial that failed."""
        return self.reports[-1].objectives if self.reports and self.state is not TrialState.FAILED else None

    @property
    def objective(self) -> Objective | None:
        """The same, as DeepHyper has it: a number where there is one objective."""
        objectives = self.objectives
        return objectives[0] if objectives is not None and len(objectives) == 1 else objectives

    @property
    def failure(self) -> FailureKind | None:
        """The kind of a FAILED trial."""
        return self.outcome.failure if self.outcome and self.state is TrialState.FAILED else None

    def observation(self) -> Observation | None:
        """What the optimiser learns from it so far; None where there is nothing to learn."""
        if self.failure in OWN_FAULT:
            return Observation(self.configuration, None)
        return Observation(self.configuration, self.reports[-1].objectives) if self.reports else None


class Ledger:
    """All trials of one search, and their journal file.  Thread-safe.

    Attributes:
        trials: by number.
        begun: the last `search_begun` event.
        reports: how often the end of a job was written down.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal at `path`, if there is one.

        A last line without its end is passed over: a driver is writing it, or was killed while it did; what it would
        have said was not acted on.  Raises DataError where any other line is damaged.
        """
        self._path = path
        self._lock = threading.RLock()
        self._held: int | None = None  # the file's descriptor, while it is locked
        self._read_bytes = 0
        self._read_lines = 0
        self.trials: list[Trial] = []
        self._ended: dict[int, Trial] = {}
        self.begun: Event | None = None
        self.reports = 0
        self._by_hash: dict[str, Trial] = {}
        self._open: dict[TrialState, dict[int, Trial]] = {state: {} for state in TrialState if not state.final}
        self._news: dict[int, None] = {}
        self.refresh()
        self._news.clear()

    def refresh(self) -> bool:
        """Read what others appended since; returns whether there was something.

        Raises DataError where a line is damaged.
        """
        with self._lock:
            lines = self._new_lines()
            for line in lines:
                self._read_lines += 1
                where = f"{self._path}: line {self._read_lines}"
                try:
                    event = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where} is no JSON ({error}); restore the file from a copy") from error
                try:
                    self._apply(event)
                except (KeyError, ValueError, IndexError, TypeError) as error:
                    raise DataError(f"{where} is damaged ({error}); restore the file from a copy") from error
                if event["event"] in _NEWS:
                    self._news[event["trial"]] = None
            return bool(lines)

    def news(self) -> list[Trial]:
        """The trials that others have suggested, or had a result or a failure of, since this was asked last."""
        with self._lock:
            self.refresh()
            numbers, self._news = list(self._news), {}
            return [self.trials[number] for number in numbers]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the journal: all that others wrote is read, and nobody else writes until the end.

        For what is decided from the trials' states and then appended.  Raises DataError where the file cannot be
        opened or locked.
        """
        with self._lock:
            if self._held is not None:
                yield
                return
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise self._unwritable(error) from error
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                except OSError as error:
                    raise self._unwritable(error) from error
                self._held = descriptor
                self.refresh()
                yield
            finally:
                self._held = None
                os.close(descriptor)

    def begin(self, event: Event, accept_changes: bool = False, others: bool = False) -> None:
        """Say what the search is (`search_begun`), or check that it is still the one that the journal is of.

        Raises StateError where hyperparameters, objectives, rungs or seed are others, and where the search file has
        changed, unless `accept_changes` and no `others` drive it.
        """
        with self.alone():
            if self.begun is None:
                self.append([event])
                return
        for name in ("names", "objectives", "rungs", "seed"):
            if event[name] != self.begun[name]:
                raise StateError(
                    f"{self._path}: its trials have the {_SPOKEN[name]} {_spoken(self.begun[name])}, the search file "
                    f"now {_spoken(event[name])}; rename the changed file, which makes it another search"
                )
        if event["source"] != self.begun["source"]:
            if others:
                raise StateError(
                    f"{self._path}: the search file has changed, and other drivers go on with it as it was; end them "
                    "first, then all can be started with the changed one"
                )
            if not accept_changes:
                raise StateError(
                    f"{self._path}: the search file has changed since its trials began; rename it, which makes it "
                    "another search, or accept that trials of both are compared: --accept-changes"
                )
            self.append([event])

    def suggest(self, configurations: Sequence[Configuration]) -> list[Trial]:
        """Make a trial of every configuration that has none; returns one trial a configuration, old or new."""
        with self.alone():
            fresh = {json_hash(c): c for c in configurations if json_hash(c) not in self._by_hash}
            first = len(self.trials)
            self.append([suggested(first + i, c) for i, c in enumerate(fresh.values())])
            return [self._by_hash[json_hash(c)] for c in configurations]

    def find(self, configuration: Configuration) -> Trial | None:
        """The trial of this configuration, if there is one."""
        with self._lock:
            return self._by_hash.get(json_hash(configuration))

    def append(self, events: Sequence[Event]) -> None:
        """Write events to disk, all or none of them, then let them happen.

        Raises DataError where the file cannot be written, ValueError for an event that cannot happen to its trial;
        nothing has happened then.
        """
        if not events:
            return
        with self.alone():
            self._check(events)
            data = "".join(json.dumps(event, allow_nan=False) + "\n" for event in events).encode()
            assert self._held is not None
            try:
                _append(self._held, self._read_bytes, data)
            except OSError as error:
                raise self._unwritable(error) from error
            self._read_bytes += len(data)
            self._read_lines += len(events)
            for event in events:
                self._apply(event)

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self._path}: cannot be written ({error.strerror}); free space, run again")

    @property
    def ended(self) -> list[Trial]:
        """The trials in a final state, in the order in which they came to it."""
        with self._lock:
            return list(self._ended.values())

    def open_trials(self) -> list[Trial]:
        """Trials that have not ended, in order."""
        with self._lock:
            found = [trial for trials in self._open.values() for trial in trials.values()]
            return sorted(found, key=attrgetter("number"))

    def in_state(self, state: TrialState) -> list[Trial]:
        """The open trials in this state, in order; cheap, however many trials have ended."""
        with self._lock:
            return [self._open[state][number] for number in sorted(self._open[state])]

    def under_way(self) -> bool:
        """Whether a trial runs, or is to run whatever the promotion rule says."""
        with self._lock:
            return any(trials for state, trials in self._open.items() if state is not TrialState.PAUSED)

    def final_trials(self) -> list[Trial]:
        """Trials that have ended, in order."""
        with self._lock:
            return sorted(self._ended.values(), key=attrgetter("number"))

    def _new_lines(self) -> list[bytes]:
        """The whole lines of the file that were not read yet.

        While they are read nobody writes: a writer whose disk is full takes back what it had written.
        """
        try:
            with self._path.open("rb") as stream:
                if self._held is None:
                    with contextlib.suppress(OSError):  # a file system without locks has no other writers
                        fcntl.flock(stream, fcntl.LOCK_SH)
                stream.seek(self._read_bytes)
                data = stream.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1
        self._read_bytes += whole
        return data[:whole].splitlines()

    def _check(self, events: Sequence[Event]) -> None:
        """Raise ValueError where one of these cannot happen: a line that no reader understands is never written."""
        number, after = len(self.trials), dict[int, TrialState]()
        for event in events:
            if event["event"] == "search":
                continue
            trial = event["trial"]
            if event["event"] == "suggested":
                if trial != number:
                    raise ValueError(f"trial {trial} where {number} was expected")
                number, after[trial] = number + 1, TrialState.SUGGESTED
                continue
            after[trial] = _state_after(after.get(trial) or self.trials[trial].state, event)

    def _apply(self, event: Event) -> None:
        kind = event["event"]
        if kind == "search":
            self.begun = event
            return
        number = event["trial"]
        if kind == "suggested":
            if number != len(self.trials):
                raise ValueError(f"trial {number} where {len(self.trials)} was expected")
            by = event["driver"]
            trial = Trial(number, event["configuration"], event["time"], suggested_by=by, driver=by)
            self.trials.append(trial)
            self._open[trial.state][number] = trial
            self._by_hash[json_hash(trial.configuration)] = trial
            return
        trial = self.trials[number]
        self.reports += "record" in event
        before = trial.state
        _happened(trial, event)
        (self._ended if before.final else self._open[before]).pop(number)
        if trial.state.final:
            self._ended[number] = trial
        else:
            self._open[trial.state][number] = trial


def _happened(trial: Trial, event: Event) -> None:
    """Let an event of a trial's life happen to it."""
    kind = event["event"]
    trial.state = _state_after(trial.state, event)
    if kind == "submitted":
        trial.submitted = trial.submitted or event["time"]
        trial.rung, trial.attempt, trial.nodes = event["rung"], event["attempt"], event["nodes"]
        trial.driver, trial.lasting = event["driver"], event["lasting"]
        return
    if kind == "taken over":
        trial.driver, trial.lasting = event["driver"], event["lasting"]
        return
    if kind == "stopped":
        trial.ended, trial.reason = event["time"], event["reason"]
        return
    if kind == "reopened":
        trial.ended, trial.reason = None, ""
        return
    outcome = _outcome(event)
    if kind == "attempt failed":
        trial.not_before = event["not_before"]
    elif kind == "ended":
        trial.ended = event["time"]
    trial.outcome = outcome
    trial.starts += outcome.attempts
    if kind == "reported":
        trial.ended = None  # it may have failed before, where only its objective could not be computed
    if kind in ("reported", "ended") and not outcome.failure:
        trial.reports.append(RungReport(event["rung"], event["time"], tuple(event["objectives"]), outcome))


def _state_after(before: TrialState, event: Event) -> TrialState:
    """The state that an event of a trial's life brings it to.  Raises ValueError for one that cannot happen to it."""
    kind = event["event"]
    if kind == "ended":
        after = TrialState.FAILED if event["failure"] else TrialState.DONE
    elif kind in _STATE_AFTER:
        after = _STATE_AFTER[kind]
    else:
        raise ValueError(f"unknown event {kind!r}")
    possible = before is TrialState.SUBMITTED if kind == "taken over" else after in TRANSITIONS[before]
    if not possible:
        raise ValueError(f"trial {event['trial']}: {kind!r} cannot happen where it is {before}")
    return after


# Of which events drivers tell their optimisers, or ask the promotion rule.
_NEWS = ("suggested", "reported", "ended", "reopened")
_STATE_AFTER = {
    "submitted": TrialState.SUBMITTED,
    "taken over": TrialState.SUBMITTED,
    "attempt failed": TrialState.WAITING,
    "reported": TrialState.PAUSED,
    "stopped": TrialState.STOPPED,
    "reopened": TrialState.PAUSED,
}


def _outcome(event: Event) -> Outcome:
    failure = FailureKind(event["failure"]) if event["failure"] else None
    return Outcome(event["key"], event["job_id"], event["record"], failure, event["message"], event["starts"])


_SPOKEN = {"names": "hyperparameters", "objectives": "objectives", "rungs": "rungs", "seed": "seed"}


def _spoken(value: Any) -> str:
    return (", ".join(map(str, value)) or "(none)") if isinstance(value, list) else str(value)


def _append(descriptor: int, end: int, data: bytes) -> None:
    """Append to a file of which `end` bytes are whole lines, and flush to disk.

    What stands behind them a killed writer left: it goes.  Where writing fails, what was written is taken back.
    """
    if os.fstat(descriptor).st_size > end:
        os.ftruncate(descriptor, end)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
