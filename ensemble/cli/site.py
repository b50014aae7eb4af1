"""`ensemble site`: make sites on this machine, start and stop their agents."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.cli.options import home_option


@click.group()
def site() -> None:
    """Balsam sites on this machine."""


@site.command()
@home_option
@click.argument("name")
@click.option("--template", default="local", show_default=True, help="Folder in sites/ with settings and job template.")
@click.option("--nodes", default=2, show_default=True, help="Virtual nodes: how many one-node jobs run at a time.")
@click.option("--path", type=click.Path(path_type=Path), help="Folder to make.  [default: sites/NAME in the home]")
@click.option("--agent/--no-agent", default=True, show_default=True, help="Start the site's agent as well.")
def create(home: Path, name: str, template: str, nodes: int, path: Path | None, agent: bool) -> None:
    """Make the site NAME (the same again is no error), register the stages' applications there, start its agent."""
    from ensemble import service
    from ensemble.sites import create_site, register_stages, start_agent

    made = create_site(home, name, template=template, nodes=nodes, path=path)
    service.connect(home)
    register_stages(made)
    if agent:
        start_agent(made)
    click.echo(f"site {made.name} (id {made.id}, {made.nodes} nodes) in {made.path}")


@site.command()
@home_option
@click.argument("name")
def start(home: Path, name: str) -> None:
    """Start the agent of the site NAME; does nothing where it runs."""
    from ensemble.sites import open_site, start_agent

    click.echo("started" if start_agent(open_site(home, name)) else "already running")


@site.command()
@home_option
@click.argument("name")
def stop(home: Path, name: str) -> None:
    """Stop the launchers and the agent of the site NAME; running jobs can be restarted later."""
    from ensemble.service import Phase, status
    from ensemble.sites import open_site, stop_agent, stop_launchers
    from ensemble.sites.processes import end_all

    found = open_site(home, name)
    if status(home).phase is Phase.RUNNING:
        # The service learns at once which jobs were cut off.
        launchers, agent = stop_launchers(found), stop_agent(found)
        ended = launchers or agent
    else:
        ended = end_all(found.path)
    click.echo("stopped" if ended else "was not running")


@site.command()
@home_option
def ls(home: Path) -> None:
    """List the sites of this home."""
    from ensemble.sites import agent_running, list_sites

    rows = [("name", "id", "nodes", "agent", "folder")]
    for found in list_sites(home):
        agent = "running" if agent_running(found) else "stopped"
        rows.append((found.name, str(found.id), str(found.nodes), agent, str(found.path)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]))
