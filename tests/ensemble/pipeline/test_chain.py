"""The report of a pipeline: what every step gave, and where the whole stands."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from apps.core.errors import DataError
from apps.core.volumes import write_volume
from apps.synapses.stage import SynapseResult
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.display import Display
from ensemble.jobs import Task
from ensemble.pipeline.chain import _described, _picture
from ensemble.pipeline.definition import Pipeline
from ensemble.pipeline.run import RunReport, job_name, run_pipeline
from ensemble.viewing.lineage import Record
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
    assert stores.report == str(report.written.report)


def test_the_command_of_the_viewer_holds_where_the_folder_has_a_space(tmp_path: Path) -> None:
    page = run(tmp_path / "my data", StageJobs()).written.report.read_text()
    assert f"ensemble view '{tmp_path / 'my data' / 'out' / 'view.json'}'" in html.unescape(page)


def test_a_step_that_failed_is_named_and_gives_nothing(tmp_path: Path) -> None:
    def fail(task: Task) -> None:
        if task.stage == "evaluation":
            raise DataError("labels.zarr: is not there")

    report = run(tmp_path, StageJobs(before=fail))
    page = report.written.report.read_text()
    assert "1 of 2 steps are done; not done: evaluation." in page
    assert "scores.vi" not in page and "nothing on this page tells errors" in page
    assert report.failures and "labels.zarr: is not there" in report.failures[0]


def test_a_running_job_is_called_by_its_step() -> None:
    assert job_name("inference/phase-0-0001-7e97fed93983") == "inference phase-0-0001"
    assert job_name("ffn/run-bf14f6a1b23b") == "ffn run"


def test_figures_by_name_are_told_too() -> None:
    given = {"action": "train", "validation": {"cleft": 0.61, "vesicle": None}}
    figures = {figure.name: figure.value for figure in _described(SynapseResult, given)}
    assert figures["validation.cleft"] == 0.61 and "validation.vesicle" not in figures


def test_every_picture_is_of_the_segmentations_own_image(tmp_path: Path) -> None:
    """Two blocks: records as their jobs leave them; the later block's image is of the same shape."""
    records = list[Record]()
    for number, block in enumerate("ab"):
        image, labels, base = (str(tmp_path / f"{what}-{block}.zarr") for what in ("image", "labels", "base"))
        for place, data in (
            (image, np.full((4, 8, 8), 50 + number, np.uint8)),
            (labels, np.ones((4, 8, 8), np.uint32)),
        ):
            write_volume(place, data, (8.0, 8.0, 8.0))
        write_volume(base, np.full((2, 4, 4), 7, np.uint64), (8.0, 8.0, 8.0))
        grid = {"box": {"offset": [1, 2, 2], "shape": [2, 4, 4]}}
        for stage, parameters, result in (
            ("phantom", {}, {"image": image, "labels": labels}),
            ("inference", {"image": image, "output": f"/pieces-{block}"}, {}),
            ("reconciliation", {"pieces": f"/pieces-{block}", "grid": grid}, {"segmentation": base}),
        ):
            cost = {"end": float(len(records))}
            records.append(Record.of(parameters, {"stage": stage, "result": result, "cost": cost}))
    for number, block in enumerate("ab"):
        picture = _picture(f"base-{block}", str(tmp_path / f"base-{block}.zarr"), records)
        assert np.all(picture.image == 50 + number) and picture.image.shape == (4, 4)
        assert picture.title == f"base-{block}, z = 2" and picture.truth is not None
