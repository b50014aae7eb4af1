"""What benchmarks.fib25_search does to a running search from outside: it kills a trial, and a whole virtual node."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from apps.core.errors import FailureKind
from benchmarks.fib25_faults import FAULTS
from ensemble.search.ledger import Ledger, TrialState
from ensemble.search.run import SearchRun
from ensemble.sites import Site
from ensemble.sites.processes import launcher_processes, launchers, script_of

PLACE = re.compile(r"trial-(\d+)/rung-(\d+)/attempt-(\d+)$")
# A trial is killed when it has written a checkpoint of its own, beyond the one that it began with (not in quick runs).
STEPS_ON = {False: 100, True: 0}
# How long a process has been at work at least before anything is done to it.
SETTLED_S = {False: 10.0, True: 3.0}
# A node is lost when it runs so many trials at least.
VICTIMS = {False: 2, True: 1}


class Attempt(NamedTuple):
    """One process of a trial: the trial's number, the rung, and the how manyth at that rung, from 1."""

    trial: int
    rung: int
    attempt: int

    @classmethod
    def of(cls, place: str) -> Attempt | None:
        """That of a task's key, or of the work directory that is named by it; None where it is no trial's."""
        found = PLACE.search(place)
        return cls(*map(int, found.groups())) if found else None


@dataclass(frozen=True)
class Running:
    """A trial's process on a virtual node."""

    of: Attempt
    process: psutil.Process

    @property
    def age_s(self) -> float:
        return time.time() - self.process.create_time()


@dataclass(frozen=True)
class Failure:
    """What happened to a trial's process, or was recorded of it: the kind of failure, when (UTC), in what words."""

    kind: FailureKind
    of: Attempt
    time: float
    message: str = ""


class Injector:
    """Kills one trial that trains at a rung above the lowest; later, with all that it runs, a launcher.

    The launcher is a second one or later: the first ends at its wall time, which is an injection of its own.

    Attributes:
        done: what it has done so far.
        launchers: the batch scripts of the launchers that it has seen, in order.
    """

    def __init__(self, run: SearchRun, site: Site, quick: bool) -> None:
        self._run, self._site = run, site
        self._steps_on, self._settled_s, self._victims = STEPS_ON[quick], SETTLED_S[quick], VICTIMS[quick]
        self._ledger = Ledger(run.journal)
        self.done: list[Failure] = []
        self.launchers: list[str] = []
        self._steps: dict[int, list[tuple[float, int]]] = {}

    def look(self) -> None:
        """Do what is due.  To be called again and again while the search runs."""
        self._ledger.refresh()
        for script in map(script_of, launchers(self._site.path)):
            if script and script not in self.launchers:
                self.launchers.append(script)
        running = [one for one in running_trials(self._site) if one.of.trial not in FAULTS]
        for one in running:
            self._steps.setdefault(one.of.trial, []).append((time.time(), self._step(one.of.trial)))
        if not self._has_done(FailureKind.KILLED):
            self._kill_trial(running)
        elif len(self.launchers) > 1 and not self._has_done(FailureKind.LOST_NODE):
            self._lose_node(running)

    def step_at(self, trial: int, moment: float) -> int:
        """The step of a trial's checkpoint at a moment (UTC), at least; 0 where there was none yet."""
        return max((step for seen, step in self._steps.get(trial, []) if seen <= moment), default=0)

    def _kill_trial(self, running: list[Running]) -> None:
        for one in running:
            if one.of.rung == 0 or one.age_s < self._settled_s or not self._submitted(one):
                continue
            if self._budget(one.of.rung - 1) + self._steps_on <= self._step(one.of.trial) < self._budget(one.of.rung):
                one.process.kill()
                self._note(FailureKind.KILLED, one)
                return

    def _lose_node(self, running: list[Running]) -> None:
        """Everything at once, as when a machine goes: batch script, launcher, and the trials of all its nodes."""
        settled = [one for one in running if one.age_s > self._settled_s and self._submitted(one)]
        if len(settled) < self._victims:
            return
        for process in launcher_processes(self._site.path):
            with contextlib.suppress(psutil.Error):
                process.kill()
        for one in settled:
            self._note(FailureKind.LOST_NODE, one)

    def _note(self, kind: FailureKind, one: Running) -> None:
        self.done.append(Failure(kind, one.of, time.time()))

    def _has_done(self, kind: FailureKind) -> bool:
        return any(one.kind is kind for one in self.done)

    def _submitted(self, one: Running) -> bool:
        trial = self._ledger.trials[one.of.trial]
        return trial.state is TrialState.SUBMITTED and (trial.number, trial.rung, trial.attempt) == one.of

    def _budget(self, rung: int) -> int:
        assert self._ledger.begun is not None
        return int(self._ledger.begun["rungs"][rung])

    def _step(self, trial: int) -> int:
        return checkpoint_step(self._run.trials_folder / f"{trial:04d}")


def checkpoint_step(output: Path) -> int:
    """The step of the checkpoint in a trial's folder; 0 before there is one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return int(json.loads((output / "checkpoint" / "model.json").read_text())["step"])
    return 0


def running_trials(site: Site) -> Iterator[Running]:
    """The trials' processes at a site, by what their command and their work directory say."""
    for process in launcher_processes(site.path):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            of = Attempt.of(process.cwd())
            if of and "apps.trial" in words and "python" in Path(words[0]).name:
                yield Running(of, process)
