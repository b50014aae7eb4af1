"""`ensemble search status` and `ensemble search resize`: look at searches while they run, and change how wide."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.cli.options import home_option

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from ensemble.search.ledger import Ledger, Trial
    from ensemble.search.run import SearchRun
    from ensemble.search.standing import Standing

# Trials of a Pareto front that are named.
FRONT_SHOWN = 12


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.argument("search_name", metavar="[SEARCH]", required=False)
@click.option("--watch", is_flag=True, help="Go on showing it, until interrupted or all trials have ended.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    help="Seconds between two looks of --watch.",
)
@home_option
def status(campaign_name: str, search_name: str | None, watch: bool, interval: float, home: Path) -> None:
    """How the searches of CAMPAIGN stand: trials by state and rung, utilisation, best so far, expected end.

    All of it comes from the searches' journals: looking costs the driver and the service nothing.

    \b
    Examples:
      ensemble search status demo
      ensemble search status fib25 ffn_variants --watch
    """
    from ensemble.display import output_console

    runs = _runs(home, campaign_name, search_name)
    while watch and not runs and _driven(home, campaign_name):  # it prepares the data
        time.sleep(interval)
        runs = _runs(home, campaign_name, search_name)
    if not runs:
        click.echo(f"campaign {campaign_name}: no search was started yet")
        return
    ledgers = [run.ledger() for run in runs]
    console = output_console()
    if watch:
        with contextlib.suppress(KeyboardInterrupt):  # how one leaves it
            _watch(console, home, runs, ledgers, interval)
    else:
        console.print(_page(runs, _standings(runs, ledgers), _driven(home, campaign_name)))


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.argument("search_name", metavar="SEARCH")
@click.option("--workers", type=click.IntRange(min=1), help="Nodes at a time from now on.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials in all from now on.")
@home_option
def resize(campaign_name: str, search_name: str, workers: int | None, trials: int | None, home: Path) -> None:
    """Change how many workers a running search keeps busy, or how many trials it makes in all.

    The driver takes it up within seconds.  With fewer workers, what runs is left to end.  More workers than there are
    nodes wait for nodes.  It holds until that driver ends.  Of several drivers that share a search, each keeps so many
    workers busy.

    \b
    Examples:
      ensemble search resize fib25 ffn_variants --workers 1024
      ensemble search resize fib25 ffn_variants --trials 8000
    """
    from ensemble.search.control import change_orders

    (run,) = _runs(home, campaign_name, search_name)
    changed = change_orders(run.folder, workers, trials)
    workers_of_each = " + ".join(str(orders.workers) for orders in changed)
    click.echo(f"{run.name}: {workers_of_each} workers, {max(orders.trials for orders in changed)} trials in all")


def _runs(home: Path, campaign_name: str, search_name: str | None) -> list[SearchRun]:
    """The searches of a campaign, or the one that is named.  Raises StateError where that was never started."""
    from apps.core.errors import StateError
    from ensemble.campaigns import open_campaign
    from ensemble.search.run import searches_of

    campaign = open_campaign(home, campaign_name)
    runs = searches_of(campaign)
    if search_name is None:
        return runs
    known = ", ".join(run.name for run in runs) or "none"
    found = [run for run in runs if run.name == search_name]
    if not found:
        raise StateError(f"search {search_name!r}: was not started in campaign {campaign.name}; there are: {known}")
    return found


def _driven(home: Path, campaign_name: str) -> bool:
    """Whether anything drives the campaign."""
    from ensemble.campaigns import open_campaign

    return open_campaign(home, campaign_name).driven


def _standings(runs: Sequence[SearchRun], ledgers: Sequence[Ledger]) -> list[Standing]:
    from ensemble.search.control import standing_orders
    from ensemble.search.standing import standing

    return [
        standing(ledger, standing_orders(run.folder), run.journal.stat().st_mtime, time.time())
        for run, ledger in zip(runs, ledgers, strict=True)
    ]


def _watch(console: Console, home: Path, runs: Sequence[SearchRun], ledgers: Sequence[Ledger], interval: float) -> None:
    """Show the searches until all have ended; where there is no terminal, a new page whenever something has changed."""
    from rich.live import Live

    standings = _standings(runs, ledgers)
    driven = _driven(home, runs[0].campaign.name)
    with Live(_page(runs, standings, driven), console=console, auto_refresh=False) as live:
        while not all(standing.finished for standing in standings):
            time.sleep(interval)
            changed = [ledger.refresh() for ledger in ledgers]
            standings = _standings(runs, ledgers)
            before, driven = driven, _driven(home, runs[0].campaign.name)
            page = _page(runs, standings, driven)
            live.update(page, refresh=True)
            if (any(changed) or driven != before) and not console.is_terminal:
                console.print(page)


def _page(runs: Sequence[SearchRun], standings: Sequence[Standing], driven: bool) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    tables = (_search(run.name, found, driven) for run, found in zip(runs, standings, strict=True))
    return Group(*(Padding(table, (0, 0, 1, 0)) for table in tables))


def _search(name: str, found: Standing, driven: bool) -> RenderableType:
    from rich.table import Table

    table = Table(title=f"search {name}", title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for title, text in _lines(found, driven):
        table.add_row(title, text)
    return table


def _lines(found: Standing, driven: bool) -> list[tuple[str, str]]:
    wanted = f" of {found.wanted}" if found.wanted is not None else ""
    lines = [("trials", f"{found.trials}{wanted}: {_counts({s.value: n for s, n in found.states.items()})}")]
    if len(found.rungs) > 1:
        lines += [
            (f"rung {r.rung}", f"budget {r.budget}: {r.running} running, {r.waiting} waiting, {r.reported} reported")
            for r in found.rungs
        ]
    if found.failures:
        lines.append(("failures", _counts(found.failures)))
    if found.retried:
        lines.append(("retried", f"{found.retried} times"))
    if found.workers is not None:
        used = f", {found.utilisation:.1%} utilisation" if found.utilisation is not None and not found.finished else ""
        drivers = f", of {found.drivers} drivers" if found.drivers > 1 else ""
        lines.append(("workers", f"{found.busy} busy of {found.workers}{drivers}{used}"))
    if not driven and found.ended < max(found.wanted or 0, found.trials):
        lines.append(("driver", "none runs; the command that started it goes on with it"))
    elif driven or found.finished:
        lines.append(("end", _end(found)))
    lines.append(("journal", f"last event {timedelta(seconds=round(found.quiet_s))} ago"))
    if found.best is not None:
        lines.append(("best", _best(found.best, found.objectives)))
    if found.front:
        named = ", ".join(map(str, found.front[:FRONT_SHOWN])) + (", ..." if len(found.front) > FRONT_SHOWN else "")
        lines.append(("front", f"{len(found.front)} trial{'s' if len(found.front) != 1 else ''}: {named}"))
    return lines


def _counts(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number) or "none"


def _end(found: Standing) -> str:
    if found.finished:
        return "all trials have ended"
    if found.left_s is None:
        return "cannot be told yet"
    at = datetime.now() + timedelta(seconds=found.left_s)
    left = timedelta(seconds=round(found.left_s))
    return f"in {left} at {found.pace * 3600:.3g} trials an hour, on {at:%Y-%m-%d at %H:%M}"


def _best(trial: Trial, names: Sequence[str]) -> str:
    objectives = trial.reports[-1].objectives
    titles = names or [f"objective_{i}" for i in range(len(objectives))]
    values = [f"{name} {value:.4g}" for name, value in zip(titles, objectives, strict=False)]
    return f"trial {trial.number}: {', '.join(values)}; {_configuration(trial.configuration)}"


def _configuration(configuration: dict[str, Any]) -> str:
    active = {name: value for name, value in configuration.items() if value is not None}
    return ", ".join(f"{n}={v:.3g}" if isinstance(v, float) else f"{n}={v}" for n, v in active.items())
