"""The report of a pipeline: what every step gave, and where the whole stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.core.errors import DataError
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.display import Display
from ensemble.jobs import Task
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.run import RunReport, run_pipeline
from ensemble.viewing.stores import Stores
from tests.ensemble.pipeline.in_process import StageJobs


def run(folder: Path, jobs: StageJobs, **steps: Any) -> RunReport:
    tissue = {"stage": "phantom", "parameters": {"shape": [24, 32, 40], "seed": 1}}
    evaluation = {
        "stage": "evaluation",
        "parameters": {"segmentation": "${tissue.labels}", "labels": "${tissue.labels}", "baselines": True},
    }
    pipeline = Pipeline.from_json({"name": "chain", "steps": {"tissue": tissue, "evaluation": evaluation, **steps}})
    campaign = create_campaign(folder / "home", CampaignPlan(name="chain"), folder / "out")
    with Display() as display:
        return run_pipeline(pipeline, campaign, jobs, display)


def test_the_report_names_what_every_step_gave_and_where_it_lies(tmp_path: Path) -> None:
    report = run(tmp_path, StageJobs())
    assert report.written.page is None and report.written.table is None  # no step works by sections
    page = report.written.report.read_text()
    assert "All 2 steps are done." in page
    assert "objects in the volume" in page or "labelled_fraction" in page
    assert "scores.vi" in page and "the segmentation" in page.lower()
    assert str(tmp_path / "out" / "tissue" / "image.zarr") in page
    assert "everything one object" in page and "nothing segmented" in page  # the trivial answers stand beside it
    view = tmp_path / "out" / "view.json"
    assert f"ensemble view {view}" in page
    stores = Stores.load(view)
    assert stores.image == str(tmp_path / "out" / "tissue" / "image.zarr") and stores.segmentation is None


def test_a_step_that_failed_is_named_and_gives_nothing(tmp_path: Path) -> None:
    def fail(task: Task) -> None:
        if task.stage == "evaluation":
            raise DataError("labels.zarr: is not there")

    report = run(tmp_path, StageJobs(before=fail))
    page = report.written.report.read_text()
    assert "1 of 2 steps are done; not done: evaluation." in page
    assert "scores.vi" not in page and "nothing on this page tells errors" in page
    assert report.failures and "labels.zarr: is not there" in report.failures[0]
