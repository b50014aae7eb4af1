"""`ensemble quickstart`."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble.cli.options import Numbers, home_option, workers_option

if TYPE_CHECKING:
    from ensemble.campaigns import Campaign
    from ensemble.quickstart import Finished

SITE = "quickstart"
WALL_TIME_MIN = 240
# Virtual nodes that the quickstart's site may have: an upper bound on --workers.
SITE_NODES = 256


@click.command()
@click.option("--data", "image", help="Image volume: FILE.h5:DATASET or NAME.zarr.  [default: a generated phantom]")
@click.option("--labels", help="Ground truth of the image: FILE.h5:DATASET or NAME.zarr.")
@click.option(
    "--voxel-size", "voxel_size_nm", type=Numbers(float), help="Voxel size in nm, for HDF5.  [default: 10,10,10]"
)
@click.option("--trials", type=click.IntRange(min=1), default=8, show_default=True, help="Trials of the search.")
@workers_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ensemble-quickstart"),
    show_default=True,
    help="Folder for everything that is made.",
)
@click.option(
    "--search", "search_file", type=click.Path(path_type=Path), help="Search file.  [default: searches/ffn_quick.py]"
)
@click.option("--init", help="Checkpoint (ours, or a google/ffn prefix) that trials may start from.")
@click.option("--max-cost", type=click.FloatRange(min=0), help="Node-hours per gigavoxel a model may cost.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of everything random.")
@click.option("--resume", is_flag=True, help="Continue the run in --out with what it was given.")
@click.option("--keep-service", is_flag=True, help="Leave the Balsam service running at the end.")
@home_option
def quickstart(
    trials: int,
    workers: int,
    out: Path,
    search_file: Path | None,
    max_cost: float | None,
    resume: bool,
    keep_service: bool,
    home: Path,
    **plan: Any,
) -> None:
    """Search, select, register, deploy and score FFN models on one volume, as Balsam jobs, and write a report.

    At most ten minutes on two cores with the defaults.  Interrupted, the same command continues: what is finished is
    not done again.

    \b
    Examples:
      ensemble quickstart
      ensemble quickstart --trials 16 --workers 4 --out try2
      ensemble quickstart --data em.h5:raw --labels em.h5:labels --voxel-size 8,8,8 --out mine
      ensemble quickstart --data em.h5:raw --labels em.h5:labels --init model.ckpt-27465036 --out tuned
    """
    started = time.time()
    from apps.core.errors import StateError
    from ensemble.campaigns import PLAN_FILE, CampaignPlan, create_campaign, plan_campaign
    from ensemble.display import Display
    from ensemble.preparation import Geometry, check_inputs, divide, geometry_for
    from ensemble.search.definition import load_search
    from ensemble.session import open_session
    from ensemble.sites import open_site

    if resume and not (out / PLAN_FILE).is_file():
        raise StateError(f"{out}: holds no quickstart to continue; leave --resume out to start one")
    if plan["image"] is not None and plan["voxel_size_nm"] is None and ".zarr" not in plan["image"]:
        plan["voxel_size_nm"] = (10.0, 10.0, 10.0)
    stored = CampaignPlan.load(out / PLAN_FILE) if resume else None
    file = Path(stored.settings["search"]) if stored else search_file or default_search_file()
    loading = ThreadPoolExecutor(1).submit(load_search, file)
    if search_file is not None:
        loading.result()  # says what is wrong with it before anything is made; ours loads while the service starts
    wanted = stored or plan_campaign(_name(out), settings={"search": str(file.absolute())}, **plan)
    divide(check_inputs(wanted), geometry_for(Geometry(), wanted.init))
    campaign = create_campaign(home, wanted, out)
    with (
        Display() as display,
        open_session(
            home,
            campaign,
            SITE,
            workers,
            WALL_TIME_MIN,
            create_with_nodes=SITE_NODES,
            keep_service=keep_service,
            tell=display.waiting,
        ) as jobs,
    ):
        display.say(f"campaign {campaign.name} in {campaign.folder}; Balsam state in {home}")
        from ensemble.quickstart import QuickstartOptions, run_quickstart

        options = QuickstartOptions(loading.result, trials, workers, max_cost)
        finished = run_quickstart(home, campaign, jobs, open_site(home, SITE), options, display, started)
    _conclude(home, campaign, finished, keep_service)


def default_search_file() -> Path:
    """The shipped small search; found, not imported: what is in searches/ is the user's to edit."""
    from importlib.util import find_spec

    spec = find_spec("searches")
    assert spec is not None and spec.origin is not None  # it is installed with us
    return Path(spec.origin).parent / "ffn_quick.py"


def _name(out: Path) -> str:
    """Campaign name of an output folder: its name and a few digits of its place, so that no two folders share one."""
    from apps.core.parameters import json_hash

    folder = out.absolute()
    stem = "".join(c if c.isalnum() or c in "._-" else "-" for c in folder.name).strip("._-") or "quickstart"
    return f"{stem[:48]}-{json_hash(str(folder))[:4]}"


def _conclude(home: Path, campaign: Campaign, finished: Finished, keep_service: bool) -> None:
    """The short table and the paths."""
    from rich.table import Table

    from ensemble.cli.results import print_table
    from ensemble.display import output_console

    print_table(campaign)
    evaluation = finished.records["evaluation"]["result"]
    table = Table(
        title=f"deployed {finished.model.name}:{finished.model.version} on the test box", title_justify="left"
    )
    for label in ("", "VI", "split", "merge", "adapted Rand error", "filled"):
        table.add_column(label, justify="left" if not label else "right")
    for name, scores in {"model": evaluation["scores"], **evaluation["baselines"]}.items():
        keys = ("vi", "vi_split", "vi_merge", "adapted_rand_error", "filled_fraction")
        table.add_row(name.replace("_", " "), *(f"{scores[key]:.3f}" for key in keys))
    output_console().print(table)
    paths = {
        "report": finished.report,
        "results table": campaign.table,
        "model": home / "models" / finished.model.name / str(finished.model.version),
        "segmentation": finished.deployment.output,
    }
    for what, path in paths.items():
        click.echo(f"{what + ':':<15}{path}")
    start = "" if keep_service else f"ensemble service start --home {home}; "
    environment = f'eval "$(ensemble service env --home {home})"'
    click.echo(f"look at the jobs: {start}{environment}; balsam job ls --tag campaign={campaign.name}")
