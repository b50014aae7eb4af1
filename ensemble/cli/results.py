"""`ensemble results`, `ensemble select` and `ensemble report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.cli.options import Command, Numbers, home_option

if TYPE_CHECKING:
    from ensemble.campaigns import Campaign
    from ensemble.selection import Budget

# What the text table shows; CSV and Parquet hold every column.
SHORT_COLUMNS = {
    "m:vi": "VI",
    "m:vi_split": "split",
    "m:vi_merge": "merge",
    "m:adapted_rand_error": "ARE",
    "m:f1": "F1",
    "m:node_hours_per_gigavoxel": "node-h/Gvox",
    "m:budget": "budget",
    "m:wall_seconds": "seconds",
}
MOST_RIVALS = 8


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.option("--format", "kind", type=click.Choice(["table", "csv", "parquet"]), default="table", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), help="File to write; needed for parquet.  [default: standard output]"
)
@home_option
def results(campaign_name: str, kind: str, out: Path | None, home: Path) -> None:
    """The results table of CAMPAIGN: one row a trial, and the trivial answers beside them.

    \b
    Examples:
      ensemble results demo
      ensemble results demo --format csv > demo.csv
      ensemble results demo --format parquet --out demo.parquet
    """
    from apps.core.errors import ParameterError
    from apps.core.files import write_atomically
    from ensemble.campaigns import open_campaign
    from ensemble.search.table import campaign_table, table_bytes

    campaign = open_campaign(home, campaign_name)
    if kind == "table":
        print_table(campaign)
        return
    table = campaign_table(campaign)
    if kind == "csv":
        text = table.to_csv(index=False)
        if out is None:
            sys.stdout.write(text)
        else:
            write_atomically(out, text.encode())
        return
    if out is None:
        raise ParameterError("parquet is not for a terminal: name the file with --out")
    write_atomically(out, table_bytes(table))


def print_table(campaign: Campaign) -> None:
    """Print the campaign's trials, best first, then the trivial answers on the same box."""
    from rich.table import Table

    from ensemble.display import output_console
    from ensemble.search.table import campaign_table

    rows = campaign_table(campaign)
    if rows.empty:
        click.echo(f"campaign {campaign.name}: no trials yet")
        return
    parameters = [name for name in rows.columns if name.startswith("p:")]
    shown = {name: label for name, label in SHORT_COLUMNS.items() if name in rows.columns}
    table = Table(title=f"campaign {campaign.name}", title_justify="left")
    for label in ("search", "trial", "status", *(name[2:] for name in parameters), *shown.values()):
        table.add_column(label, justify="right")
    order = rows.sort_values("m:vi", na_position="last") if "m:vi" in rows.columns else rows
    for _, row in order.iterrows():
        status = text(row.get("m:failure")) or row["job_status"]
        table.add_row(*(text(v) for v in (row["search"], row["trial"], status, *row[parameters], *row[list(shown)])))
    data = campaign.data
    for name, scores in (data.trivial_answers if data else {}).items():
        values = [scores.get(column[2:]) for column in shown]
        cells = ("", "", name.replace("_", " "), *("" for _ in parameters), *(text(v) for v in values))
        table.add_row(*cells, style="dim")
    output_console().print(table)


