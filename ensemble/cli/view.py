"""`ensemble view`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensemble.cli.options import Numbers, home_option

if TYPE_CHECKING:
    from ensemble.viewing import OpenStores, Stores

VIEW_SUFFIX = ".json"


@click.command()
@click.argument("what", metavar="[CAMPAIGN|FOLDER|VIEW.json]", required=False)
@click.option("--image", metavar="NAME.zarr", help="Grey volume, OME-Zarr or a neuroglancer precomputed folder.")
@click.option("--segmentation", metavar="NAME.zarr", help="Volume of object ids.")
@click.option("--labels", metavar="NAME.zarr", help="A second volume of ids, as the ground truth; hidden at first.")
@click.option("--meshes", metavar="FOLDER", help="The segmentation's meshes, as the stage `meshes` writes them.")
@click.option("--skeletons", metavar="FOLDER", help="Its skeletons, as the stage `skeletons` writes them.")
@click.option("--synapses", metavar="FILE.parquet", help="Synapses, as the stage `synapses` writes them, or CSV.")
@click.option(
    "--offset",
    type=Numbers(int),
    help="First voxel of the segmentation in the image, where it is of a part.  [default: 0,0,0]",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port on this machine.  [default: any free one]")
@click.option("--open", "open_it", is_flag=True, help="Open the link in the browser of this machine.")
@click.option("--state", "state_file", type=click.Path(path_type=Path), help="Write neuroglancer's state there, JSON.")
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    metavar="VIEW.json",
    help="Write there what is shown; `ensemble view VIEW.json` shows it again.",
)
@home_option
def view(
    what: str | None,
    image: str | None,
    segmentation: str | None,
    labels: str | None,
    meshes: str | None,
    skeletons: str | None,
    synapses: str | None,
    offset: tuple[int, int, int] | None,
    port: int | None,
    open_it: bool,
    state_file: Path | None,
    save: Path | None,
    home: Path,
) -> None:
    """Look at a campaign's result, or at the given stores, in neuroglancer, until Ctrl-C.

    The viewer comes from this machine, as the data do: no network is needed, and nothing leaves the machine.  Only who
    has the link can look, from this machine.

    \b
    Examples:
      ensemble view my-campaign                                what its last steps have made
      ensemble view out                                        the same, by the folder of a pipeline's results
      ensemble view my-campaign --labels truth.zarr            ... with a store of one's own beside
      ensemble view --image image.zarr --segmentation result.zarr --meshes meshes --synapses synapses.parquet
    """
    from apps.core.files import write_atomically
    from ensemble.viewing import ViewServer, open_stores

    given = {
        "image": image,
        "segmentation": segmentation,
        "labels": labels,
        "meshes": meshes,
        "skeletons": skeletons,
        "synapses": synapses,
        "offset": offset,
    }
    stores = _stores(what, {name: value for name, value in given.items() if value is not None}, home)
    opened = open_stores(stores)
    with ViewServer(opened, what or Path(str(stores.segmentation or stores.image or stores.labels)).stem, port) as view:
        if save is not None:
            stores.save(save)
        if state_file is not None:
            # The addresses hold the token: the file is for nobody else.
            write_atomically(state_file, json.dumps(view.state(), indent=1).encode(), mode=0o600)
        _say(stores, opened, view.url, view.port)
        if open_it:
            click.launch(view.url)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, and no failure
            view.wait()


def _stores(what: str | None, given: dict[str, object], home: Path) -> Stores:
    """What was found under the name, with what was given in the place of it."""
    from ensemble.viewing import Stores

    if what is None:
        return _absolute(Stores.from_json(given, "options"))
    from ensemble.viewing.stores import VIEW_FILE

    folder = Path(what)
    if folder.is_dir() and (folder / VIEW_FILE).is_file():
        what = str(folder / VIEW_FILE)
    if what.endswith(VIEW_SUFFIX):
        found = Stores.load(what)
    else:
        from ensemble.viewing.campaign import stores_of_campaign

        found = stores_of_campaign(home, what, frozenset(given))
    return _absolute(Stores.from_json({**found.to_dict(), **given}, "options"))


def _absolute(stores: Stores) -> Stores:
    """With places from the root: a saved view is opened from other folders too."""
    values = stores.to_dict()
    return type(stores).from_json({k: str(Path(v).absolute()) if isinstance(v, str) else v for k, v in values.items()})


def _say(stores: Stores, opened: OpenStores, url: str, port: int) -> None:
    import platform

    for name, value in stores.to_dict().items():
        if isinstance(value, str):
            click.echo(f"{name + ':':<14}{value}")
    for name, volume in opened.volumes.items():
        if volume.slow:
            click.echo(
                f"{name} has no coarser levels, so zooming out loads very much: make them with the stage `multiscale` "
                "(docs/multiscale.md)"
            )
    click.echo(url)
    click.echo(f"Ctrl-C ends it.  To look from another machine: ssh -L {port}:127.0.0.1:{port} {platform.node()}")
