"""`ensemble search`: run a search; the commands that look at one and change one are in search_status.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.cli.options import Numbers, home_option, wall_time_option
from ensemble.cli.search_status import resize, status
from ensemble.cli.simulate import simulate

if TYPE_CHECKING:
    from ensemble.campaigns import Campaign
    from ensemble.display import Display
    from ensemble.search.definition import Search
    from ensemble.search.driver import Limits
    from ensemble.search.ledger import Ledger
    from ensemble.search.run import SearchRun
    from ensemble.workflow import Jobs

DEFAULT_WORKERS = 2
WAITING = "another driver prepares the data; waiting for it"
EVALUATORS = ("balsam", "serial", "thread", "process", "ray", "mpicomm")


@click.group()
def search() -> None:
    """Searches whose trials are Balsam jobs."""


@search.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--campaign", "campaign_name", required=True, help="Name of the campaign; made where it does not exist.")
@click.option("--site", "site_name", help="The Balsam site where the jobs run; needed with --evaluator balsam.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help=f"Nodes at a time, at most.  [default: {DEFAULT_WORKERS}; with --evaluator mpicomm all ranks but one]",
)
@click.option("--trials", type=click.IntRange(min=1), default=8, show_default=True, help="Trials in all.")
@click.option(
    "--evaluator",
    type=click.Choice(EVALUATORS),
    default="balsam",
    show_default=True,
    help="Where trials run: Balsam jobs, or DeepHyper's evaluators inside this process's machine or allocation.",
)
@click.option(
    "--shared",
    is_flag=True,
    help="One of several drivers of this search, each started with this command (--shared too).",
)
@click.option("--accept-changes", is_flag=True, help="Go on although the search file has changed since it began.")
@click.option("--data", "image", help="Image volume: FILE.h5:DATASET or NAME.zarr.  [default: a generated phantom]")
@click.option("--labels", help="Ground truth of the image: FILE.h5:DATASET or NAME.zarr.")
@click.option(
    "--voxel-size", "voxel_size_nm", type=Numbers(float), help="Voxel size in nm, for volumes that do not say."
)
@click.option("--init", help="Checkpoint (ours, or a google/ffn prefix) that trials may start from.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@wall_time_option
@home_option
def run(
    file: Path,
    campaign_name: str,
    site_name: str | None,
    workers: int | None,
    trials: int,
    evaluator: str,
    shared: bool,
    accept_changes: bool,
    wall_time_min: int,
    home: Path,
    **plan: Any,
) -> None:
    """Run the search that FILE defines; the same command again continues it.

    With --shared, the same command again while it runs is another driver of the same search, with workers of its own:
    for more nodes than one driver can keep busy, for several allocations, or so that the death of one matters little.
    All work on one journal; each learns what the others found, and looks after the trials of one that has died.

    \b
    Examples:
      ensemble search run searches/ffn_quick.py --campaign demo --site laptop --workers 2 --trials 8
      ensemble search run my.py --campaign fib25 --site theta --workers 512 --trials 4000 \\
          --data em.h5:raw --labels truth.h5:labels --voxel-size 10,10,10
      mpiexec -n 65 ensemble search run my.py --campaign fib25 --evaluator mpicomm --trials 512
      ensemble search run my.py --campaign fib25 --site theta --workers 2048 --trials 90000 --shared
    """
    from ensemble.search.driver import Limits

    limits = Limits(workers or DEFAULT_WORKERS, trials)
    given = _Given(file, home, campaign_name, plan, accept_changes, shared)
    if evaluator != "balsam":
        _inside(evaluator, workers, limits, given)
        return
    if site_name is None:
        raise click.UsageError("--site is needed with --evaluator balsam; `ensemble site ls` names the sites")
    _on_balsam(site_name, wall_time_min, limits, given)


@dataclass(frozen=True)
class _Given:
    """What search of what campaign is asked for."""

    file: Path
    home: Path
    campaign_name: str
    plan: dict[str, Any]
    accept_changes: bool
    shared: bool

    def open(self) -> tuple[SearchRun, Search]:
        """The search, and the campaign: made where it does not exist."""
        from ensemble.search.definition import load_search
        from ensemble.search.run import SearchRun
        from ensemble.search.space import SearchSpace

        name, definition = load_search(self.file)
        if not callable(definition.problem):
            SearchSpace(definition.problem)  # refused before a campaign is made and its data prepared
        return SearchRun(_campaign(self.home, self.campaign_name, definition, self.plan), name), definition


def _campaign(home: Path, name: str, definition: Search, plan: dict[str, Any]) -> Campaign:
    """The campaign of that name, made of the options where it does not exist."""
    from ensemble.campaigns import create_campaign, list_campaigns, open_campaign, plan_campaign
    from ensemble.preparation import check_plan

    given = any(plan[key] is not None for key in ("image", "labels", "voxel_size_nm", "init"))
    if name in list_campaigns(home) and not given:
        return open_campaign(home, name)
    wanted = plan_campaign(name, **plan)
    check_plan(wanted, definition.geometry)
    return create_campaign(home, wanted)


def _on_balsam(site_name: str, wall_time_min: int, limits: Limits, given: _Given) -> None:
    """Trials as Balsam jobs at a site."""
    from ensemble.display import Display
    from ensemble.preparation import PREPARATION_KEYS
    from ensemble.search.control import Control, nodes_of_others
    from ensemble.search.progress import search_with_display
    from ensemble.search.runners.balsam import balsam_runner
    from ensemble.search.seats import take_seat
    from ensemble.session import check_site, open_session
    from ensemble.sites import open_site

    home = given.home
    check_site(home, site_name, limits.workers)
    run, definition = given.open()
    searches = run.folder.parent
    with run.campaign.driver_lock(given.shared), take_seat(run.folder) as seat:
        now = Control(seat, limits, site_name).limits
        with (
            Display() as display,
            open_session(
                home,
                run.campaign,
                site_name,
                limits.workers,
                wall_time_min,
                held=True,
                nodes_of_others=lambda: nodes_of_others(searches, site_name),
                tell=display.waiting,
            ) as jobs,
        ):
            # A launcher has as many nodes as there are workers: it never starts a job of more.
            make = balsam_runner(run, definition, jobs, open_site(home, site_name), limits.workers)
            with run.campaign.preparation_lock(lambda: display.say(WAITING)):
                jobs.find(PREPARATION_KEYS)  # what another driver has begun
                _prepare(run.campaign, jobs, definition, display)
            ledger = search_with_display(run, definition, make, now, display, jobs.workdir, given.accept_changes, seat)
    _conclude(run, ledger)


def _inside(evaluator: str, workers: int | None, limits: Limits, given: _Given) -> None:
    """Trials in this machine or allocation, through one of DeepHyper's evaluators.

    It is opened first: under MPI every rank comes here, and all but one only work in it.
    """
    from dataclasses import replace

    from ensemble.display import Display
    from ensemble.local_jobs import LocalJobs
    from ensemble.search.control import Control
    from ensemble.search.progress import search_with_display
    from ensemble.search.runners import TrialParameters
    from ensemble.search.runners.deephyper import DeepHyperRunner, open_evaluator
    from ensemble.search.seats import take_seat

    with open_evaluator(evaluator, limits.workers) as opened:
        if opened is None:
            return
        limits = replace(limits, workers=workers or opened.num_workers)
        run, definition = given.open()
        work = run.folder / "work"
        with run.campaign.driver_lock(given.shared), Display() as display:
            folder = run.campaign.folder / "preparation"
            with run.campaign.preparation_lock(lambda: display.say(WAITING)), LocalJobs(folder) as jobs:
                _prepare(run.campaign, jobs, definition, display)
            parameters = TrialParameters(definition, run.data(), run.trials_folder, run.campaign.plan.seed)
            with take_seat(run.folder) as seat:
                ledger = search_with_display(
                    run,
                    definition,
                    lambda: DeepHyperRunner(opened, parameters, definition.stage, run.name, work),
                    Control(seat, limits).limits,
                    display,
                    lambda key: work / key,
                    given.accept_changes,
                    seat,
                )
        _conclude(run, ledger)


def _conclude(run: SearchRun, ledger: Ledger) -> None:
    """The table, and what comes next.  Raises TaskFailedError where no trial gave a result."""
    from ensemble.cli.results import print_table
    from ensemble.search.driver import best_trial
    from ensemble.workflow import TaskFailedError

    campaign = run.campaign
    print_table(campaign)
    click.echo(f"table: {campaign.table}")
    if best_trial(ledger) is None:
        raise TaskFailedError(f"no trial of search {run.name} gave a result; the failures stand in the table")
    if campaign.data is not None and campaign.data.coordinates:
        click.echo(f"next:  ensemble select {campaign.name} --metric vi --register {campaign.name}")


def _prepare(campaign: Campaign, jobs: Jobs, definition: Search, display: Display) -> None:
    from ensemble.display import job_folders
    from ensemble.preparation import PREPARATION_KEYS, prepare

    with display.phase("prepare data", lambda: job_folders(jobs, PREPARATION_KEYS)) as update:
        prepare(campaign, jobs, definition.geometry, update)


search.add_command(status)
search.add_command(resize)
search.add_command(simulate)
