"""`ensemble results` and `ensemble select`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.cli.options import home_option

if TYPE_CHECKING:
    from ensemble.campaigns import Campaign

# What the text table shows; CSV and Parquet hold every column.
SHORT_COLUMNS = {
    "m:vi": "VI",
    "m:vi_split": "split",
    "m:vi_merge": "merge",
    "m:adapted_rand_error": "ARE",
    "m:f1": "F1",
    "m:node_hours_per_gigavoxel": "node-h/Gvox",
    "m:wall_seconds": "seconds",
}


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
    from rich.console import Console
    from rich.table import Table

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
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def text(value: object) -> str:
    """A cell: numbers short, nothing for what is missing."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    from rich.markup import escape

    return escape(str(value))


@click.command()
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.option(
    "--metric", default="vi", show_default=True, help="Column of the table to be best in (m: may be left out)."
)
@click.option("--maximize", is_flag=True, help="The larger the metric the better.  [default: the smaller]")
@click.option("--cost", default="node_hours_per_gigavoxel", show_default=True, help="Column that is the cost.")
@click.option("--max-cost", type=click.FloatRange(min=0), help="Bound on the cost.  [default: none]")
@click.option("--register", "name", help="Register the selected model under this name.")
@click.option("--alias", default="champion", show_default=True, help="Alias to point at it.")
@home_option
def select(
    campaign_name: str,
    metric: str,
    maximize: bool,
    cost: str,
    max_cost: float | None,
    name: str | None,
    alias: str,
    home: Path,
) -> None:
    """Select the most accurate model of CAMPAIGN whose cost is within a bound.

    \b
    Examples:
      ensemble select demo --metric vi --max-cost 40
      ensemble select demo --metric adapted_rand_error --register demo --alias champion
    """
    from ensemble.campaigns import open_campaign
    from ensemble.selection import register_trial, select_trial

    campaign = open_campaign(home, campaign_name)
    selection = select_trial(campaign, _column(metric), not maximize, _column(cost), max_cost)
    click.echo(selection.reason)
    if name is not None:
        model = register_trial(home, campaign, selection, name=name, alias=alias)
        click.echo(f"registered {model.name}:{model.version} as {model.name}@{alias}")
        click.echo(f"next: ensemble deploy {model.name}@{alias} --site SITE --image VOLUME --out NAME.zarr")


def _column(name: str) -> str:
    return name if name.startswith(("m:", "objective")) else f"m:{name}"
