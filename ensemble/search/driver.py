"""The driver of a search: keeps the nodes busy until enough trials have ended.

It decides, from the journal alone, what runs next: attempts that are due again, trials promoted to their next rung, new
suggestions.  Every decision is on disk before it is acted on.  Where trials run is the runner's business, what is worth
trying the optimiser's, which trials go on the promotion rule's.

Several drivers may share one journal.  Each keeps its own nodes busy with whatever is due: suggestions of its own,
retries and promotions of any trial.  Each learns from the journal what the others found, and looks after the running
trials of one that has died.  What is decided from the trials' states is decided while the journal is held, so that no
trial is handed out twice.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apps.core.errors import FailureKind, ParameterError, StateError
from ensemble.jobs import Outcome
from ensemble.search import events
from ensemble.search.definition import Configuration, JobSize, ObjectivesError, Search
from ensemble.search.ledger import Ledger, Trial, TrialState
from ensemble.search.promotion import RungTrial
from ensemble.search.runners.contract import Assignment, Report, Runner, refused
from ensemble.search.seats import Seat
from ensemble.search.suggestions import Suggestions

log = logging.getLogger(__name__)

# How long a report is waited for before the number of nodes, attempts that are due and the limits are looked at.
LOOK_S = 1.0
# A search this wide hands out somewhat more trials than there are nodes: a node that gets free finds one waiting.  That
# is as many as end in the time from an end to the next start, and a few for their unevenness.
WIDE = 16
QUEUED_S, QUEUED_SHARE = 1.5, 0.03
# Over how long the rate of ends is taken.
RATE_S = 10.0
# How often it is looked whether drivers whose trials run have died; one that is found so twice has.  Meanwhile Balsam
# makes the jobs that it may have been asked for last.
DEATH_LOOK_S = 5.0
# Why trials are stopped that no rule gave up.
SEARCH_ENDED = "the search ended"
# Of the driver's time so much may go into the promotion rule, where asking it takes longer than this.
DECIDE_SHARE, DECIDE_S = 0.2, 0.01


@dataclass(frozen=True)
class Limits:
    """How much a driver does.  Raises ParameterError where a number is not positive.

    Attributes:
        workers: nodes at a time, at most; fewer where the runner has fewer.
        trials: trials in all, those of earlier drivers counted.
        queued: single-node trials beyond the nodes that wait at the runner; None: as many as are soon needed.
    """

    workers: int
    trials: int
    queued: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("workers", self.workers), ("trials", self.trials)):
            if value < 1:
                raise ParameterError(f"{name} = {value}: expected at least 1")

    def queue_of(self, nodes: int, ends_per_s: float) -> int:
        """How many trials may wait at the runner while so many nodes are busy and so many trials end a second."""
        if self.queued is not None:
            return self.queued
        return math.ceil(QUEUED_SHARE * nodes + QUEUED_S * ends_per_s) if nodes >= WIDE else 0


class Driver:
    """Runs one search in one thread.

    Args:
        search: what to run.
        ledger: its journal; trials that earlier drivers left open are gone on with.
        suggestions: new configurations; it is told of every trial in the journal first.
        runner: runs trials.
        limits: asked anew before every decision, so that they can be changed while the search runs.
        seat: its place among the drivers of the search.
        on_change: called after every round of decisions; what it raises ends the search.
    """

    def __init__(
        self,
        search: Search,
        ledger: Ledger,
        suggestions: Suggestions,
        runner: Runner,
        limits: Callable[[], Limits],
        seat: Seat,
        on_change: Callable[[Ledger], None] = lambda ledger: None,
    ) -> None:
        self._search, self._ledger, self._suggestions, self._runner = search, ledger, suggestions, runner
        self._limits, self._seat, self._on_change = limits, seat, on_change
        self._outstanding: dict[int, Assignment] = {}
        self._spare: deque[Configuration] = deque()  # taken, and not yet of any trial
        self._nodes_held = 0  # by what is outstanding
        self._unsized: dict[int, Exception] = {}  # what the search file's function of the size raised
        self._refused: list[Report] = []  # assignments that no runner is given, not yet taken in
        self._promoted: deque[int] = deque()
        self._seen: dict[int, RungTrial] = {}  # what the promotion rule saw last
        self._undecided = True
        self._decide_at = 0.0
        self._ends: deque[float] = deque()  # of the last RATE_S seconds
        self._death_look = 0.0
        self._seen_dead: set[int] = set()  # drivers, at the last look

    def run(self) -> None:
        """Run until the limits' number of trials has ended, or the space holds no further configuration."""
        self._take_up()
        while True:
            self._hear_of_others()
            self._decide()
            self._hand_out_known()
            self._hand_out_new()
            self._on_change(self._ledger)
            if not self._outstanding and not self._to_come():
                if self._close_rungs():
                    continue
                return
            reports = self._runner.wait(0.0 if self._refused else self._patience())
            self._refused, refusals = [], self._refused
            self._take_in(refusals + reports)

    def _take_up(self) -> None:
        """Go on with what the journal holds."""
        self._ledger.news()  # all of it is known from here on
        self._measure_again()
        observations = [observation for trial in self._ledger.trials if (observation := trial.observation())]
        self._suggestions.tell(observations)
        observed = {id(observation.configuration) for observation in observations}
        self._suggestions.avoid(t.configuration for t in self._ledger.trials if id(t.configuration) not in observed)
        with self._ledger.alone():
            if len(self._ledger.trials) < self._limits().trials:
                stopped = [trial.number for trial in self._ledger.ended if trial.reason.endswith(SEARCH_ENDED)]
                self._ledger.append([events.reopened(number) for number in sorted(stopped)])
            running = [t for t in self._ledger.in_state(TrialState.SUBMITTED) if t.driver == self._seat.number]
        lasting = [trial.number for trial in running if trial.lasting]
        if lasting and not self._runner.lasting:
            raise StateError(
                f"{len(lasting)} trials of this search are Balsam jobs whose driver has gone (the first is trial "
                f"{lasting[0]}): go on with them where they run, with --site"
            )
        self._look_after(running)

    def _measure_again(self) -> None:
        """Give trials their objectives whose results are there, and of which the search file failed to compute them.

        Since then it may have been mended.
        """
        measured: list[events.Event] = []
        for trial in self._ledger.final_trials():
            outcome = trial.outcome
            if trial.failure is not FailureKind.BUG or outcome is None or outcome.record is None:
                continue
            try:
                objectives = self._search.measure(outcome.record["result"])
            except Exception as error:
                log.debug("objective still fails key=%s error=%s", outcome.key, error)
                continue
            good = replace(outcome, failure=None, message="", attempts=0)  # its starts are counted already
            measured.append(self._measured(trial.number, trial.rung, objectives, good))
        with self._ledger.alone():
            # Another driver may have been faster.
            still = [event for event in measured if self._ledger.trials[event["trial"]].failure is FailureKind.BUG]
            self._ledger.append(still)

    def _look_after(self, running: list[Trial]) -> None:
        """Go on with trials that this driver, or one before it, has handed out."""
        if running:
            log.info("found running trials=%d", len(running))
        self._submit([self._assignment(trial, trial.rung, trial.attempt) for trial in running], begun=True)

    def _hear_of_others(self) -> None:
        """Learn what other drivers wrote down, and look after the running trials of those that have died."""
        news = self._ledger.news()
        if news:
            self._undecided = True
            self._suggestions.tell([observation for trial in news if (observation := trial.observation())])
            self._suggestions.avoid(trial.configuration for trial in news if not trial.observation())
        if time.monotonic() < self._death_look:
            return
        self._death_look = time.monotonic() + DEATH_LOOK_S
        before, self._seen_dead = self._seen_dead, {trial.driver for trial in self._orphans()}
        if not self._seen_dead & before:
            return
        mine, lasting = self._seat.number, self._runner.lasting
        with self._ledger.alone():
            # Whoever takes a dead driver's seat, or was faster, looks after them.
            orphans = [trial for trial in self._orphans() if trial.driver in before]
            self._ledger.append([events.taken_over(trial.number, mine, lasting) for trial in orphans])
        self._look_after(orphans)

    def _orphans(self) -> list[Trial]:
        """Running trials of drivers that have died, and that this driver can look after.

        A job that goes on without its driver is not run a second time by a runner that cannot find it.
        """
        submitted = self._ledger.in_state(TrialState.SUBMITTED)
        dead = {driver for driver in {trial.driver for trial in submitted} if not self._seat.taken(driver)}
        return [trial for trial in submitted if trial.driver in dead and trial.lasting <= self._runner.lasting]

    def _hand_out_known(self) -> None:
        """Hand out what the journal holds: attempts that are due again, promoted trials, suggestions never run."""
        if not (self._waiting() or self._promoted or self._ledger.in_state(TrialState.SUGGESTED)):
            return
        free, now = self._free(), time.time()
        assignments: list[Assignment] = []

        def hand_out(assignment: Assignment) -> None:
            nonlocal free
            free -= assignment.size.num_nodes
            assignments.append(assignment)

        with self._ledger.alone():
            for trial in self._waiting():
                if free > 0 and trial.not_before <= now:
                    hand_out(self._assignment(trial, trial.rung, trial.attempt + 1))
            while free > 0 and self._promoted:
                trial = self._ledger.trials[self._promoted.popleft()]
                if trial.state is TrialState.PAUSED:  # no other driver has handed it out
                    hand_out(self._assignment(trial, trial.rung + 1, 1))
            for trial in self._ledger.in_state(TrialState.SUGGESTED):
                if free > 0:
                    hand_out(self._assignment(trial, 0, 1))
            self._ledger.append([self._submitted(assignment) for assignment in assignments])
        self._submit(assignments)

    def _hand_out_new(self) -> None:
        """Make trials of suggestions, write them down, and hand them out."""
        free, wanted = self._free(), self._limits().trials
        missing = wanted - len(self._ledger.trials)
        self._fetch(min(free, missing))
        if free <= 0 or missing <= 0 or not self._spare:
            return
        written: list[events.Event] = []
        assignments: list[Assignment] = []
        with self._ledger.alone():
            number = len(self._ledger.trials)
            while free > 0 and self._spare and number < wanted:
                configuration = self._spare.popleft()
                if self._ledger.find(configuration) is not None:  # another driver's
                    continue
                trial = Trial(number, configuration, time.time())
                assignment = self._assignment(trial, 0, 1)
                written += [events.suggested(number, configuration, self._seat.number), self._submitted(assignment)]
                assignments.append(assignment)
                free -= assignment.size.num_nodes
                number += 1
            self._ledger.append(written)
        self._submit(assignments)

    def _free(self) -> int:
        """How many nodes' worth of trials may be handed out now."""
        limits = self._limits()
        nodes = min(limits.workers, self._runner.nodes())
        return nodes + limits.queue_of(nodes, self._ends_per_s()) - self._nodes_held

    def _submitted(self, assignment: Assignment) -> events.Event:
        nodes = assignment.size.num_nodes
        return events.submitted(
            assignment.trial, assignment.rung, assignment.attempt, nodes, self._seat.number, self._runner.lasting
        )

    def _decide(self) -> None:
        """Ask the promotion rule, where something was reported since it was asked last."""
        if not self._search.rungs or not self._undecided:
            return
        begin = time.monotonic()
        if begin < self._decide_at and self._outstanding:
            return
        self._undecided = False
        decision = self._search.promotion.decide(self._rung_trials(), len(self._search.rungs))
        self._promoted = deque(decision.promote)
        end = time.monotonic()
        if end - begin > DECIDE_S:
            self._decide_at = end + (end - begin) * (1 / DECIDE_SHARE - 1)
        self._stop(decision.stop, type(self._search.promotion).__name__)

    def _close_rungs(self) -> bool:
        """Nothing runs and nothing new will: what still waits at a rung goes on for the last time, or is given up.

        Returns whether something goes on.
        """
        if not self._search.rungs:
            return False
        with self._ledger.alone():
            # Another driver may have handed something out, or have had a report, since this one looked.
            if self._ledger.under_way():
                return True
            trials, rungs = self._rung_trials(), len(self._search.rungs)
            decision = self._search.promotion.decide(trials, rungs)
            if not decision.promote:
                decision = self._search.promotion.finish(trials, rungs)
                self._stop(decision.stop, SEARCH_ENDED)
        self._promoted = deque(decision.promote)
        return bool(decision.promote)

    def _stop(self, numbers: Sequence[int], why: str) -> None:
        """Give up those of these trials that still wait at a rung."""
        if not numbers:
            return
        with self._ledger.alone():
            trials = [self._ledger.trials[number] for number in numbers]
            waiting = [trial for trial in trials if trial.state is TrialState.PAUSED]
            reasons = [f"not promoted from rung {trial.rung}: {why}" for trial in waiting]
            written = [events.stopped(trial.number, why) for trial, why in zip(waiting, reasons, strict=True)]
            self._ledger.append(written)

    def _rung_trials(self) -> list[RungTrial]:
        for trial in self._ledger.trials:
            if not trial.reports:
                continue
            seen, waiting = self._seen.get(trial.number), trial.state is TrialState.PAUSED
            if seen is None or seen.waiting is not waiting or len(seen.values) != len(trial.reports):
                values = tuple(report.objectives for report in trial.reports)
                self._seen[trial.number] = RungTrial(trial.number, values, waiting)
        return list(self._seen.values())

    def _fetch(self, wanted: int) -> None:
        """Take suggestions, so that so many are spare where there are.

        It waits for one only where nothing else could be done meanwhile.
        """
        missing = wanted - len(self._spare)
        if missing > 0 and (self._suggestions.ready or not self._outstanding):
            self._spare.extend(self._suggestions.take(missing))

    def _to_come(self) -> bool:
        """Whether something will run that does not yet, or runs and is another driver's."""
        if self._promoted or (self._undecided and self._search.rungs):
            return True
        if self._ledger.under_way():
            return True
        if len(self._ledger.trials) >= self._limits().trials:
            return False
        if self._spare or not self._suggestions.exhausted:
            return True
        log.warning("the space holds no further configuration; trials=%d", len(self._ledger.trials))
        return False

    def _waiting(self) -> list[Trial]:
        return self._ledger.in_state(TrialState.WAITING)

    def _patience(self) -> float:
        now = time.time()
        due = [trial.not_before - now for trial in self._waiting() if trial.not_before > now]
        if self._undecided and self._search.rungs:
            due.append(self._decide_at - time.monotonic())
        return max(0.0, min([LOOK_S, *due]))

    def _assignment(self, trial: Trial, rung: int, attempt: int) -> Assignment:
        search, configuration = self._search, trial.configuration
        try:
            size = search.size_of(configuration)
        except Exception as error:
            size, self._unsized[trial.number] = JobSize(), error
        return Assignment(trial.number, rung, attempt, configuration, search.budget(rung), size, search.time_limit_s)

    def _submit(self, assignments: list[Assignment], begun: bool = False) -> None:
        """Hand assignments to the runner; `begun`: they were handed out before, by a driver that is no more."""
        self._outstanding |= {assignment.trial: assignment for assignment in assignments}
        self._nodes_held += sum(assignment.size.num_nodes for assignment in assignments)
        runnable = [assignment for assignment in assignments if assignment.trial not in self._unsized]
        for assignment in assignments:
            if error := self._unsized.pop(assignment.trial, None):
                self._refused.append(Report(assignment, refused(f"trial {assignment.trial}", error)))
        if runnable:
            (self._runner.take_over if begun else self._runner.submit)(runnable)

    def _take_in(self, reports: list[Report]) -> None:
        """Write down how assignments ended, and tell the optimiser."""
        reports = [report for report in reports if self._outstanding.get(report.assignment.trial) == report.assignment]
        if not reports:
            return
        written = [self._event(report) for report in reports]
        with self._ledger.alone():
            # Of a driver that was taken for dead (its locks were lost), others look after the trials.
            self._ledger.append([event for event in written if self._is_ours(self._ledger.trials[event["trial"]])])
        for report in reports:
            del self._outstanding[report.assignment.trial]
            self._nodes_held -= report.assignment.size.num_nodes
        trials = [self._ledger.trials[report.assignment.trial] for report in reports]
        self._suggestions.tell([observation for trial in trials if (observation := trial.observation())])
        self._undecided = True
        self._ends.extend([time.monotonic()] * len(reports))

    def _is_ours(self, trial: Trial) -> bool:
        return trial.state is TrialState.SUBMITTED and trial.driver == self._seat.number

    def _ends_per_s(self) -> float:
        while self._ends and self._ends[0] < time.monotonic() - RATE_S:
            self._ends.popleft()
        return len(self._ends) / RATE_S

    def _event(self, report: Report) -> events.Event:
        """What the end of an assignment means."""
        assignment, outcome = report.assignment, report.outcome
        trial, rung = assignment.trial, assignment.rung
        if outcome.record is not None and outcome.failure is None:
            try:
                objectives = self._search.measure(outcome.record["result"])
            except ObjectivesError:
                raise  # nothing is written down: with a corrected search file the result is there
            except Exception as error:
                if not isinstance(error, ValueError) and not any(trial.reports for trial in self._ledger.trials):
                    raise ObjectivesError(
                        f"the search file's objective fails on the first result: {type(error).__name__}: {error}; mend "
                        "it and run the search again, with --accept-changes: nothing is lost"
                    ) from error
                log.warning("objective failed key=%s error=%s", outcome.key, error)
                return events.ended(trial, rung, None, objective_failed(plain_outcome(outcome), error))
            return self._measured(trial, rung, objectives, plain_outcome(outcome))
        assert outcome.failure is not None
        retries = self._search.retries
        if outcome.failure.transient and assignment.attempt < retries.attempts:
            log.info("attempt failed key=%s kind=%s", outcome.key, outcome.failure)
            return events.attempt_failed(trial, rung, outcome, time.time() + retries.wait_s(assignment.attempt))
        return events.ended(trial, rung, None, outcome)

    def _measured(self, trial: int, rung: int, objectives: tuple[float, ...], outcome: Outcome) -> events.Event:
        """A rung of a trial has given its objectives."""
        if rung < self._search.last_rung:
            return events.reported(trial, rung, objectives, outcome)
        return events.ended(trial, rung, objectives, outcome)


def objective_failed(outcome: Outcome, error: Exception) -> Outcome:
    """The outcome of a trial whose result the search file's objective function cannot read."""
    message = f"the search's objective function failed on the result: {type(error).__name__}: {error}"
    return Outcome(outcome.key, outcome.job_id, outcome.record, FailureKind.BUG, message, outcome.attempts)


def plain_outcome(outcome: Outcome) -> Outcome:
    """The same with a record that is JSON, as a stage's is; that of a Python function need not be.

    Numbers that are not finite become None, NumPy's become plain ones, everything else its text.
    """
    try:
        json.dumps(outcome.record, allow_nan=False)
    except (TypeError, ValueError):
        text = json.dumps(outcome.record, default=_plain, skipkeys=True)
        return replace(outcome, record=json.loads(text, parse_constant=lambda name: None))
    return outcome


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def best_trial(ledger: Ledger) -> Trial | None:
    """The trial with the largest (first) objective of those that have one at the highest rung reached; or None."""
    known = [trial for trial in ledger.trials if trial.objectives is not None]
    return max(known, key=lambda trial: (trial.reports[-1].rung, trial.reports[-1].objectives), default=None)
