"""The report of a campaign: gathers what the analysis package shows on its page."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis.tables import TRIVIAL_NAMES
from apps.core.stage import code_version
from apps.core.volumes import open_volume
from ensemble.campaigns import Campaign, CampaignData
from ensemble.deployment import Deployment
from ensemble.models import Model
from ensemble.selection import Selection

REPORT_FILE = "report.html"
SLICES = (0.25, 0.5, 0.75)


def write_campaign_report(
    campaign: Campaign,
    data: CampaignData,
    selection: Selection,
    model: Model,
    deployment: Deployment,
    records: dict[str, Any],
    overhead: dict[str, float],
    cost: tuple[str, float | None],
) -> Path:
    """Write `report.html` into the campaign's folder; returns its path.

    `records`: of the deployment, by stage.  `overhead`: see quickstart.measure_overhead.  `cost`: column and bound.
    """
    trials = analysis.load_results(campaign.table)
    evaluation = records["evaluation"]["result"]
    scores, trivial = evaluation["scores"], evaluation["baselines"]
    wanted = (trials["search"] == selection.row["search"]) & (trials["trial"] == selection.row["trial"])
    selected = trials[wanted].iloc[0]
    title = f"campaign {campaign.name}"
    content = analysis.ReportContent(
        title=title,
        headline=_headline(trials, model, scores, trivial),
        trials=trials,
        selected=selected,
        reason=selection.reason,
        cost=cost[0],
        cost_bound=cost[1],
        trivial=data.trivial_answers,
        deployment=analysis.AccuracyTable(
            answers={f"model {model.name}:{model.version}": scores}, trivial=trivial, box=str(data.test_box)
        ),
        pictures=_pictures(data, deployment),
        costs=_costs(trials, records),
        workers=int(overhead["workers"]),
        honest=_honest(campaign, trials),
        provenance={
            "code version": code_version(),
            "data": campaign.plan.image or "generated phantom",
            "data hash": data.data_hash,
            "seed": campaign.plan.seed,
            "training box": data.training_box,
            "validation box": data.validation_box,
            "test box": data.test_box,
            "model checksum": model.checksum[:16],
            "host": platform.node(),
            "results table": campaign.table,
            "segmentation": deployment.output,
            "wall time of the command (s)": round(overhead["wall_seconds"]),
            "overhead beside the stages' compute time": f"{100 * overhead['overhead_fraction']:.0f} %",
        },
        commands=(
            (f"ensemble results {campaign.name}", "the trials, in the terminal"),
            (f"ensemble models show {model.name}@champion", "the selected model in full"),
            (f"balsam job ls --tag campaign={campaign.name}", "its Balsam jobs (after `ensemble service env`)"),
        ),
    )
    return analysis.write_report(campaign.folder / REPORT_FILE, content)


def _headline(trials: pd.DataFrame, model: Model, scores: dict[str, float], trivial: dict[str, Any]) -> str:
    best = min(trivial, key=lambda name: trivial[name]["vi"])
    done = int((trials["job_status"] == "DONE").sum())
    return (
        f"{done} FFN variants were trained and scored; {model.name}:{model.version} segments the held-out test "
        f"box at VI {scores['vi']:.2f} bits, where the best trivial answer ({TRIVIAL_NAMES[best]}) has "
        f"{trivial[best]['vi']:.2f}."
    )


def _pictures(data: CampaignData, deployment: Deployment) -> tuple[analysis.Picture, ...]:
    image, labels = open_volume(data.image).read(data.test_box), open_volume(data.labels).read(data.test_box)
    segmentation = open_volume(str(deployment.output)).read()
    pictures = []
    for fraction in SLICES:
        z = int(fraction * image.shape[0])
        title = f"test box, z = {data.test_box.offset[0] + z}"
        pictures.append(analysis.Picture(title, image[z], labels[z], segmentation[z]))
    return tuple(pictures)


def _costs(trials: pd.DataFrame, records: dict[str, Any]) -> pd.DataFrame:
    def seconds(stage_records: list[dict[str, Any]]) -> float:
        return sum(record["cost"]["end"] - record["cost"]["start"] for record in stage_records)

    rows = [
        ("search", len(trials), float(trials["m:wall_seconds"].sum())),
        ("inference", len(records["inference"]), seconds(records["inference"])),
        ("reconciliation", 1, seconds([records["reconciliation"]])),
        ("evaluation", 1, seconds([records["evaluation"]])),
    ]
    return pd.DataFrame(rows, columns=["stage", "jobs", "node-seconds"])


def _honest(campaign: Campaign, trials: pd.DataFrame) -> tuple[str, ...]:
    seconds = float(trials["m:wall_seconds"].median())
    short = (
        f"A trial, training and scoring, took about {seconds:.0f} seconds on one core.  That ranks variants only "
        "roughly: a longer training can turn the order round."
    )
    if campaign.plan.image is None:
        return short, "The volume is a generated phantom; its figures say nothing about real EM."
    return (
        short,
        "Real EM needs hours, not minutes: on two cores a small network reaches little more than the trivial answers "
        "in this time.  docs/longer-runs.md has the commands of a longer run, and what they gave.",
    )
