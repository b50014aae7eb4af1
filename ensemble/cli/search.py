"""`ensemble search run|status`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ensemble.cli.options import Numbers, home_option, site_option, wall_time_option, workers_option


@click.group()
def search() -> None:
    """Searches whose trials are Balsam jobs."""


@search.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--campaign", "campaign_name", required=True, help="Name of the campaign; made where it does not exist.")
@site_option
@workers_option
@click.option("--trials", type=click.IntRange(min=1), default=8, show_default=True, help="Trials in all.")
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
    site_name: str,
    workers: int,
    trials: int,
    wall_time_min: int,
    home: Path,
    **plan: Any,
) -> None:
    """Run the search that FILE defines; the same command again continues it.

    \b
    Examples:
      ensemble search run searches/ffn_quick.py --campaign demo --site laptop --workers 2 --trials 8
      ensemble search run my.py --campaign fib25 --site theta --workers 512 --trials 4000 \\
          --data em.h5:raw --labels truth.h5:labels --voxel-size 10,10,10
    """
    from ensemble.campaigns import create_campaign, list_campaigns, open_campaign, plan_campaign
    from ensemble.display import Display, job_folders
    from ensemble.preparation import PREPARATION_KEYS, check_inputs, divide, geometry_for, prepare
    from ensemble.search.definition import load_search
    from ensemble.search.driver import SearchRun, best_trial
    from ensemble.search.progress import search_with_display
    from ensemble.session import check_site, open_session
    from ensemble.workflow import TaskFailedError

    check_site(home, site_name, workers)
    name, definition = load_search(file)
    given = any(plan[key] is not None for key in ("image", "labels", "voxel_size_nm", "init"))
    if campaign_name in list_campaigns(home) and not given:
        campaign = open_campaign(home, campaign_name)
    else:
        wanted = plan_campaign(campaign_name, **plan)
        divide(check_inputs(wanted), geometry_for(definition.geometry, wanted.init))
        campaign = create_campaign(home, wanted)
    search_run = SearchRun(campaign, name)
    with open_session(home, campaign, site_name, workers, wall_time_min) as jobs, Display() as display:
        with display.phase("prepare data", lambda: job_folders(jobs, PREPARATION_KEYS)) as update:
            prepare(campaign, jobs, definition.geometry, update)
        ledger = search_with_display(search_run, definition, jobs, workers, trials, display)
    from ensemble.cli.results import print_table

    print_table(campaign)
    click.echo(f"table: {campaign.table}")
    if best_trial(ledger) is None:
        raise TaskFailedError(f"no trial of search {name} gave a result; the failures stand in the table")
    click.echo(f"next:  ensemble select {campaign.name} --metric vi --register {campaign.name}")


@search.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@home_option
def status(campaign_name: str, home: Path) -> None:
    """How the searches of CAMPAIGN stand: trials by state, best so far.

    \b
    Example:
      ensemble search status demo
    """
    from collections import Counter

    from ensemble.campaigns import open_campaign
    from ensemble.search.driver import best_trial, searches_of

    campaign = open_campaign(home, campaign_name)
    runs = searches_of(campaign)
    if not runs:
        click.echo(f"campaign {campaign.name}: no search was started yet")
    for search_run in runs:
        ledger = search_run.ledger()
        counts = Counter(trial.state.value for trial in ledger.trials)
        failures = Counter(t.outcome.failure.value for t in ledger.trials if t.outcome and t.outcome.failure)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        click.echo(f"{search_run.name}: {len(ledger.trials)} trials ({states})")
        if failures:
            click.echo("  failures: " + ", ".join(f"{count} {kind}" for kind, count in sorted(failures.items())))
        best = best_trial(ledger)
        if best is not None:
            values = ", ".join(
                f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in best.configuration.items()
            )
            click.echo(f"  best: trial {best.number}, objective {best.objective}, {values}")
