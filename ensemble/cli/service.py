"""`ensemble service`: start, stop and look at the embedded Balsam service."""

from __future__ import annotations

import shlex
from collections import deque
from pathlib import Path

import click

from apps.core.errors import ParameterError, StateError
from ensemble.cli.options import home_option

COMPONENTS = ("postgres", "server")


@click.group()
def service() -> None:
    """The embedded Balsam service: PostgreSQL and the Balsam server, on this machine only."""


@service.command()
@home_option
def start(home: Path) -> None:
    """Start the service; does nothing where it runs."""
    from ensemble.service import start

    info = start(home)
    click.echo(f"{'started' if info.started else 'already running'}: {info.api_root}, state in {home}")


@service.command()
@home_option
def stop(home: Path) -> None:
    """Stop launchers, agents and the service; running jobs can be restarted later."""
    from ensemble.service import stop
    from ensemble.session import forget_started

    click.echo("stopped" if stop(home) else "was not running")
    forget_started(home)


@service.command()
@home_option
def status(home: Path) -> None:
    """Show what runs.  The exit code is 0 where the service runs, 1 otherwise."""
    from ensemble.service import Phase, status
    from ensemble.sites import agent_running, list_sites

    found = status(home)
    click.echo(f"{found.phase.value}: {found.api_root or 'no server'}, state in {found.home}")
    click.echo(f"  postgres   {_pid(found.postgres_pid)}")
    click.echo(f"  server     {_pid(found.server_pid)}")
    for site in list_sites(home):
        click.echo(f"  site {site.name}: agent {'running' if agent_running(site) else 'not running'}, {site.path}")
    if found.phase is not Phase.RUNNING:
        raise click.exceptions.Exit(1)


@service.command()
@home_option
def env(home: Path) -> None:
    """Print the exports under which the stock `balsam` command uses this service: eval "$(ensemble service env)"."""
    from ensemble.service import environment

    for name, value in environment(home).items():
        click.echo(f"export {name}={shlex.quote(value)}")


@service.command()
@home_option
@click.option("--component", type=click.Choice(COMPONENTS), help="Only this one's log.")
@click.option("--lines", default=40, show_default=True, help="How many lines of each log.")
def logs(home: Path, component: str | None, lines: int) -> None:
    """Print the ends of the service's logs."""
    from ensemble.service.state import Home

    if lines < 1:
        raise ParameterError(f"--lines {lines}: expected at least 1")
    files = [Home(home).log(name) for name in COMPONENTS if component in (None, name)]
    if not any(file.exists() for file in files):
        raise StateError(f"{home}: there are no logs; `ensemble service start` makes a service")
    for file in files:
        click.echo(f"==> {file}")
        if file.exists():
            with file.open(errors="replace") as stream:
                click.echo("".join(deque(stream, maxlen=lines)), nl=False)


def _pid(pid: int | None) -> str:
    return f"pid {pid}" if pid else "not running"
