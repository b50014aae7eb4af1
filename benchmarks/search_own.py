"""Our driver as a system of the search benchmarks: `python -m benchmarks.search_own TASK TRIALS process|balsam`.

It has the campaign, the journal and the table that every search has.  Trials are evaluated in threads of its process,
or are jobs on the simulated nodes of a real Balsam.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.core.errors import DivergedError
from apps.core.parameters import Parameters
from benchmarks.objectives import NAMES, SIGMA, Evaluations, Task, ackley, optimum_of
from ensemble.campaigns import CampaignData, CampaignPlan, create_campaign
from ensemble.search.definition import Configuration, Search, TrialRequest
from ensemble.search.driver import Limits
from ensemble.search.ledger import Ledger
from ensemble.search.run import SearchRun, run_search
from ensemble.search.runners.threads import ThreadRunner
from ensemble.simulation.plan import simulated_data

if TYPE_CHECKING:
    from deephyper.hpo import HpProblem

NAME = "ackley"
SITE = "virtual"
WALL_TIME_MIN = 60
# A search until it is killed.
ALL_TRIALS = 10**9


def search_until_killed(task: Task) -> None:
    """What benchmarks.search_peers starts."""
    search_trials(task, ALL_TRIALS)


def search_trials(task: Task, trials: int, shared: bool = False) -> Ledger:
    """Search until so many trials have ended, those of an earlier, killed driver counted; alone, or beside others."""
    run = search_run(task)
    evaluate = Evaluations(task, failure=DivergedError)

    def function(configuration: Configuration, budget: int | None) -> dict[str, Any]:
        return {"value": evaluate([configuration[name] for name in NAMES])}

    search = ackley_search(task.limit_s)
    with run.campaign.driver_lock(shared):
        return run_search(
            run, search, lambda: ThreadRunner(NAME, function, task.workers), lambda: Limits(task.workers, trials)
        )


def search_on_balsam(task: Task, trials: int) -> Ledger:
    """The same on the site SITE of the service that runs in the task's folder, where trials take time and no more."""
    from ensemble import sites
    from ensemble.search.runners.balsam import balsam_runner
    from ensemble.session import open_session
    from ensemble.simulation.plan import Plan, Times, simulated_search

    run, home = search_run(task), Path(task.folder)
    plan = Plan(task.workers, Times("lognormal", task.mean_s, SIGMA), seed=task.seed)
    search = simulated_search(ackley_search(), plan, ackley_of(task.seed))
    with open_session(home, run.campaign, SITE, task.workers, WALL_TIME_MIN) as jobs:
        make_runner = balsam_runner(run, search, jobs, sites.open_site(home, SITE))
        return run_search(run, search, make_runner, lambda: Limits(task.workers, trials))


def ackley_of(seed: int) -> Callable[[Configuration, int | None], float]:
    """The objective alone, as a function of (configuration, budget)."""
    optimum = optimum_of(seed)
    return lambda configuration, budget: ackley([configuration[name] for name in NAMES], optimum)


def ackley_search(limit_s: float | None = None) -> Search:
    """The search of benchmarks.objectives, with our default optimiser as it comes."""
    return Search(
        problem=_problem,
        parameters=_no_parameters,
        objective=lambda result: float(result["value"]),
        time_limit_s=limit_s,
    )


def search_run(task: Task) -> SearchRun:
    """The search in the task's folder, made where it is missing."""
    campaign = create_campaign(Path(task.folder), CampaignPlan(name=NAME, seed=task.seed))
    if campaign.data is None:
        campaign.save_data(simulated_data())  # nobody reads it: a search belongs to a campaign that has some
    return SearchRun(campaign, NAME)


def _problem(data: CampaignData) -> HpProblem:
    from benchmarks.search_peers import ackley_problem

    return ackley_problem()


def _no_parameters(request: TrialRequest) -> Parameters:
    raise AssertionError("the runner calls a function; no stage runs")


WHERE = {"process": search_trials, "balsam": search_on_balsam}


if __name__ == "__main__":
    WHERE[sys.argv[3]](Task.load(sys.argv[1]), int(sys.argv[2]))
