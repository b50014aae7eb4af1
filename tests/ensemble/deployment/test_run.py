"""Whole deployments with the real stages, all but the network."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apps.core.errors import DataError, EnsembleError, FailureKind, StateError
from apps.core.files import lock
from apps.core.progress import silent
from apps.core.subvolumes import piece_path
from apps.core.volumes import open_volume, open_volume_to_write
from apps.inference import stage as inference_stage
from apps.reconciliation.settings import IN_THE_MAKING
from ensemble.deployment import Deployment, Resources, kept_out, plan_deployment, run_deployment, verify_deployment
from ensemble.deployment.pieces import PiecesOnDisk
from ensemble.deployment.plan import keep_plan
from ensemble.deployment.records import Records
from ensemble.deployment.run import prove_complete
from ensemble.deployment.table import cost_table
from ensemble.display import Display
from ensemble.jobs import CampaignJobs
from tests.ensemble.deployment.samples import (
    VOXEL_NM,
    ThreadJobs,
    sample_deployment,
    segment_by_threshold,
    segmenting_keys,
)

RESOURCES = Resources(nodes=2, node_memory=8 << 30, subvolumes_per_job=3, reconciliation_jobs=2)


def deploy(deployment: Deployment, jobs: ThreadJobs, resources: Resources = RESOURCES) -> dict[str, Any]:
    with Display(Console(file=io.StringIO())) as display:
        return run_deployment(deployment, jobs, display, resources)


class CampaignThreadJobs(ThreadJobs, CampaignJobs):
    """Jobs of a campaign."""

    def __init__(self, folder: Path, campaign: str, uid: str) -> None:
        super().__init__(folder)
        self.campaign, self.root, self._ids = campaign, Path(f"{campaign}-{uid}"), {}


def test_an_output_is_made_by_the_jobs_of_one_campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    deployment = sample_deployment(tmp_path)
    first = CampaignThreadJobs(tmp_path / "first", "first", "1")
    deploy(deployment, first)
    file = tmp_path / "out-deployment" / "campaign.json"
    for name, uid, message in (
        ("second", "1", rf"out\.zarr: campaign first makes it, .*give --campaign first; .*remove {file}"),
        ("first", "2", rf"out\.zarr: an earlier campaign first \(first-1\) makes it, .*gone for good, remove {file}"),
    ):
        others = CampaignThreadJobs(tmp_path / f"{name}-{uid}", name, uid)
        with pytest.raises(StateError, match=message):
            deploy(deployment, others)
        assert others.log == []
    first.log.clear()
    deploy(deployment, first)
    assert first.log == []
    file.unlink()
    assert deploy(deployment, CampaignThreadJobs(tmp_path / "third", "third", "3"))["reconciliation"]["result"][
        "complete"
    ]


def chunks_of(deployment: Deployment) -> dict[str, bytes]:
    """The chunks of the output, which hold its voxels."""
    files = (path for path in (deployment.output / "0").rglob("*") if path.is_file())
    return {str(path.relative_to(deployment.output)): path.read_bytes() for path in files}


def test_objects_hold_across_subvolumes_and_every_box_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    deployment = sample_deployment(tmp_path)
    with pytest.raises(StateError, match="no deployment made it"):
        verify_deployment(deployment.output, silent)
    shown = io.StringIO()
    with Display(Console(file=shown, width=200)) as display:
        records = run_deployment(deployment, ThreadJobs(tmp_path / "jobs"), display, RESOURCES)
    lines = shown.getvalue().splitlines()
    assert (lines[0], lines[-1]) == ("deploy ...", "deploy: 32.8 k of 32.8 k voxels")
    assert any("ends about" in line for line in lines[1:-1])
    result = records["reconciliation"]["result"]
    assert (result["complete"], result["objects"]) == (True, 4)
    found = open_volume(str(deployment.output))
    assert (found.shape, found.voxel_size_nm, found.dtype) == ((32, 32, 32), VOXEL_NM, np.uint64)
    truth, labels = open_volume(str(tmp_path / "labels.zarr")).read(), found.read()
    pairs = {pair for pair in zip(labels.ravel().tolist(), truth.ravel().tolist(), strict=True) if 0 not in pair}
    assert len(pairs) == 4  # each object is one tube, and each tube one object
    plan = plan_deployment(deployment, RESOURCES)
    assert plan.prediction is not None
    text = cost_table(plan, Records(records).measured()).splitlines()
    assert text[1].split()[-4:] == ["64", "k", "64", "k"]
    assert verify_deployment(deployment.output, silent)["complete"]

    told = Records({"inference": [PiecesOnDisk(plan.pieces).record(range(8))]})
    assert kept_out(told.by_step["inference"]) == kept_out(records["inference"])
    assert told.measured().segmented_voxels == Records(records).measured().segmented_voxels
    prove_complete(plan, Records(records))
    larger = replace(deployment, subvolume=(8, 16, 16), output=tmp_path / "larger.zarr")
    with pytest.raises(StateError, match="8 of 16 subvolumes"):
        prove_complete(plan_deployment(larger, RESOURCES), Records(records))

    wanted = chunks_of(deployment)
    box = plan.grid.subvolume(5).write_box
    open_volume_to_write(deployment.output).write(box, np.ones(box.shape, np.uint64))
    with pytest.raises(DataError, match=rf"5 \({box}\)"):
        verify_deployment(deployment.output, silent)
    # Taken away with a piece: both are made again, as they were.
    shutil.rmtree(deployment.output)
    with pytest.raises(DataError, match="is not there"):
        verify_deployment(deployment.output, silent)
    shutil.rmtree(piece_path(plan.pieces, 4))
    jobs = ThreadJobs(tmp_path / "jobs", workers=2, seed=5)
    deploy(deployment, jobs)
    assert chunks_of(deployment) == wanted


def test_bytes_do_not_depend_on_workers_order_or_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two subvolumes to a job and four, by one worker and three."""
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    outputs = []
    for workers, seed, size, shares in ((1, None, 4, 1), (3, 2, 2, 3)):
        deployment = sample_deployment(tmp_path, output=tmp_path / f"out-{workers}.zarr")
        resources = replace(RESOURCES, subvolumes_per_job=size, reconciliation_jobs=shares)
        jobs = ThreadJobs(tmp_path / f"jobs-{workers}", workers, seed)
        deploy(deployment, jobs, resources)
        assert len(segmenting_keys(jobs)) == 8 // size
        outputs.append(chunks_of(deployment))
    assert outputs[0] == outputs[1]
    assert outputs[0]


