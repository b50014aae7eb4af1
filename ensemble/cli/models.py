"""`ensemble models list|show|add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.core.boxes import Triple
from ensemble.cli.options import Numbers, home_option

if TYPE_CHECKING:
    from apps.ffn.settings import InferenceSettings


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
        click.echo(
            f"no models in {home}; register one: ensemble select CAMPAIGN --register NAME, or ensemble models add"
        )
    for name in names:
        pointing = aliases(home, name)
        for model in versions(home, name):
            marks = " ".join(f"@{alias}" for alias, version in pointing.items() if version == model.version)
            vi = model.row.get("m:vi")
            accuracy = f"VI {vi:.3f}" if isinstance(vi, float) else ""
            origin = f"campaign {model.campaign}" if model.campaign else model.reason
            click.echo(f"{name}:{model.version}  {marks:<12} {accuracy}  {origin}")


@models.command()
@click.argument("reference", metavar="MODEL")
@home_option
def show(reference: str, home: Path) -> None:
    """One model in full (NAME, NAME:VERSION or NAME@ALIAS), as JSON."""
    import json

    from ensemble.models import checkpoint_of, find_model

    model = find_model(home, reference)
    click.echo(json.dumps({**model.to_dict(), "checkpoint": str(checkpoint_of(home, model))}, indent=2))


@models.command()
@click.argument("name", metavar="NAME")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option(
    "--voxel-size",
    "voxel_size_nm",
    type=Numbers(float),
    help="Voxel size in nm that it was trained at; images of another are then refused.  [default: as the checkpoint "
    "says, which may be nothing]",
)
@click.option("--image-mean", type=float, help="Grey value that is 0 to it.  [default: the checkpoint's]")
@click.option("--image-std", type=float, help="Grey values that are 1 to it.  [default: the checkpoint's]")
@click.option("--fov", type=Numbers(int), help="Field of view in voxels.  [default: the checkpoint's; google/ffn: 33]")
@click.option("--deltas", type=Numbers(int), help="Its step in voxels.  [default: the checkpoint's; google/ffn: 8]")
@click.option(
    "--inference",
    "settings",
    metavar="FILE|JSON",
    help="Settings to segment with, a JSON file or JSON itself.  [default: those that google/ffn published]",
)
@click.option(
    "--alias", "aliases", multiple=True, default=("champion",), show_default=True, help="To point at it; several times."
)
@home_option
def add(
    name: str,
    checkpoint: str,
    voxel_size_nm: tuple[float, float, float] | None,
    image_mean: float | None,
    image_std: float | None,
    fov: Triple | None,
    deltas: Triple | None,
    settings: str | None,
    aliases: tuple[str, ...],
    home: Path,
) -> None:
    """Register a network from elsewhere as the next version of NAME, for `ensemble deploy`.

    CHECKPOINT is a checkpoint folder of this project, or the prefix of one that google/ffn wrote (its path without
    .index).  The latter says nothing of the image's mean and standard deviation: give both.  Depth and features are in
    its tensors.

    \b
    Examples:
      ensemble models add mine training/checkpoint --voxel-size 40,6,6
      ensemble models add fib25 google_ffn_checkpoint/model.ckpt-27465036 --voxel-size 10,10,10 \\
          --image-mean 128 --image-std 33
      ensemble models add fib25 model.ckpt-27465036 --voxel-size 10,10,10 --image-mean 128 --image-std 33 \\
          --fov 33,33,33 --deltas 8,8,8 --inference '{"mode": "fast", "min_size": 500}' --alias fast
    """
    from ensemble.model_import import add_model
    from ensemble.models import check_names

    check_names(name, aliases)  # before the settings are looked at, and TensorFlow is started
    model = add_model(
        home,
        name,
        checkpoint,
        voxel_size_nm=voxel_size_nm,
        normalisation=(image_mean, image_std),
        fov=fov,
        deltas=deltas,
        inference=None if settings is None else _inference_settings(settings),
        pointing=aliases,
    )
    marks = ", ".join(f"{name}@{alias}" for alias in aliases)
    click.echo(f"registered {name}:{model.version} as {marks}")
    if model.voxel_size_nm is None:
        click.echo("note: nothing says which voxel size it was trained at: images of any are taken (--voxel-size)")
    click.echo(f"next: ensemble deploy {name}:{model.version} --site SITE --image VOLUME --out NAME.zarr")


def _inference_settings(text: str) -> InferenceSettings:
    """Of a JSON file, or of JSON itself."""
    from apps.ffn.settings import InferenceSettings

    if text.lstrip().startswith("{"):
        return InferenceSettings.from_json(text, where="--inference")
    return InferenceSettings.load(text)
