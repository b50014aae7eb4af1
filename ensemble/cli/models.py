"""`ensemble models list|show`."""

from __future__ import annotations

from pathlib import Path

import click

from ensemble.cli.options import home_option


@click.group()
def models() -> None:
    """The model registry."""


@models.command("list")
@home_option
def list_models(home: Path) -> None:
    """Every model: versions, aliases, where it came from."""
    from ensemble.models import aliases, list_names, versions

    names = list_names(home)
    if not names:
        click.echo(f"no models in {home}; register one: ensemble select CAMPAIGN --register NAME")
    for name in names:
        pointing = aliases(home, name)
        for model in versions(home, name):
            marks = " ".join(f"@{alias}" for alias, version in pointing.items() if version == model.version)
            vi = model.row.get("m:vi")
            accuracy = f"VI {vi:.3f}" if isinstance(vi, float) else ""
            click.echo(f"{name}:{model.version}  {marks:<12} {accuracy}  campaign {model.campaign}")


@models.command()
@click.argument("reference", metavar="MODEL")
@home_option
def show(reference: str, home: Path) -> None:
    """One model in full (NAME, NAME:VERSION or NAME@ALIAS), as JSON."""
    import json

    from ensemble.models import checkpoint_of, find_model

    model = find_model(home, reference)
    click.echo(json.dumps({**model.to_dict(), "checkpoint": str(checkpoint_of(home, model))}, indent=2))
