"""What a search leaves behind of its failures, and what became of the trials that they happened to."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from apps.core.errors import FailureKind
from apps.core.parameters import json_hash
from benchmarks.fib25_faults import FAULTS
from benchmarks.fib25_injector import Attempt, Failure
from ensemble.search.ledger import Trial, TrialState

EVENT_FILE = re.compile(r"events\.out\.tfevents\.(\d+)\.")


@dataclass(frozen=True)
class Session:
    """One start of a training: when (UTC), and how many steps were done."""

    time: float
    step: int


@dataclass(frozen=True)
class Fate:
    """What became of a trial that something was done to.

    Attributes:
        kind: what was done.
        of: to which process.
        recorded: the kinds that are recorded of that process.
        message: with what words.
        step: of the trial's checkpoint when it happened; None of a trial that was not interrupted.
        resumed: the step that the next process of the trial began with; None where there was none to train.
        told: whether the optimiser was told that the configuration is a bad one.
        state, rungs: of the trial in the end, and how many rungs have reported.
    """

    kind: FailureKind
    of: Attempt
    recorded: tuple[FailureKind, ...]
    message: str
    step: int | None
    resumed: int | None
    told: bool
    state: TrialState
    rungs: int

    @property
    def went_on(self) -> bool:
        """Whether the trial was gone on with, from no earlier a step than its checkpoint had."""
        return self.rungs > self.of.rung if self.resumed is None else self.resumed >= (self.step or 0)

    def sentence(self) -> str:
        """In words."""
        said = f"recorded as {', '.join(self.recorded) or 'nothing'}"
        if self.kind.transient:
            began = "it had trained to its end" if self.resumed is None else f"went on from step {self.resumed}"
            said += f" when its checkpoint was of step {self.step}; {began}; {self.rungs} rungs reported, {self.state}"
        else:
            optimiser = "told to the optimiser" if self.told else "not told to the optimiser"
            said += f", {optimiser}, not retried; {self.state}"
        return f"{said} ({self.message})" if self.message else said


def recorded_ends(
    journal: Sequence[dict[str, Any]], jobs: Iterable[Mapping[str, Any]], timeouts: Iterable[Any]
) -> list[Failure]:
    """Every end that was no success: those of the journal, and those after which Balsam's agent went on by itself.

    Args:
        journal: its events, in order.
        jobs: rows of Balsam's, with `id`, `tags` and `data`.
        timeouts: Balsam's events of jobs that came to RUN_TIMEOUT, with `job_id` and `timestamp` (UTC).
    """
    ends = []
    for event in journal:
        if event["event"] in ("attempt failed", "ended") and event["failure"]:
            of = Attempt.of(event["key"]) or Attempt(event["trial"], event["rung"], 1)
            ends.append(Failure(FailureKind(event["failure"]), of, event["time"], event["message"]))
    times: dict[int, list[float]] = {}
    for event in sorted(timeouts, key=lambda event: event.id):
        times.setdefault(int(event.job_id), []).append(event.timestamp.replace(tzinfo=UTC).timestamp())
    for job in jobs:
        kinds = [FailureKind(kind) for kind in (job["data"] or {}).get("interruptions", [])]
        of_job, moments = Attempt.of(job["tags"]["task"]), times.get(int(job["id"]), [])
        if of_job:
            ends += [Failure(kind, of_job, moment) for kind, moment in zip(kinds, moments, strict=False)]
    return sorted(ends, key=lambda end: end.time)


def fates(
    trials: Sequence[Trial],
    ends: Sequence[Failure],
    injections: Sequence[Failure],
    sessions: Callable[[int], Sequence[Session]],
    step_at: Callable[[int, float], int],
) -> list[Fate]:
    """What became of the trials of FAULTS, of those that were interrupted, and of those that a wall time ended.

    `sessions`: all starts of a trial's training, in order.  `step_at`: the step of a trial's checkpoint at a moment.
    By kind, in the order of FailureKind, then by trial.
    """
    wall_times = [end for end in ends if end.kind is FailureKind.WALLTIME and end.of.trial not in FAULTS]
    done = [*injections, *wall_times]
    done += [Failure(kind, Attempt(number, 0, 1), 0.0) for number, kind in FAULTS.items() if number < len(trials)]
    order = list(FailureKind)
    found = []
    for one in sorted(done, key=lambda one: (order.index(one.kind), one.of)):
        kind, number = one.kind, one.of.trial
        trial = trials[number]
        of_it = [end for end in ends if end.of == one.of]
        later = [session.step for session in sessions(number) if session.time > one.time] if kind.transient else []
        observation = trial.observation()
        found.append(
            Fate(
                kind=kind,
                of=one.of,
                recorded=tuple(dict.fromkeys(end.kind for end in of_it)),
                message=next((end.message for end in of_it if end.kind is kind), ""),
                step=step_at(number, one.time) if kind.transient else None,
                resumed=next(iter(later), None),
                told=observation is not None and observation.objectives is None,
                state=trial.state,
                rungs=len(trial.reports),
            )
        )
    return found


def sessions_of(output: Path) -> list[Session]:
    """All starts of the training in a trial's folder, by the event files that they left.

    A start takes out of the older files what is of later steps.  A file that is empty by that is of a training that
    began where the next one began again.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from apps.ffn.backend import import_tensorflow

    tf = import_tensorflow()
    found: list[Session] = []
    for file in sorted((output / "events").glob("events.out.tfevents.*"), reverse=True):
        name = EVENT_FILE.match(file.name)
        assert name is not None
        events = [tf.compat.v1.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(file))]
        starts = [event.step - 1 for event in events if event.HasField("session_log")]
        empty = not any(event.HasField("summary") for event in events)
        step = starts[0] if starts else found[-1].step if empty and found else 0
        found.append(Session(int(name[1]) / 1e9, step))
    return found[::-1]


