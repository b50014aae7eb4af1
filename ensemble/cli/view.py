"""`ensemble view`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from ensemble.cli.options import Numbers, home_option

if TYPE_CHECKING:
    from ensemble.viewing import OpenStores, Stores, ViewServer

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
    from ensemble.viewing import ViewServer, disagreements, open_stores

    given = {
        "image": image,
        "segmentation": segmentation,
        "labels": labels,
        "meshes": meshes,
        "skeletons": skeletons,
        "synapses": synapses,
        "offset": offset,
    }
    stores, remarks = _stores(what, {name: value for name, value in given.items() if value is not None}, home)
    for name, value in stores.to_dict().items():
        if isinstance(value, str):
            click.echo(f"{name + ':':<14}{value}")
    opened = open_stores(stores)
    for remark in (*remarks, *disagreements(opened)):
        click.echo(f"note: {remark}", err=True)
    with ViewServer(opened, what or Path(str(stores.segmentation or stores.image or stores.labels)).stem, port) as view:
        if save is not None:
            stores.save(save)
        if state_file is not None:
            # The addresses hold the token: the file is for nobody else.
            write_atomically(state_file, json.dumps(view.state(), indent=1).encode(), mode=0o600)
        _say(opened, view)
        if open_it:
            click.launch(view.url)
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it, and no failure
            view.wait()


def _stores(what: str | None, given: dict[str, object], home: Path) -> tuple[Stores, tuple[str, ...]]:
    """What was found under the name, with what was given in the place of it; and what is to be said of that."""
    from ensemble.viewing import Stores
    from ensemble.viewing.stores import REPORT_FILE, VIEW_FILE

    if what is None:
        return _absolute(Stores.from_json(given, "options")), ()
    folder, remarks = Path(what), tuple[str, ...]()
    if folder.is_dir() and (folder / VIEW_FILE).is_file():
        what = str(folder / VIEW_FILE)
    if what.endswith(VIEW_SUFFIX):
        saved = Stores.load(what).to_dict()
        beside = Path(what).with_name(REPORT_FILE)
        if saved["report"] is None and beside.is_file():  # of a pipeline before views named it
            saved["report"] = str(beside)
        found, remarks = _fitting(saved, given)
    else:
        from ensemble.viewing.campaign import stores_of_campaign

        what = _campaign_name(home, what)
        named = {name: str(Path(v).absolute()) if isinstance(v, str) else v for name, v in given.items()}
        choice = stores_of_campaign(home, what, named)
        found, remarks = choice.stores, choice.remarks
    return _absolute(Stores.from_json({**found, **given}, "options")), remarks


def _fitting(saved: dict[str, object], given: dict[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    """A saved view without what is of a segmentation that another one takes the place of.

    Synapses stay: they are of the image, and it is said where their ends are of another segmentation.
    """
    from ensemble.viewing.agreement import made_of, one_store

    segmentation = given.get("segmentation")
    if segmentation is None or one_store(segmentation, saved.get("segmentation")):
        return saved, ()
    dropped = [
        name
        for name in ("meshes", "skeletons")
        if name not in given and (folder := saved.get(name)) and not one_store(made_of(Path(str(folder))), segmentation)
    ]
    of_other = "of the saved view are not shown: they are of its own segmentation"
    kept = {name: value for name, value in saved.items() if name not in (*dropped, "offset")}
    remarks = [f"{' and '.join(dropped)} {of_other}"] if dropped else []
    offset = [int(n) for n in cast("list[int]", saved.get("offset") or ())]
    if any(offset) and "offset" not in given:
        remarks.append(
            f"the offset of the saved view, {','.join(map(str, offset))}, is not taken: it is of its own segmentation; "
            "where the other one begins there too, give --offset"
        )
    return kept, tuple(remarks)


def _campaign_name(home: Path, what: str) -> str:
    """The campaign that is meant by a name or a folder.  Raises StateError for a place that is no campaign's."""
    from apps.core.errors import StateError
    from ensemble.campaigns import PLAN_FILE, CampaignPlan, list_campaigns, open_campaign

    place = Path(what)
    if (place / PLAN_FILE).is_file():
        name = CampaignPlan.load(place / PLAN_FILE).name
        known = open_campaign(home, name).folder
        if known != place.resolve():  # of another home, or copied: what is known here is not of this folder
            raise StateError(
                f"{what}: is not the folder of the campaign {name} of {home}, which is {known}; give that one, or "
                "--home with which it was made"
            )
        return name
    if what in list_campaigns(home) or not ("/" in what or place.exists()):
        return what
    if not place.exists():
        raise StateError(f"{what}: no such folder; give a pipeline's folder, a campaign's name, or a VIEW.json")
    if (place / "zarr.json").is_file() or (place / "info").is_file() or place.is_file():
        raise StateError(f"{what}: is a store; say what it is, for example: ensemble view --image {what}")
    raise StateError(
        f"{what}: holds no results to look at; expected the folder of a pipeline (--out of `ensemble run`), a "
        "campaign's name, or a VIEW.json"
    )


def _absolute(stores: Stores) -> Stores:
    """With places from the root: a saved view is opened from other folders too."""
    values = stores.to_dict()
    return type(stores).from_json({k: str(Path(v).absolute()) if isinstance(v, str) else v for k, v in values.items()})


def _say(opened: OpenStores, view: ViewServer) -> None:
    import platform

    for name, volume in opened.volumes.items():
        if volume.slow:
            click.echo(
                f"{name} has no coarser levels, so zooming out loads very much: make them with the stage `multiscale` "
                "(docs/multiscale.md)"
            )
    if view.report_url is not None:
        click.echo(f"how it was made: {view.report_url}")
    click.echo(view.url)
    click.echo(
        f"Ctrl-C ends it.  To look from another machine: ssh -L {view.port}:127.0.0.1:{view.port} {platform.node()}"
    )
