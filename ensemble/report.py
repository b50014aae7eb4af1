"""Reports of a campaign: gathers what the analysis package shows on its page."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pandas as pd

import analysis
from analysis.tables import TRIVIAL_NAMES
from apps.core.errors import DataError, ParameterError
from apps.core.stage import code_version
from apps.core.volumes import open_volume
from ensemble.campaigns import Campaign, CampaignData
from ensemble.deployment import Deployment
from ensemble.models import Model
from ensemble.search.table import write_table
from ensemble.selection import Selection, no_trials, plain

REPORT_FILE = "report.html"
SLICES = (0.25, 0.5, 0.75)
OBJECTIVES = ("objective", "objective_0")


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
    content = analysis.ReportContent(
        title=f"campaign {campaign.name}",
        headline=_deployment_headline(trials, model, scores, trivial),
        trials=trials,
        selected=_selected_row(trials, selection),
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
            **_provenance(campaign),
            "test box": data.test_box,
            "model checksum": model.checksum[:16],
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


def write_search_report(
    campaign: Campaign,
    path: Path | None = None,
    metric: str = analysis.ACCURACY,
    minimize: bool = True,
    cost: str = analysis.COST,
    selection: Selection | None = None,
    workers: int | None = None,
    cost_bound: float | None = None,
) -> Path:
    """Write a page on the campaign's searches as they stand, finished or not; returns its path.

    path: by default `report.html` in the campaign's folder.  metric: for searches of another kind, that have no VI, the
        (first) objective takes its place.
    Raises StateError where the campaign has no trials, ParameterError where the metric is no column of the table,
    DataError where the page cannot be written.
    """
    trials = analysis.load_results(write_table(campaign))
    if trials.empty:
        raise no_trials(campaign)
    if metric == analysis.ACCURACY and (metric not in trials or trials[metric].isna().all()):
        metric, minimize = next((name for name in OBJECTIVES if name in trials), OBJECTIVES[0]), False
    if metric not in trials:
        raise ParameterError(f"campaign {campaign.name}: {metric!r} is not a column of its table (`ensemble results`)")
    data = campaign.data
    content = analysis.ReportContent(
        title=f"campaign {campaign.name}",
        headline=_search_headline(trials, metric, minimize),
        trials=trials,
        selected=None if selection is None else _selected_row(trials, selection),
        reason="" if selection is None else selection.reason,
        metric=metric,
        minimize=minimize,
        cost=cost,
        cost_bound=selection.pick.cost_bound if selection and selection.pick else cost_bound,
        pick=selection.pick if selection else None,
        trivial=data.trivial_answers if data and metric == analysis.ACCURACY else {},
        workers=workers,
        honest=_honest(campaign, trials),
        provenance=_provenance(campaign),
        commands=(
            (f"ensemble results {campaign.name}", "the trials, in the terminal"),
            (f"ensemble select {campaign.name} --register NAME", "select a model and register it"),
            (f"balsam job ls --tag campaign={campaign.name}", "its Balsam jobs (after `ensemble service env`)"),
        ),
    )
    target = path or campaign.folder / REPORT_FILE
    try:
        return analysis.write_report(target, content)
    except analysis.AnalysisError as error:
        raise DataError(str(error)) from error


def _selected_row(trials: pd.DataFrame, selection: Selection) -> pd.Series:
    wanted = (trials["search"] == selection.row["search"]) & (trials["trial"] == selection.row["trial"])
    return trials[wanted].iloc[0]


def _deployment_headline(trials: pd.DataFrame, model: Model, scores: dict[str, float], trivial: dict[str, Any]) -> str:
    best = min(trivial, key=lambda name: trivial[name]["vi"])
    return (
        f"{_evaluated(trials)} FFN variants were trained and scored; {model.name}:{model.version} segments the "
        f"held-out test box at VI {scores['vi']:.2f} bits, where the best trivial answer ({TRIVIAL_NAMES[best]}) has "
        f"{trivial[best]['vi']:.2f}."
    )


def _search_headline(trials: pd.DataFrame, metric: str, minimize: bool) -> str:
    names = ", ".join(sorted(trials["search"].unique()))
    which = f"search {names}" if trials["search"].nunique() == 1 else f"searches {names}"
    try:
        best = analysis.select(trials, metric, minimize)
    except analysis.AnalysisError:
        return f"{which[0].upper()}{which[1:]}: no trial has finished yet."
    return (
        f"{_evaluated(trials)} variants were evaluated in {which}; the best {analysis.label(metric)} is "
        f"{best[metric]:.4g}, of trial {best['trial']}."
    )


def _evaluated(trials: pd.DataFrame) -> int:
    return int(trials["job_status"].isin(("DONE", "STOPPED")).sum())


def _provenance(campaign: Campaign) -> dict[str, Any]:
    data = campaign.data
    found: dict[str, Any] = {
        "code version": code_version(),
        "data": campaign.plan.image or "generated phantom",
        "seed": campaign.plan.seed,
        "host": platform.node(),
        "results table": campaign.table,
    }
    if data is not None:
        found |= {
            "data hash": data.data_hash,
            "training box": data.training_box,
            "validation box": data.validation_box,
        }
    return found


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
        ("search", len(trials), float(trials["m:node_seconds"].sum())),
        ("inference", len(records["inference"]), seconds(records["inference"])),
        ("reconciliation", 1, seconds([records["reconciliation"]])),
        ("evaluation", 1, seconds([records["evaluation"]])),
    ]
    return pd.DataFrame(rows, columns=["stage", "jobs", "node-seconds"])


def _honest(campaign: Campaign, trials: pd.DataFrame) -> tuple[str, ...]:
    said = []
    known = trials["m:wall_seconds"].dropna() if "m:wall_seconds" in trials else pd.Series(dtype=float)
    if len(known):
        said.append(
            f"Half of the trials, training and scoring, took less than {known.median():.0f} seconds.  Short trials "
            "rank variants only roughly: a longer training can turn the order round."
        )
    budget = plain(trials["m:budget"].max()) if "m:budget" in trials else None
    if budget is not None:
        said.append(
            f"Trials that were stopped early have the values of their own budget, not of the full one ({budget:,.0f})."
        )
    if campaign.plan.image is None:
        said.append("The volume is a generated phantom; its figures say nothing about real EM.")
    else:
        said.append(
            "One validation box decides; another box of the same volume would order close trials differently.  Real EM "
            "needs hours of training, not minutes: docs/longer-runs.md has the commands of a longer run, and what they "
            "gave."
        )
    return tuple(said)
