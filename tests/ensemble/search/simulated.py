"""Jobs and runners that are simulated: the same interfaces as the real ones, with a function in place of a machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.core.errors import FailureKind
from apps.core.parameters import Parameters
from ensemble.campaigns import Campaign, CampaignPlan, create_campaign
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import Search, TrialRequest
from ensemble.search.keys import trial_key
from ensemble.search.runners import Assignment, Report, Runner
from tests.ensemble.samples import campaign_data

COST = {"start": 1.0, "end": 3.0, "cpu_seconds": 2.0, "peak_memory_bytes": 5, "host": "simulated"}


class Point(Parameters, frozen=True, kw_only=True):
    """Parameters of the simulated stage."""

    x: float
    kind: str
    output: str
    seed: int
    budget: int | None = None


def record_of(vi: float) -> dict[str, Any]:
    return {
        "result": {"scores": {"vi": vi}, "checkpoint": "c"},
        "cost": COST,
        "code_version": "0",
        "configuration_hash": "h",
    }


def parabola(x: float, kind: str) -> float:
    """Best (0) at x = 3 and kind b."""
    return (x - 3) ** 2 + (0 if kind == "b" else 1)


def result_of(task: Task) -> Outcome:
    """The simulated stage: a parabola; negative x diverges."""
    x, kind = task.parameters["x"], task.parameters["kind"]
    if x < 0:
        return Outcome(task.key, 1, None, FailureKind.DIVERGED, "loss is NaN")
    return Outcome(task.key, 1, record_of(parabola(x, kind)))


class SimulatedJobs(CampaignJobs):
    """Runs tasks in threads; `submitted` lists every task that was started, `forgotten` every key taken back."""

    def __init__(self, run: Callable[[Task], Outcome] = result_of) -> None:
        self.submitted: list[Task] = []
        self.ended: dict[str, Outcome] = {}
        self.forgotten: list[str] = []
        self._run = run
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(8)

    def submit(self, task: Task) -> Future[Outcome]:
        with self._guard:
            self.submitted.append(task)
        return self._pool.submit(self._do, task)

    def _do(self, task: Task) -> Outcome:
        outcome = self._run(task)
        self.ended[task.key] = outcome
        return outcome

    def outcome(self, key: str) -> Outcome | None:
        return self.ended.get(key)

    def forget(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.forgotten.append(key)
            self.ended.pop(key, None)

    def workdir(self, key: str) -> Path:
        return Path(key)


def result_at(assignment: Assignment) -> Outcome | None:
    """The simulated stage as a runner has it: nearer to the parabola with every rung; negative x diverges."""
    key = trial_key("s", assignment.trial, assignment.rung, assignment.attempt)
    x, kind = assignment.configuration["x"], assignment.configuration["kind"]
    if x < 0:
        return Outcome(key, 1, None, FailureKind.DIVERGED, "loss is NaN")
    return Outcome(key, 1, record_of(parabola(x, kind) + 1.0 / (1 + assignment.rung)))


class SimulatedRunner(Runner):
    """Ends one assignment at every wait, the oldest first, as `run` says; None is one that goes on for ever.

    `submitted` lists every assignment that it was given, `most` how many nodes they held at once.
    """

    def __init__(self, run: Callable[[Assignment], Outcome | None] = result_at, nodes: int = 4) -> None:
        self.submitted: list[Assignment] = []
        self.running: list[Assignment] = []
        self.most = 0
        self.closed = False
        self.there = nodes
        self._run = run

    def submit(self, assignments: Sequence[Assignment]) -> None:
        self.submitted += assignments
        self.running += assignments
        self.most = max(self.most, sum(assignment.size.num_nodes for assignment in self.running))

    def wait(self, timeout_s: float) -> list[Report]:
        for assignment in self.running:
            outcome = self._run(assignment)
            if outcome is not None:
                self.running.remove(assignment)
                return [Report(assignment, outcome)]
        return []

    def nodes(self) -> int:
        return self.there

    def close(self) -> None:
        self.closed = True


def parameters(trial: TrialRequest) -> Point:
    values = trial.configuration
    return Point(x=values["x"], kind=values["kind"], output=trial.output, seed=trial.seed, budget=trial.budget)


def simulated_search(low: float = 0.0, **changes: Any) -> Search:
    """A search of a parabola.  Random, so that no test waits for DeepHyper's surrogate where it need not."""
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter((low, 10.0), "x")
    problem.add_hyperparameter(["a", "b"], "kind")
    search = Search(
        problem=problem,
        parameters=parameters,
        objective=lambda result: -float(result["scores"]["vi"]),
        optimizer="random",
        initial_points=4,
    )
    return replace(search, **changes)


def prepared_campaign(home: Path) -> Campaign:
    campaign = create_campaign(home, CampaignPlan(name="demo", seed=5))
    campaign.save_data(campaign_data())
    return campaign
