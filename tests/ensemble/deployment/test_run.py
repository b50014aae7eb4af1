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

from apps.core.errors import DataError, EnsembleError, FailureKind, ParameterError, StateError
from apps.core.files import lock
from apps.core.progress import silent
from apps.core.subvolumes import piece_path
from apps.core.volumes import open_volume, open_volume_to_write
from apps.inference import stage as inference_stage
from apps.inference.outputs import summary_path
from apps.reconciliation.evidence import read_links
from apps.reconciliation.settings import IN_THE_MAKING
from ensemble.deployment import (
    Deployment,
    DeploymentPlan,
    LinkChoices,
    Resources,
    kept_out,
    plan_deployment,
    run_deployment,
    verify_deployment,
)
from ensemble.deployment.pieces import PiecesOnDisk
from ensemble.deployment.plan import keep_plan, renew_plan
from ensemble.deployment.records import Records
from ensemble.deployment.run import prove_complete
from ensemble.deployment.table import cost_table, plan_table, what_changes
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
    steps = ["deploy", *(f"reconciling: {step}" for step in ("comparing", "solving", "relabelling", "finishing"))]
    assert [line.removesuffix(" ...") for line in lines if line.endswith("...")] == steps
    for last in (
        "deploy: 32.8 k of 32.8 k voxels",
        "reconciling: comparing: 2 of 2 jobs",
        "reconciling: solving: done, 100 %",
        "reconciling: relabelling: 32.8 k of 32.8 k voxels",
    ):
        assert last in lines
    assert lines[-1] == "reconciling: finishing: done, 100 %"
    assert any("ends about" in line for line in lines if line.startswith("deploy"))
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
    summary = summary_path(piece_path(plan.pieces, 3))
    whole = summary.read_bytes()
    for damaged in (whole[:20], b"[]", b"\xff"):
        summary.write_bytes(damaged)
        with pytest.raises(DataError, match=r"000000003-summary\.json: is damaged .*; remove it"):
            PiecesOnDisk(plan.pieces).record(range(8))
    summary.write_bytes(whole)
    prove_complete(plan, Records(records))
    larger = replace(deployment, subvolume=(8, 16, 16), output=tmp_path / "larger.zarr")
    with pytest.raises(StateError, match="8 of 16 subvolumes"):
        prove_complete(plan_deployment(larger, RESOURCES), Records(records))

    copy = tmp_path / "copy" / "out.zarr"
    shutil.copytree(deployment.output, copy)
    shutil.copytree(deployment.folder, copy.with_name("out-deployment"))
    assert verify_deployment(copy, silent)["segmentation"] == str(copy)
    with pytest.raises(StateError, match=rf"copy/out\.zarr: .* is the deployment of {deployment.output}; a deployment"):
        plan_deployment(replace(deployment, output=copy), RESOURCES)  # or the first one's output would be replaced
    (tmp_path / "link").symlink_to(tmp_path)
    assert plan_deployment(replace(deployment, output=tmp_path / "link" / "out.zarr"), RESOURCES) == plan
    open_volume_to_write(copy).write(copy_box := plan.grid.subvolume(2).write_box, np.ones(copy_box.shape, np.uint64))
    with pytest.raises(DataError, match=rf"copy/out\.zarr: differs from .*copy/out-deployment.* 2 \({copy_box}\)"):
        verify_deployment(copy, silent)

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


def cut_table(plan: DeploymentPlan, name: str) -> str:
    """A table of one link that holds an object together, beside the output."""
    links = read_links(plan.work, objects=[1])
    file = Path(plan.output).with_name(name)
    links[links["linked"]][["a", "b"]].head(1).to_csv(file, index=False)
    return str(file)


