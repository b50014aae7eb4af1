"""`ensemble run`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.cli.options import home_option, workers_option

if TYPE_CHECKING:
    from ensemble.pipeline.definition import Pipeline
    from ensemble.pipeline.engine import Look
    from ensemble.pipeline.planners.contract import Outlook
    from ensemble.pipeline.run import RunReport

# Exit code of a run that did all it could, and left sections that a gate holds.
HELD = 4
MOST_NAMED = 12


@click.command()
@click.argument("file", metavar="PIPELINE", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for everything that is made.  [default: the pipeline's name]"
)
@click.option(
    "--site", "site_name", help="Balsam site where the jobs run.  [default: one on this machine, made where missing]"
)
@workers_option
@click.option(
    "--wall-time",
    "wall_time_min",
    type=click.IntRange(min=3),
    default=240,
    show_default=True,
    help="Minutes that the launcher's allocation lasts.",
)
@click.option(
    "--follow",
    "follow_s",
    type=click.FloatRange(min=0.5),
    metavar="SECONDS",
    help="Go on, and look for new sections in the tile table so often, until interrupted.",
)
@click.option(
    "--dry-run", is_flag=True, help="Check the pipeline, say which jobs a run from nothing has, and do nothing."
)
@click.option("--keep-service", is_flag=True, help="Leave the Balsam service running at the end.")
@home_option
def run(
    file: Path,
    out: Path | None,
    site_name: str | None,
    workers: int,
    wall_time_min: int,
    follow_s: float | None,
    dry_run: bool,
    keep_service: bool,
    home: Path,
) -> None:
    """Do the steps of PIPELINE (YAML, or Python that defines `pipeline`) as Balsam jobs, with their dependencies.

    What is done is not done again: run it again after an interrupt, after sections have been added to the tile table,
    or after `ensemble gate accept`, and only what is missing is done.  At the end there is a report on what every step
    gave and cost, and a page on the quality of every section at every step.

    \b
    Exit codes: 0 all is done; 4 all but sections that gates hold; 1 a job failed; 2 wrong parameters or data; 130
    interrupted, as --follow always ends.

    \b
    Examples:
      ensemble run pipelines/phantom.yml                     tiles to masked volume, on generated tissue
      ensemble run pipelines/connectome.yml                  volume to connectome, on generated tissue
      ensemble run own_volume.yml --dry-run                  a copy of pipelines/own_volume.yml, of a volume of yours
      ensemble run mine.yml --site laptop --workers 8 --out block-7
      ensemble run mine.yml --follow 10                      while the microscope works
      ensemble run mine.yml --dry-run
    """
    from ensemble.pipeline.definition import load_pipeline

    pipeline, _ = load_pipeline(file, home)
    folder = (out or Path(pipeline.name)).absolute()
    if dry_run:
        _say_plan(pipeline, folder, workers)
        return
    from ensemble.campaigns import CampaignPlan, create_campaign
    from ensemble.cli.quickstart import SITE, SITE_NODES
    from ensemble.display import Display
    from ensemble.pipeline.run import run_pipeline
    from ensemble.session import check_site, open_session

    _check(pipeline, folder, workers, follow_s is not None)
    if site_name is not None:
        check_site(home, site_name, workers)
    campaign = create_campaign(home, CampaignPlan(name=pipeline.name), folder)
    with (
        Display() as display,
        open_session(
            home,
            campaign,
            site_name or SITE,
            workers,
            wall_time_min,
            create_with_nodes=None if site_name else SITE_NODES,
            keep_service=keep_service,
            tell=display.waiting,
        ) as jobs,
    ):
        display.say(f"campaign {campaign.name} in {campaign.folder}; Balsam state in {home}")
        report = run_pipeline(pipeline, campaign, jobs, display, follow_s)
    _conclude(pipeline, report)


def _check(pipeline: Pipeline, folder: Path, workers: int, follow: bool) -> tuple[Look, dict[str, Outlook]]:
    """The pipeline as it stands with nothing done; raises ParameterError where a step cannot work, before any job.

    Where sections are waited for the table may be missing still.
    """
    from apps.core.errors import ParameterError
    from ensemble.pipeline.engine import Engine
    from ensemble.pipeline.inputs import wrong_inputs
    from ensemble.pipeline.no_jobs import NoJobs
    from ensemble.pipeline.run import broken_steps

    wrong = wrong_inputs(pipeline)
    for name, step in pipeline.steps.items():
        if step.num_nodes > workers:
            wrong.append(f"step {name}: num_nodes = {step.num_nodes}, and the run has {workers}; give --workers")
    engine = Engine(pipeline, folder, NoJobs(), follow)
    look = engine.look()
    if not follow:
        wrong += broken_steps(look)
    if wrong:
        raise ParameterError("; ".join(wrong))
    return look, engine.outlooks(look)


def _say_plan(pipeline: Pipeline, folder: Path, workers: int) -> None:
    from rich.table import Table

    from ensemble.display import output_console
    from ensemble.pipeline.registered import registered_models

    _, outlooks = _check(pipeline, folder, workers, follow=False)
    table = Table(title=f"pipeline {pipeline.name}", title_justify="left")
    for label in ("step", "stage", "jobs", "which", "after"):
        table.add_column(label, justify="right" if label == "jobs" else "left", overflow="fold")
    for name, outlook in outlooks.items():
        jobs = "?" if outlook.jobs is None else str(outlook.jobs)
        table.add_row(name, pipeline.steps[name].stage, jobs, outlook.words, ", ".join(pipeline.needs(name)))
    output_console().print(table)
    for name, model in registered_models(pipeline):
        click.echo(f"{name}: model {model}, {pipeline.steps[name].parameters['model']}")
    known = [outlook.jobs for outlook in outlooks.values() if outlook.jobs is not None]
    unknown = len(outlooks) - len(known)
    more = f", and those of {unknown} steps (?) that are known once the steps before them are done" if unknown else ""
    click.echo(
        f"nothing was done: a run from nothing has {sum(known)} jobs{more}; what is done already is not done again.  A "
        "step begins when those under `after` are done, or goes along with them where both work by sections.  Results: "
        f"{folder}"
    )


def _conclude(pipeline: Pipeline, report: RunReport) -> None:
    """The short table, the paths, and the exit code."""
    from ensemble.workflow import TaskFailedError, TaskRejectedError

    _print_steps(pipeline, report.look)
    for name, sections in report.held.items():
        numbers = ",".join(map(str, sections)) if len(sections) <= MOST_NAMED else ""
        click.echo(f"{name}: {len(sections)} held: look at the page, then either mend and run again, or let them pass:")
        click.echo(f"  ensemble gate accept {pipeline.name} {name} {f'--sections {numbers}' if numbers else '--all'}")
    click.echo(f"report:  {report.written.report}")
    if report.written.page is not None:
        click.echo(f"quality: {report.written.page}")
        click.echo(f"table:   {report.written.table}")
    for name, plan in report.look.plans.items():
        for what in ("aligned", "masks"):
            if plan.settled and plan.sections and what in plan.values:
                click.echo(f"{what + ':':<9}{plan.values[what]}")
        if plan.settled and plan.values.get("errors"):
            click.echo(_true_errors(plan.values))
        if plan.waiting and not plan.settled:
            click.echo(f"{name}: not done, {plan.waiting}")
    if report.failures:
        more = f"; and {len(report.failures) - 1} more, named above" if len(report.failures) > 1 else ""
        error = TaskRejectedError if report.users_fault else TaskFailedError
        raise error(f"{report.failures[0]}{more}")
    unsettled = [name for name, plan in report.look.plans.items() if not plan.settled]
    waiting = [name for name in report.held if pipeline.steps[name].on_held == "wait"]
    if unsettled and not waiting:
        raise TaskFailedError(f"steps {', '.join(unsettled)}: are not done, as said above; run the same command again")
    if report.held:
        raise SystemExit(HELD)


def _true_errors(audit: Mapping[str, Any]) -> str:
    """What the audit of a phantom found, in a line."""
    found = [f"{each['stage']} {each['rms']:.2g} {each['unit']}" for each in audit["stages"] if each["rms"] is not None]
    dice = [f"{name} {value:.2f}" for name, value in audit["dice"].items() if value is not None]
    return f"truth:   {', '.join(found)}" + (f"; Dice {', '.join(dice)}" if dice else "")


def _print_steps(pipeline: Pipeline, look: Look) -> None:
    from rich.table import Table

    from ensemble.display import output_console

    by_sections = any(plan.sections for plan in look.plans.values())
    table = Table(title=f"pipeline {pipeline.name}", title_justify="left")
    for label in ("step", "stage", "jobs", "done", "failed", *(("sections", "held") if by_sections else ()), ""):
        table.add_column(label, justify="left" if label in ("step", "stage", "") else "right", overflow="fold")
    for name, plan in look.plans.items():
        counts = [
            f"{len(plan.tasks)}{'+' if plan.open_ended else ''}",
            str(look.done(name)),
            str(len(look.failed(name))),
        ]
        if by_sections:
            counts += [str(len(plan.sections)), str(len(plan.held))] if plan.sections else ["", ""]
        table.add_row(name, pipeline.steps[name].stage, *counts, plan.waiting)
    output_console().print(table)
