"""The whole loop on one volume: prepare, search, select, register, deploy, evaluate, report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.parameters import write_json
from ensemble.campaigns import Campaign
from ensemble.deployment import Deployment, Resources, deployment_of, run_deployment
from ensemble.display import Display, job_folders
from ensemble.jobs import CampaignJobs
from ensemble.models import Model
from ensemble.preparation import PREPARATION_KEYS, prepare
from ensemble.report import write_campaign_report
from ensemble.search.definition import Search
from ensemble.search.driver import Limits
from ensemble.search.ledger import Ledger
from ensemble.search.progress import search_with_display
from ensemble.search.run import SearchRun
from ensemble.search.runners.balsam import balsam_runner
from ensemble.search.table import campaign_table
from ensemble.selection import Selection, register_trial, select_trial, useful_trials
from ensemble.sites import Site

METRIC, COST = "m:vi", "m:node_hours_per_gigavoxel"
# Without a bound of the user's, a model may cost this many times the median of the finished trials.
DEFAULT_COST_FACTOR = 2.0
# ... of those that fill at least this share of what the best filling one does.
FILLING_SHARE = 0.5
OVERHEAD_FILE = "overhead.json"


@dataclass(frozen=True)
class QuickstartOptions:
    """What to run.

    Attributes:
        search: gives name and search; a function, so that they may load while the service starts.
        trials, workers: how many, how many at a time.
        max_cost: bound on the model's cost in node-hours per gigavoxel; None for DEFAULT_COST_FACTOR times the median.
    """

    search: Callable[[], tuple[str, Search]]
    trials: int
    workers: int
    max_cost: float | None


@dataclass(frozen=True)
class Finished:
    """What the loop made: the selection, the model, the deployment and its records by stage, the report."""

    selection: Selection
    model: Model
    deployment: Deployment
    records: dict[str, Any]
    report: Path


def run_quickstart(
    home: Path,
    campaign: Campaign,
    jobs: CampaignJobs,
    site: Site,
    options: QuickstartOptions,
    display: Display,
    started: float,
) -> Finished:
    """Run what is missing of the loop.  Every step finds again what an earlier, interrupted run has done.

    `started`: when the command began (UTC epoch seconds), for the overhead that is written beside the report.
    """
    name, search = options.search()
    with display.phase("prepare data", lambda: job_folders(jobs, PREPARATION_KEYS)) as update:
        preparation = prepare(campaign, jobs, search.geometry, update)
    run = SearchRun(campaign, name)
    limits = Limits(options.workers, options.trials)
    make_runner = balsam_runner(run, search, jobs, site)
    ledger = search_with_display(run, search, make_runner, lambda: limits, display, jobs.workdir)
    bound = options.max_cost if options.max_cost is not None else default_cost_bound(campaign)
    selection = select_trial(campaign, METRIC, True, COST, bound)
    model = register_trial(home, campaign, selection, name=campaign.name)
    display.say(f"selected {selection.reason}")
    display.say(f"registered model {model.name}:{model.version} as {model.name}@champion")
    data = preparation.data
    deployment = deployment_of(
        home,
        model,
        image=data.image,
        labels=data.labels,
        output=campaign.folder / "deployed" / f"{model.name}-{model.version}.zarr",
        box=data.test_box,
        threshold_box=data.training_box,
    )
    records = run_deployment(deployment, jobs, display, Resources(nodes=options.workers))
    everything = [*preparation.records, *_trial_records(ledger), *records["inference"]]
    everything += [records["reconciliation"], records["evaluation"]]
    overhead = measure_overhead(everything, options.workers, started, time.time())
    write_json(campaign.folder / OVERHEAD_FILE, overhead)
    report = write_campaign_report(campaign, data, selection, model, deployment, records, overhead, cost=(COST, bound))
    return Finished(selection, model, deployment, records, report)


def default_cost_bound(campaign: Campaign) -> float | None:
    """DEFAULT_COST_FACTOR times the median cost of the trials that are of use; None before there is one.

    A network that finds next to nothing is cheap for that reason: it says nothing of what a model has to cost.
    """
    table = useful_trials(campaign_table(campaign))
    if COST not in table.columns:
        return None
    table = table[(table["job_status"] == "DONE") & table[COST].notna()]
    if "m:filled_fraction" in table.columns:
        filled = table["m:filled_fraction"]
        table = table[filled >= FILLING_SHARE * filled.max()]
    costs = [float(cost) for cost in table[COST]]
    return DEFAULT_COST_FACTOR * statistics.median(costs) if costs else None


def measure_overhead(records: Iterable[dict[str, Any]], workers: int, started: float, ended: float) -> dict[str, float]:
    """Wall time of the command against the compute time of its stages, in seconds, from the processes' own clocks.

    Overhead is the wall time minus the stages' compute time over the workers.  Only what ran since `started` counts, so
    that a continued quickstart is not credited with an earlier one's work.
    """
    costs = [record["cost"] for record in records]
    compute = sum(max(0.0, cost["end"] - max(cost["start"], started)) for cost in costs)
    wall = ended - started
    overhead = wall - compute / workers
    return {
        "wall_seconds": wall,
        "compute_seconds": compute,
        "workers": float(workers),
        "overhead_seconds": overhead,
        "overhead_fraction": overhead / wall,
    }


def _trial_records(ledger: Ledger) -> list[dict[str, Any]]:
    return [report.outcome.record for trial in ledger.trials for report in trial.reports if report.outcome.record]
