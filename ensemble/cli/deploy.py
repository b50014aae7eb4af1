"""`ensemble deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.core.boxes import Box, Triple
from ensemble.cli.options import BoxType, MaskType, Numbers, home_option, site_option, wall_time_option, workers_option

if TYPE_CHECKING:
    from apps.ffn.masks import MaskParameters


@click.command()
@click.argument("reference", metavar="MODEL")
@click.option("--image", required=True, help="Volume to segment: NAME.zarr or FILE.h5:DATASET.")
@click.option(
    "--out", "output", required=True, type=click.Path(path_type=Path), help="OME-Zarr volume to write, NAME.zarr."
)
@click.option("--box", type=BoxType(), help="Part to segment, in voxels.  [default: all]")
@click.option("--subvolume", type=Numbers(int), default="64,64,64", show_default=True, help="Shape of a subvolume.")
@click.option("--overlap", type=Numbers(int), default="24,24,24", show_default=True, help="Overlap of subvolumes.")
@click.option(
    "--per-job",
    "subvolumes_per_job",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Subvolumes that one job segments; on a GPU they share its batches: give dozens.",
)
@click.option(
    "--mask",
    "masks",
    type=MaskType(),
    multiple=True,
    help="Where no object may be: a volume on the image's grid, and which of its values say so (all but 0 if none are "
    "given); may be given several times.",
)
@click.option("--labels", help="Ground truth: score the result against it.")
@click.option(
    "--voxel-size", "voxel_size_nm", type=Numbers(float), help="Voxel size in nm, for volumes that do not say."
)
@click.option("--campaign", "campaign_name", help="Campaign that the jobs belong to.  [default: deploy-MODEL]")
@site_option
@workers_option
@wall_time_option
@home_option
def deploy(
    reference: str,
    image: str,
    output: Path,
    box: Box | None,
    subvolume: Triple,
    overlap: Triple,
    subvolumes_per_job: int,
    masks: tuple[MaskParameters, ...],
    labels: str | None,
    voxel_size_nm: tuple[float, float, float] | None,
    campaign_name: str | None,
    site_name: str,
    workers: int,
    wall_time_min: int,
    home: Path,
) -> None:
    """Segment a volume with MODEL (NAME, NAME:VERSION or NAME@ALIAS) in overlapping subvolumes, as Balsam jobs.

    The same command again continues an interrupted deployment.

    \b
    Examples:
      ensemble deploy demo@champion --site laptop --image em.zarr --out segmentation.zarr
      ensemble deploy demo:2 --site laptop --image em.h5:raw --labels em.h5:labels --voxel-size 10,10,10 \\
          --box 0:96,0:128,0:128 --subvolume 64,64,64 --out part.zarr
      ensemble deploy demo --site laptop --image em.zarr --mask masks.zarr=1,2,3 --out segmentation.zarr
    """
    from ensemble.campaigns import CampaignPlan, create_campaign, list_campaigns, open_campaign
    from ensemble.deployment import deployment_of, kept_out, plan_deployment, run_deployment
    from ensemble.display import Display
    from ensemble.models import find_model
    from ensemble.session import check_site, open_session

    model = find_model(home, reference)
    deployment = deployment_of(
        home,
        model,
        image=image,
        output=output,
        box=box,
        subvolume=subvolume,
        overlap=overlap,
        subvolumes_per_job=subvolumes_per_job,
        masks=masks,
        labels=labels,
        voxel_size_nm=voxel_size_nm,
    )
    plan_deployment(deployment)  # says what does not fit before anything is started
    check_site(home, site_name, workers)
    name = campaign_name or f"deploy-{model.name}"
    known = name in list_campaigns(home)
    campaign = open_campaign(home, name) if known else create_campaign(home, CampaignPlan(name=name))
    with open_session(home, campaign, site_name, workers, wall_time_min) as jobs, Display() as display:
        records = run_deployment(deployment, jobs, display)
    merged = records["reconciliation"]["result"]
    click.echo(f"segmentation: {merged['segmentation']} ({merged['objects']} objects)")
    if masks:
        click.echo(f"masks: {kept_out(records['inference'])}")
    if "evaluation" in records:
        result = records["evaluation"]["result"]
        for name, scores in {"model": result["scores"], **result["baselines"]}.items():
            click.echo(
                f"  {name.replace('_', ' '):<12} VI {scores['vi']:.3f} = split {scores['vi_split']:.3f} + merge "
                f"{scores['vi_merge']:.3f}, adapted Rand error {scores['adapted_rand_error']:.3f}"
            )