def text(value: object) -> str:
    """A cell: numbers short, nothing for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    from rich.markup import escape

    return escape(str(value))


def selection_options(command: Command) -> Command:
    """What to select by: a metric, a cost, and a bound on it or a volume with its budget."""
    for option in (
        click.option(
            "--metric", default="vi", show_default=True, help="Column of the table to be best in (m: may be left out)."
        ),
        click.option("--maximize", is_flag=True, help="The larger the metric the better.  [default: the smaller]"),
        click.option("--cost", default="node_hours_per_gigavoxel", show_default=True, help="Column that is the cost."),
        click.option("--max-cost", type=click.FloatRange(min=0), help="Bound on the cost.  [default: none]"),
        click.option("--volume-mm3", type=float, help="Volume to be segmented, in mm^3; instead of --max-cost."),
        click.option(
            "--voxel-size", type=Numbers(float), help="Voxel size of that volume in nm.  [default: the campaign's]"
        ),
        click.option("--node-hours", type=float, help="Node-hours that there are for that volume."),
    )[::-1]:
        command = option(command)
    return command


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@selection_options
@click.option("--register", "name", help="Register the selected model under this name.")
@click.option("--alias", default="champion", show_default=True, help="Alias to point at it.")
@home_option
def select(
    campaign_name: str,
    metric: str,
    maximize: bool,
    cost: str,
    max_cost: float | None,
    volume_mm3: float | None,
    voxel_size: tuple[float, float, float] | None,
    node_hours: float | None,
    name: str | None,
    alias: str,
    home: Path,
) -> None:
    """Select the most accurate model of CAMPAIGN whose cost is within a bound, or within a budget for a volume.

    \b
    Examples:
      ensemble select demo --metric vi --max-cost 40
      ensemble select demo --volume-mm3 1 --voxel-size 40,6,6 --node-hours 2e6
      ensemble select demo --metric adapted_rand_error --register demo --alias champion
    """
    from analysis import label
    from ensemble.campaigns import open_campaign
    from ensemble.selection import register_trial, select_trial

    campaign = open_campaign(home, campaign_name)
    budget = _budget(campaign, volume_mm3, voxel_size, node_hours)
    selection = select_trial(campaign, _column(metric), not maximize, _column(cost), max_cost, budget)
    click.echo(selection.reason)
    if selection.pick is not None:
        click.echo(selection.pick.sentence(label(_column(metric))))
        others = [f"{row['trial']} ({row['chance']:.0%})" for _, row in selection.pick.rivals.iterrows()]
        if len(others) > 1:
            more = f" and {len(others) - MOST_RIVALS} more" if len(others) > MOST_RIVALS else ""
            click.echo(f"could be the best: trials {', '.join(others[:MOST_RIVALS])}{more}")
    if name is not None:
        model = register_trial(home, campaign, selection, name=name, alias=alias)
        click.echo(f"registered {model.name}:{model.version} as {model.name}@{alias}")
        click.echo(f"next: ensemble deploy {model.name}@{alias} --site SITE --image VOLUME --out NAME.zarr")


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@selection_options
@click.option("--workers", type=click.IntRange(min=1), help="How many worked at a time.  [default: the most at once]")
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: report.html of the campaign]")
@home_option
def report(
    campaign_name: str,
    metric: str,
    maximize: bool,
    cost: str,
    max_cost: float | None,
    volume_mm3: float | None,
    voxel_size: tuple[float, float, float] | None,
    node_hours: float | None,
    workers: int | None,
    out: Path | None,
    home: Path,
) -> None:
    """Write a page on the searches of CAMPAIGN as they stand: trials, plots, selection, failures, costs.

    \b
    Examples:
      ensemble report demo
      ensemble report demo --volume-mm3 1 --voxel-size 40,6,6 --node-hours 2e6 --out demo.html
    """
    from apps.core.errors import ParameterError
    from ensemble.campaigns import open_campaign
    from ensemble.report import write_search_report
    from ensemble.selection import select_trial

    campaign = open_campaign(home, campaign_name)
    budget = _budget(campaign, volume_mm3, voxel_size, node_hours)
    try:
        selection = select_trial(campaign, _column(metric), not maximize, _column(cost), max_cost, budget)
    except ParameterError as error:
        # A search that has no result yet, or none within the bound, has a report too.
        click.echo(f"nothing is selected: {error}", err=True)
        selection = None
    path = write_search_report(
        campaign, out, _column(metric), not maximize, _column(cost), selection, workers=workers, cost_bound=max_cost
    )
    click.echo(path)


def _budget(
    campaign: Campaign,
    volume_mm3: float | None,
    voxel_size: tuple[float, float, float] | None,
    node_hours: float | None,
) -> Budget | None:
    """The volume and its budget, where they are given."""
    from apps.core.errors import ParameterError
    from ensemble.selection import Budget

    if volume_mm3 is None and node_hours is None and voxel_size is None:
        return None
    if volume_mm3 is None or node_hours is None:
        raise ParameterError("a budget for a volume: give both --volume-mm3 and --node-hours")
    size = voxel_size or (campaign.data.voxel_size_nm if campaign.data else None)
    if size is None:
        raise ParameterError(f"campaign {campaign.name}: its data is not prepared; give --voxel-size Z,Y,X in nm")
    return Budget(volume_mm3, size, node_hours)


def _column(name: str) -> str:
    return name if name.startswith(("m:", "objective")) else f"m:{name}"
