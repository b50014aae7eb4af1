"""`ensemble deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.core.boxes import Box, Triple
from apps.core.errors import ParameterError
from ensemble.cli.options import BoxType, MaskType, Numbers, home_option, wall_time_option, workers_option

if TYPE_CHECKING:
    from apps.ffn.masks import MaskParameters


@click.command()
@click.argument("reference", metavar="MODEL", required=False)
@click.option("--image", help="Volume to segment: NAME.zarr or FILE.h5:DATASET.")
@click.option("--out", "output", type=click.Path(path_type=Path), help="OME-Zarr volume to write, NAME.zarr.")
@click.option("--box", type=BoxType(), help="Part to segment, in voxels.  [default: all]")
@click.option(
    "--subvolume", type=Numbers(int), help="What a subvolume writes.  [default: from memory, walltime and workers]"
)
@click.option("--overlap", type=Numbers(int), help="Overlap of subvolumes.  [default: field of view and two steps]")
@click.option(
    "--per-job",
    "subvolumes_per_job",
    type=click.IntRange(min=1),
    help="Subvolumes that one job segments; on a GPU they share its batches.  [default: some minutes' worth]",
)
@click.option(
    "--per-node",
    "jobs_per_node",
    type=click.IntRange(min=1),
    help="Jobs on one node.  [default: as in the last run, 1 in the first]",
)
@click.option(
    "--reconciliation-jobs", type=click.IntRange(min=1), help="Jobs that share reconciliation.  [default: as it needs]"
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of one job.")
@click.option(
    "--mask",
    "masks",
    type=MaskType(),
    multiple=True,
    help="Where no object may be: a volume on the image's grid, and which of its values say so (all but 0 if none are "
    "given); may be given several times.",
)
@click.option(
    "--min-overlap-voxels",
    type=click.IntRange(min=1),
    help="Voxels in common from which on two objects are one.  [default: as in the last run, 100 in the first]",
)
@click.option(
    "--min-overlap-fraction",
    type=click.FloatRange(0, 1),
    help="Share of the larger of them in the overlap.  [default: as in the last run, 0.3 in the first]",
)
@click.option(
    "--mutual-maximum/--any-maximum",
    default=None,
    help="Whether only each other's largest overlaps are linked.  [default: as in the last run, --mutual-maximum in "
    "the first]",
)
@click.option(
    "--cut",
    metavar="TABLE",
    help="CSV or Parquet with columns a and b: links that are not to be used; none: use all again.  "
    "[default: as in the last run]",
)
@click.option(
    "--forbidden",
    metavar="TABLE",
    help="The same form: supervoxels that must not be in one object.  [default: as in the last run]",
)
@click.option("--labels", help="Ground truth: score the result against it.")
@click.option(
    "--voxel-size", "voxel_size_nm", type=Numbers(float), help="Voxel size in nm, for volumes that do not say."
)
@click.option("--any-voxel-size", is_flag=True, help="Segment an image of other voxels than the model was trained at.")
@click.option(
    "--speed", type=float, help="Voxels a second of one process, for the prediction.  [default: as the model's trial]"
)
@click.option(
    "--node-memory",
    type=float,
    metavar="GIB",
    help="Memory of a node.  [default: as in the last run, or this machine's]",
)
@click.option("--budget", type=float, metavar="NODE-HOURS", help="Refuse where more is predicted than this.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its predicted cost, and start nothing.")
@click.option(
    "--verify", type=click.Path(path_type=Path), metavar="OUT", help="Check a finished OUT box by box, and do no more."
)
@click.option("--campaign", "campaign_name", help="Campaign that the jobs belong to.  [default: deploy-MODEL]")
@click.option("--site", "site_name", help="The Balsam site where the jobs run.")
@workers_option
@wall_time_option
@home_option
def deploy(
    reference: str | None,
    image: str | None,
    output: Path | None,
    box: Box | None,
    subvolume: Triple | None,
    overlap: Triple | None,
    subvolumes_per_job: int | None,
    jobs_per_node: int | None,
    reconciliation_jobs: int | None,
    threads: int,
    min_overlap_voxels: int | None,
    min_overlap_fraction: float | None,
    mutual_maximum: bool | None,
    cut: str | None,
    forbidden: str | None,
    masks: tuple[MaskParameters, ...],
    labels: str | None,
    voxel_size_nm: tuple[float, float, float] | None,
    any_voxel_size: bool,
    speed: float | None,
    node_memory: float | None,
    budget: float | None,
    dry_run: bool,
    verify: Path | None,
    campaign_name: str | None,
    site_name: str | None,
    workers: int,
    wall_time_min: int,
    home: Path,
) -> None:
    """Segment a volume with MODEL (NAME, NAME:VERSION or NAME@ALIAS) in overlapping subvolumes, as Balsam jobs.

    The same command again continues an interrupted deployment.  With another rule for links, or another table of links
    to cut, it puts the objects together anew and segments nothing again.

    \b
    Examples:
      ensemble deploy demo@champion --image em.zarr --out segmentation.zarr --dry-run
      ensemble deploy demo@champion --site laptop --image em.zarr --out segmentation.zarr --budget 2
      ensemble deploy demo:2 --site laptop --image em.h5:raw --labels em.h5:labels --voxel-size 10,10,10 \\
          --box 0:96,0:128,0:128 --subvolume 64,64,64 --out part.zarr
      ensemble deploy demo --site laptop --image em.zarr --mask masks.zarr=1,2,3 --out segmentation.zarr
      ensemble deploy demo@champion --site laptop --image em.zarr --out segmentation.zarr --cut cut.csv
      ensemble deploy --verify segmentation.zarr
    """
    from ensemble.deployment import LinkChoices, Resources, deployment_of, plan_deployment
    from ensemble.deployment.table import plan_table, what_changes
    from ensemble.models import find_model

    if verify is not None:
        _verify(verify)
        return
    needed = {"MODEL": reference, "--image": image, "--out": output}
    if not dry_run:
        needed["--site"] = site_name
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise click.UsageError(f"{', '.join(missing)}: missing; ensemble deploy --help shows examples")
    assert reference is not None and image is not None and output is not None
    model = find_model(home, reference)
    deployment = deployment_of(
        home,
        model,
        image=image,
        output=output,
        box=box,
        subvolume=subvolume,
        overlap=overlap,
        masks=masks,
        labels=labels,
        voxel_size_nm=voxel_size_nm,
        any_voxel_size=any_voxel_size,
        speed=speed,
        threads=threads,
        links=LinkChoices(min_overlap_voxels, min_overlap_fraction, mutual_maximum, cut, forbidden),
    )
    resources = Resources(
        nodes=workers,
        jobs_per_node=jobs_per_node,
        node_memory=_bytes(node_memory),
        wall_time_min=wall_time_min,
        subvolumes_per_job=subvolumes_per_job,
        reconciliation_jobs=reconciliation_jobs,
        budget=budget,
    )
    plan = plan_deployment(deployment, resources)  # says what does not fit before anything is started
    click.echo(plan_table(plan, resources))
    for line in what_changes(plan, resources):
        click.echo(line)
    if dry_run:
        return
    assert site_name is not None

    from ensemble.campaigns import CampaignPlan, create_campaign, list_campaigns, open_campaign
    from ensemble.deployment import kept_out, run_plan
    from ensemble.deployment.table import cost_table, seam_text
    from ensemble.display import Display
    from ensemble.session import check_site, open_session

    check_site(home, site_name, workers)
    name = campaign_name or f"deploy-{model.name}"
    known = name in list_campaigns(home)
    campaign = open_campaign(home, name) if known else create_campaign(home, CampaignPlan(name=name))
    with (
        Display() as display,
        open_session(home, campaign, site_name, workers, wall_time_min, tell=display.waiting) as jobs,
    ):
        records = run_plan(plan, deployment, jobs, display, resources)
    merged = records.by_step["reconciliation"]["result"]
    click.echo(f"segmentation: {merged['segmentation']} ({merged['objects']} objects)")
    click.echo(f"complete: all {len(plan.grid)} subvolumes, checksums in {merged['manifest']}")
    click.echo(f"seams: {seam_text(merged['seams'])}")
    if masks:
        click.echo(f"masks: {kept_out(records.by_step['inference'])}")
    click.echo(cost_table(plan, records.measured()))
    if "evaluation" in records.by_step:
        result = records.by_step["evaluation"]["result"]
        for name, scores in {"model": result["scores"], **result["baselines"]}.items():
            click.echo(
                f"  {name.replace('_', ' '):<12} VI {scores['vi']:.3f} = split {scores['vi_split']:.3f} + merge "
                f"{scores['vi_merge']:.3f}, adapted Rand error {scores['adapted_rand_error']:.3f}"
            )


def _bytes(gib: float | None) -> int:
    """Memory of a node in bytes; 0 where nobody says.  Raises ParameterError where that is no size."""
    if gib is None:
        return 0
    if not 0 < gib <= 2**30:  # NaN is not
        raise ParameterError(f"node memory {gib:g}: expected GiB, a positive number up to 2^30")
    return max(1, int(gib * 2**30))


def _verify(output: Path) -> None:
    from ensemble.deployment import verify_deployment
    from ensemble.display import Display

    with Display() as display, display.phase("verify") as update:

        def report(done: float, total: float, what: str = "") -> None:
            tenth = int(10 * done / total) if total else 10
            update(10 * tenth, 100, f"{10 * tenth} %")

        result = verify_deployment(output, report)
    click.echo(f"{output}: complete, every write box as in {result['manifest']}")
