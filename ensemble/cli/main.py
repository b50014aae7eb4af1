"""The `ensemble` command: groups and commands are loaded only when they are called, so that `--help` answers at once.

This is the edge where errors become messages and exit codes: 2 for the user's errors (nothing half-made is left), 1 for
errors of the program, 130 for an interrupt.  `--debug` shows the traceback.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from types import FrameType
from typing import Any

import click

from apps.core.errors import EXIT_CODE_OF_INTERRUPT, EnsembleError

# Name -> (where it is, the line `ensemble --help` shows).  To add a command: write it, add the line.
COMMANDS = {
    "quickstart": (
        "ensemble.cli.quickstart:quickstart",
        "The whole loop in one command: search, select, deploy, report.",
    ),
    "run": (
        "ensemble.cli.run:run",
        "A pipeline of stages as Balsam jobs: tiles to a masked volume, a volume to a connectome.",
    ),
    "gate": ("ensemble.cli.gate:gate", "Sections that a pipeline's gates hold: list, accept, revoke."),
    "service": ("ensemble.cli.service:service", "The embedded Balsam service: start, stop, status, env, logs."),
    "site": ("ensemble.cli.site:site", "Balsam sites: create, start, stop, ls."),
    "search": ("ensemble.cli.search:search", "Searches: run, watch and resize them, simulate one on virtual nodes."),
    "results": ("ensemble.cli.results:results", "A campaign's results table, as text, CSV or Parquet."),
    "select": ("ensemble.cli.results:select", "Select a model by accuracy under a cost bound, and register it."),
    "report": (
        "ensemble.cli.results:report",
        "A page on a campaign's searches as they stand: trials, plots, failures, costs.",
    ),
    "models": ("ensemble.cli.models:models", "The model registry: list, show, add a network from elsewhere."),
    "view": ("ensemble.cli.view:view", "Look at a campaign's result, or at any stores, in neuroglancer."),
    "deploy": ("ensemble.cli.deploy:deploy", "Segment a volume with a registered model, in overlapping subvolumes."),
    "explain": ("ensemble.cli.explain:explain", "Why an object is one: every merge in it, with its evidence."),
}


class LazyGroup(click.Group):
    """A group whose commands are named in COMMANDS and imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="ensemble", prog_name="ensemble")
def ensemble(debug: bool) -> None:
    """Searches and ensembles of flood-filling networks for brain mapping, run as Balsam campaigns.

    \b
    Examples:
      ensemble quickstart                       everything, on a generated volume, in minutes
      ensemble run pipelines/phantom.yml        tiles to sections to an aligned, masked volume
      ensemble run pipelines/connectome.yml     a volume to objects, synapses, wiring graph, meshes and skeletons
      ensemble service start                    the embedded Balsam service alone
      eval "$(ensemble service env)"            ... so that the stock `balsam` command works against it
      ensemble site create laptop --nodes 2     a site on this machine
      ensemble search run searches/ffn_quick.py --campaign demo --site laptop --workers 2 --trials 8
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with the command's code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    # `--debug` is taken anywhere on the line: it is added when a command has just failed.
    arguments = ["--debug", *(a for a in arguments if a != "--debug")] if debug else arguments
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(_run(arguments, debug))


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A terminated command cleans up as an interrupted one does.
    raise KeyboardInterrupt


def _run(arguments: list[str], debug: bool) -> Any:
    try:
        return ensemble.main(args=arguments, prog_name="ensemble", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted; run the same command again to continue", err=True)
        return EXIT_CODE_OF_INTERRUPT
    except EnsembleError as error:
        if debug:
            traceback.print_exc()
        click.echo(f"ensemble: {error}", err=True)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        click.echo(
            f"ensemble: {type(error).__name__}: {error} (an error of the program; --debug shows where)", err=True
        )
        return 1


if __name__ == "__main__":
    main()
