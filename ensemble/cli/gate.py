"""`ensemble gate`: what gates hold, and letting it pass."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.cli.options import Sections, home_option

if TYPE_CHECKING:
    import pandas as pd

    from ensemble.campaigns import Campaign
    from ensemble.pipeline.gates import Acceptance, Miss

sections_option = click.option(
    "--sections", type=Sections(), help="Their numbers: 7,9-12.  [default: with --all, all that are held]"
)


@click.group()
def gate() -> None:
    """Sections that a pipeline's gates hold back: list them, accept them, take that back.

    A gate holds a section whose measures are under its threshold.  Later steps go on without it (or wait, with
    `on_held: wait`) until it is accepted, or mended and made again.

    \b
    Examples:
      ensemble gate ls block-7
      ensemble gate accept block-7 montage --sections 12,40-42 --reason "resin at the edge, looked at"
      ensemble run block-7.yml                  goes on with what was accepted
    """


@gate.command("ls")
@click.argument("campaign_name", metavar="CAMPAIGN")
@home_option
def ls(campaign_name: str, home: Path) -> None:
    """Sections that are held, and those that were accepted, with what they miss."""
    from rich.table import Table

    from ensemble.display import output_console
    from ensemble.pipeline.gates import judge, load_acceptances

    campaign, table = _open(home, campaign_name)
    known = load_acceptances(campaign.folder)
    shown = Table()
    for label in ("step", "section", "state", "why", "accepted by"):
        shown.add_column(label, justify="right" if label == "section" else "left")
    for step in dict.fromkeys(table["step"]):
        for section, missed in _missed(table, step).items():
            acceptance = known.of(step, section)
            state = judge(missed, acceptance)
            by = _who(acceptance) if acceptance is not None and state == "accepted" else ""
            shown.add_row(step, str(section), state, "; ".join(map(str, missed)), by)
    if not shown.row_count:
        click.echo(f"campaign {campaign.name}: no gate holds a section")
        return
    output_console().print(shown)


def _who(acceptance: Acceptance) -> str:
    """Who, when and why, in a line."""
    when = time.strftime("%F", time.localtime(acceptance.when))
    return f"{acceptance.who}, {when}" + (f": {acceptance.reason}" if acceptance.reason else "")


@gate.command("accept")
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.argument("step")
@sections_option
@click.option("--all", "every", is_flag=True, help="All sections that the step's gate holds.")
@click.option("--reason", default="", help="Why they are good enough; it is kept with your name and the time.")
@home_option
def accept(
    campaign_name: str, step: str, sections: tuple[int, ...] | None, every: bool, reason: str, home: Path
) -> None:
    """Let sections pass the gate of STEP as they are now; were they made again, and worse, they would be held again."""
    from apps.core.errors import ParameterError
    from ensemble.pipeline import gates

    if (sections is None) == (not every):
        raise ParameterError("which sections: give either --sections 7,9-12 or --all")
    campaign, table = _open(home, campaign_name)
    known = gates.load_acceptances(campaign.folder)
    missed = _missed(table, step)
    held = {n: misses for n, misses in missed.items() if gates.judge(misses, known.of(step, n)) == "held"}
    strange = [number for number in sections or () if number not in held]
    if strange:
        others = ", ".join(map(str, held)) or "none"
        raise ParameterError(f"step {step}, sections {strange}: its gate does not hold them; it holds {others}")
    chosen = {number: held[number] for number in (held if sections is None else sections)}
    if not chosen:
        click.echo(f"step {step}: its gate holds nothing")
        return
    gates.accept(campaign.folder, step, chosen, reason)
    click.echo(
        f"accepted {len(chosen)} of step {step}; run the pipeline again to go on with them, unless it runs just now"
    )


@gate.command("revoke")
@click.argument("campaign_name", metavar="CAMPAIGN")
@click.argument("step")
@sections_option
@home_option
def revoke(campaign_name: str, step: str, sections: tuple[int, ...] | None, home: Path) -> None:
    """Take acceptances back: the gate holds the sections again."""
    from apps.core.errors import ParameterError
    from ensemble.campaigns import open_campaign
    from ensemble.pipeline import gates

    if sections is None:
        raise ParameterError("which sections: give --sections 7,9-12")
    gates.revoke(open_campaign(home, campaign_name).folder, step, sections)
    click.echo(f"revoked {len(sections)} of step {step}; run the pipeline again")


def _open(home: Path, name: str) -> tuple[Campaign, pd.DataFrame]:
    from analysis import AnalysisError
    from analysis.quality import load_quality_table
    from apps.core.errors import StateError
    from ensemble.campaigns import open_campaign
    from ensemble.pipeline.quality_table import TABLE_FILE

    campaign = open_campaign(home, name)
    try:
        return campaign, load_quality_table(campaign.folder / TABLE_FILE)
    except AnalysisError as error:
        raise StateError(f"campaign {name}: {error}; `ensemble run` writes it for a pipeline with gates") from error


def _missed(table: pd.DataFrame, step: str) -> dict[int, list[Miss]]:
    """Section -> what it misses, of the sections that miss something at the gate of the step.

    Raises ParameterError where the table has no such step.
    """
    from apps.core.errors import ParameterError
    from ensemble.pipeline.gates import Miss

    steps = list(dict.fromkeys(table["step"]))
    if step not in steps:
        raise ParameterError(f"step {step!r}: no such step; the table has {', '.join(steps)}")
    rows = table[(table["step"] == step) & table["state"].isin(("held", "accepted"))]
    missed: dict[int, list[Miss]] = {}
    for _, row in rows[rows["passed"].map(lambda passed: passed is False)].iterrows():
        miss = Miss(row["measure"], float(row["value"]), float(row["threshold"]), row["better"], row["unit"])
        missed.setdefault(int(row["section"]), []).append(miss)
    return missed
