"""Jobs that are simulated: the same interface as CampaignJobs, with a function in place of Balsam."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from apps.core.errors import FailureKind
from apps.core.parameters import Parameters
from ensemble.campaigns import Campaign, CampaignData, CampaignPlan, create_campaign
from ensemble.jobs import CampaignJobs, Outcome, Task
from ensemble.search.definition import Configuration, Search
from tests.ensemble.samples import campaign_data


class Point(Parameters, frozen=True, kw_only=True):
    """Parameters of the simulated stage."""

    x: float
    kind: str
    output: str
    seed: int


def result_of(task: Task) -> Outcome:
    """The simulated stage: a parabola, best at x = 3 and kind b; negative x diverges."""
    x, kind = task.parameters["x"], task.parameters["kind"]
    if x < 0:
        return Outcome(task.key, 1, None, FailureKind.DIVERGED, "loss is NaN")
    vi = (x - 3) ** 2 + (0 if kind == "b" else 1)
    cost = {"start": 1.0, "end": 3.0, "cpu_seconds": 2.0, "peak_memory_bytes": 5, "host": "simulated"}
    record = {
        "result": {"scores": {"vi": vi}, "checkpoint": "c"},
        "cost": cost,
        "code_version": "0",
        "configuration_hash": "h",
    }
    return Outcome(task.key, 1, record)


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


def parameters(configuration: Configuration, data: CampaignData, output: str, seed: int) -> Point:
    return Point(x=configuration["x"], kind=configuration["kind"], output=output, seed=seed)


def simulated_search(low: float = 0.0) -> Search:
    from deephyper.hpo import HpProblem

    problem = HpProblem()
    problem.add_hyperparameter((low, 10.0), "x")
    problem.add_hyperparameter(["a", "b"], "kind")
    return Search(
        problem=problem,
        parameters=parameters,
        objective=lambda result: -float(result["scores"]["vi"]),
        initial_points=4,
    )


def prepared_campaign(home: Path) -> Campaign:
    campaign = create_campaign(home, CampaignPlan(name="demo", seed=5))
    campaign.save_data(campaign_data())
    return campaign