def test_what_is_taken_away_before_the_end_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    whole = sample_deployment(tmp_path, output=tmp_path / "whole.zarr")
    deploy(whole, ThreadJobs(tmp_path / "jobs-whole"))

    deployment = sample_deployment(tmp_path)
    work = plan_deployment(deployment, RESOURCES).work
    jobs = ThreadJobs(tmp_path / "jobs")
    jobs.hook = lambda task: FailureKind.KILLED if task.parameters.get("action") == "finish" else None
    with pytest.raises(EnsembleError, match="finish"):
        deploy(deployment, jobs)
    jobs.hook = lambda task: None
    shutil.rmtree(work / IN_THE_MAKING)
    for unit in (work / "units").rglob("*3.columns"):
        unit.unlink()
    deploy(deployment, jobs)
    assert len(segmenting_keys(jobs)) == 3, "once"
    assert chunks_of(deployment) == chunks_of(whole)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    deployment = sample_deployment(tmp_path)
    keep_plan(plan_deployment(deployment, RESOURCES))
    (deployment.folder / ".driver.lock").mkdir()
    with pytest.raises(DataError, match="out-deployment: cannot be written"):
        deploy(deployment, ThreadJobs(tmp_path / "jobs"))


def test_two_processes_do_not_drive_one_output(tmp_path: Path) -> None:
    deployment = sample_deployment(tmp_path)
    keep_plan(plan_deployment(deployment, RESOURCES))
    with (deployment.folder / ".driver.lock").open("a") as stream:
        lock(stream, deployment.folder)
        with pytest.raises(StateError, match="another process works on this output"):
            deploy(deployment, ThreadJobs(tmp_path / "jobs"))
