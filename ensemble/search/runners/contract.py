"""Where the driver's trials run: the contract of all runners.

A runner starts what the driver hands to it and says how it ended.  It decides nothing: which trial goes on, is tried
again or has failed is the driver's to say, from the journal.  To add one: derive from `Runner`, add a line to `RUNNERS`
in this package; the conformance suite in tests/ensemble/search/runners runs over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.core.errors import kind_of
from ensemble.campaigns import CampaignData
from ensemble.jobs import Outcome
from ensemble.search.definition import Configuration, JobSize, Search, TrialRequest


@dataclass(frozen=True)
class Assignment:
    """One rung of one trial, to be run.

    Attributes:
        trial, rung, attempt: which; the first attempt is 1.
        configuration, budget: what to run.
        size: nodes and ranks.
        time_limit_s: after so many seconds it is ended, and reported as `hung`.
    """

    trial: int
    rung: int
    attempt: int
    configuration: Configuration
    budget: int | None = None
    size: JobSize = field(default_factory=JobSize)
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Report:
    """How an assignment ended: `outcome.record` holds `result` and `cost`, or `outcome.failure` says why not."""

    assignment: Assignment
    outcome: Outcome


class Runner(ABC):
    """Runs assignments.  One driver owns it and calls it from one thread.

    Attributes:
        lasting: whether what it runs goes on when the driver ends, to be found again by the next one.
    """

    lasting = False

    @abstractmethod
    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Have these run; returns soon."""

    def take_over(self, assignments: Sequence[Assignment]) -> None:
        """Report on these, which a driver that is no more has submitted; returns soon.

        A runner whose trials outlive the driver finds them, and runs nothing again; the others run them again.
        """
        self.submit(assignments)

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Report]:
        """What has ended since the last call; waits for the first, at most `timeout_s` seconds.

        Every assignment is reported once.  Raises TransientError where the runner has lost what it runs on.
        """

    @abstractmethod
    def nodes(self) -> int:
        """How many nodes there are just now for assignments to run on."""

    @abstractmethod
    def close(self) -> None:
        """Let go: what outlives the driver goes on, the rest is ended."""


class TrialParameters:
    """Makes a stage's parameters of an assignment: what the runners that run stages share."""

    def __init__(self, search: Search, data: CampaignData, folder: Path, seed: int) -> None:
        """`folder`: where trials write their checkpoints and volumes, one folder each."""
        self._search, self._data, self._folder, self._seed = search, data, folder, seed

    def make(self, assignment: Assignment) -> dict[str, Any]:
        """The parameters as plain JSON.  Raises what the search file's function raises."""
        output = str(self._folder / f"{assignment.trial:04d}")
        request = TrialRequest(assignment.configuration, self._data, output, self._seed, assignment.budget)
        return self._search.parameters(request).to_dict()


def refused(key: str, error: Exception) -> Outcome:
    """The outcome of an assignment of which no parameters could be made, known before any node is spent on it.

    A configuration that its own stage refuses is an observation; an error in the search file's function is a bug, of
    this trial alone.
    """
    return Outcome(key, 0, None, kind_of(error), f"{type(error).__name__}: {error}")