def lost(trials: Sequence[Trial]) -> list[int]:
    """Numbers of the trials that have not ended, or that the machine ended for good."""
    return [t.number for t in trials if not t.state.final or (t.failure is not None and t.failure.transient)]


def repeated(journal: Sequence[dict[str, Any]]) -> int:
    """Configurations suggested twice, trials that ended twice, and rungs that reported twice; in all."""
    configurations = Counter(json_hash(event["configuration"]) for event in journal if event["event"] == "suggested")
    results = Counter(
        (event["trial"], event["rung"])
        for event in journal
        if event["event"] in ("reported", "ended") and not event["failure"]
    )
    endings = Counter(event["trial"] for event in journal if event["event"] == "ended")
    return sum(count - 1 for counts in (configurations, results, endings) for count in counts.values())


def spent_node_seconds(trials: Sequence[Trial]) -> float:
    """Of the jobs that gave a result, by their own clocks."""
    return sum(_wall_s(report.outcome.record) * trial.nodes for trial in trials for report in trial.reports)


def full_node_seconds(trials: Sequence[Trial], steps: int, batch: int) -> float:
    """What the trials that gave a result would have taken, each in one job of `steps` steps of `batch` fields of view.

    What its last job took, and at the speed that it trained with the steps that this job has not done.
    """
    total = 0.0
    for trial in trials:
        records = [report.outcome.record for report in trial.reports if report.outcome.record is not None]
        if records:
            trainings = [record["result"]["training"] for record in records]
            begun = trainings[-2]["steps"] if len(trainings) > 1 else 0
            missing = steps - (trainings[-1]["steps"] - begun)
            total += (_wall_s(records[-1]) + missing * batch / trainings[-1]["fovs_per_second"]) * trial.nodes
    return total


def _wall_s(record: dict[str, Any] | None) -> float:
    assert record is not None
    return float(record["cost"]["end"] - record["cost"]["start"])