@pytest.mark.parametrize("shares", [1, 2])
def test_a_cut_or_a_forbidden_pair_is_put_right_without_segmenting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: int
) -> None:
    """Two subvolumes along the tubes: one link holds each of them together."""
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    resources = replace(RESOURCES, reconciliation_jobs=shares)
    deployment = sample_deployment(tmp_path, subvolume=(16, 32, 32))
    jobs = ThreadJobs(tmp_path / "jobs")

    def objects(links: LinkChoices | None = None) -> int:
        jobs.log.clear()
        again = replace(deployment, links=links or LinkChoices())
        found = deploy(again, jobs, resources)["reconciliation"]["result"]["objects"]
        assert verify_deployment(deployment.output, silent)["complete"]
        return int(found)

    def done() -> list[str]:
        return [key.split("/")[2].partition("-")[0] for key in jobs.log]

    assert objects() == 4
    first, plan = chunks_of(deployment), plan_deployment(deployment, resources)
    table = cut_table(plan, "cut.csv")
    anew = ["all"] if shares == 1 else ["solve", "relabel", "relabel", "finish"]
    assert objects(LinkChoices(cut=table)) == 5
    assert done() == anew, "nothing is segmented or compared again"
    cut = chunks_of(deployment)
    assert cut != first
    # The same command without the option goes on with what was said last, though the user's table is gone.
    Path(table).unlink()
    assert objects() == 5
    assert done() == []
    assert "; 1 pair cut" in plan_table(plan_deployment(deployment, resources), resources)

    undone = replace(deployment, links=LinkChoices(cut="none"))
    assert "cut 1 pair -> none" in what_changes(plan_deployment(undone, resources), resources)[0]
    assert objects(undone.links) == 4  # by jobs of before, whose work has been replaced meanwhile
    assert done() == anew
    assert chunks_of(deployment) == first
    assert objects(LinkChoices(forbidden=cut_table(plan, "apart.csv"))) == 5
    assert done() == anew
    assert chunks_of(deployment) == cut
    assert objects(LinkChoices(forbidden="none", min_overlap_voxels=10**6)) == 8
    assert done() == anew
    assert objects(LinkChoices(min_overlap_voxels=100, mutual_maximum=False)) == 4
    # A cut of what is no link is found when it is solved: the output stays, and the next command says otherwise.
    Path(table).write_text(f"a,b\n1,{(1 << 24) + 2}\n")
    for links in (LinkChoices(cut=table), LinkChoices()):
        with pytest.raises(EnsembleError, match="share no voxels, so there is no link to cut"):
            objects(links)
        assert chunks_of(deployment) == first
    assert objects(LinkChoices(cut="none")) == 4
    assert not segmenting_keys(jobs)
    # Where nothing says any more what the volume was solved by, it is looked at again, by whatever rules.
    shutil.rmtree(plan.work / "solution")
    assert objects(LinkChoices(min_overlap_voxels=10**6)) == 8
    shutil.rmtree(plan.work / "solution")
    assert objects(LinkChoices(min_overlap_voxels=100)) == 4
    assert chunks_of(deployment) == first


def test_a_change_of_links_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output stays as it was; the same command goes on, and so does one that takes the change back."""
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    deployment = sample_deployment(tmp_path, subvolume=(16, 32, 32))
    jobs = ThreadJobs(tmp_path / "jobs")
    deploy(deployment, jobs)
    first = chunks_of(deployment)
    cut = replace(deployment, links=LinkChoices(cut=cut_table(plan_deployment(deployment, RESOURCES), "cut.csv")))
    for again, objects in ((deployment, 5), (replace(deployment, links=LinkChoices(cut="none")), 4)):
        jobs.hook = lambda task: FailureKind.KILLED if task.parameters.get("action") == "finish" else None
        with pytest.raises(EnsembleError, match="finish"):
            deploy(cut, jobs)
        assert chunks_of(deployment) == first
        jobs.hook = lambda task: None
        assert deploy(again, jobs)["reconciliation"]["result"]["objects"] == objects
        deploy(replace(deployment, links=LinkChoices(cut="none")), jobs)
        assert chunks_of(deployment) == first
    assert len(segmenting_keys(jobs)) == 1


def test_tables_of_pairs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_stage, "segment_boxes", segment_by_threshold)
    deployment = sample_deployment(tmp_path)
    table = tmp_path / "cut.csv"

    def refused(error: type[EnsembleError], words: str, *names: str) -> None:
        for name in names:
            links = LinkChoices(cut=str(table)) if name == "cut" else LinkChoices(forbidden=str(table))
            with pytest.raises(error, match=words):
                plan_deployment(replace(deployment, links=links), RESOURCES)

    refused(DataError, "cut.csv: no such file", "cut", "forbidden")
    table.write_text(f"a,b\n7,{(8 << 24) + 1}\n")
    refused(DataError, "is of subvolume 8; the deployment has 8", "cut", "forbidden")
    with pytest.raises(ParameterError, match="min_overlap_fraction"):
        plan_deployment(replace(deployment, links=LinkChoices(min_overlap_fraction=1.5)), RESOURCES)
    # Killed before it was copied, and changed; then taken away.
    table.write_text(f"a,b\n1,{(1 << 24) + 1}\n")
    plan = plan_deployment(replace(deployment, links=LinkChoices(cut=str(table))), RESOURCES)
    keep_plan(plan)
    assert plan_deployment(deployment, RESOURCES) == plan
    table.write_text(f"a,b\n2,{(1 << 24) + 1}\n")
    with pytest.raises(DataError, match="other pairs than in the last run; give --cut"):
        plan_deployment(deployment, RESOURCES)
    with pytest.raises(StateError, match="has changed just now"):
        renew_plan(plan)
    table.unlink()
    with pytest.raises(DataError, match=r"no such file.*--cut again, or --cut none"):
        plan_deployment(deployment, RESOURCES)
    assert plan_deployment(replace(deployment, links=LinkChoices(cut="none")), RESOURCES).links.cut is None
