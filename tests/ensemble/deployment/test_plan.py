"""What a deployment plans, predicts and refuses."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError, StateError, UserError
from apps.core.progress import silent
from apps.core.stage import load_stage
from apps.core.subvolumes import SubvolumeGrid
from apps.core.volumes import open_volume, write_volume
from apps.ffn.checkpoint import read_info, read_weights, save_checkpoint
from apps.ffn.masks import MaskParameters
from ensemble.deployment import Deployment, Resources, plan_deployment, sizes
from ensemble.deployment.coverage import measure_coverage, numbers_in, ranges_of
from ensemble.deployment.lattice import Lattice
from ensemble.deployment.plan import keep_plan, renew_plan
from ensemble.deployment.prediction import JOB_START_S, predict
from ensemble.deployment.table import plan_table, what_changes
from ensemble.deployment.tasks import DeploymentTasks
from tests.ensemble.deployment.samples import SHAPE, VOXEL_NM, sample_deployment

RESOURCES = Resources(nodes=2, node_memory=8 << 30)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return sample_deployment(tmp_path)


def test_the_largest_shape_that_memory_walltime_and_workers_allow() -> None:
    box, overlap = Box.of((0, 0, 0), (2048, 2048, 2048)), (32, 32, 32)

    def plan(speed: float | None = None, **fields: Any) -> tuple[int, int, int]:
        return sizes.plan_shape(box, overlap, speed, replace(RESOURCES, **fields))

    large = plan(node_memory=16 << 30)
    assert sizes.memory_of((large[0] + 32, large[1] + 32, large[2] + 32)) <= 16 << 30
    small = plan(node_memory=4 << 30)
    assert math.prod(small) < math.prod(large)
    assert math.prod(plan(node_memory=16 << 30, jobs_per_node=4)) <= math.prod(small)
    # A quarter of an hour's walltime at 1,000 voxels a second is 225,000 voxels: less than the smallest, which it is.
    assert plan(speed=1000.0, wall_time_min=15) == (64, 64, 64)
    assert math.prod(plan(speed=1e5, wall_time_min=120)) <= 1e5 * 30 * 60
    assert math.prod(plan(nodes=1000, node_memory=16 << 30)) <= box.size / 4000
    assert all(extent % 64 == 0 for shape in (large, small) for extent in shape)
    with pytest.raises(
        ParameterError, match=r"a job has 1\.0 GiB, and a subvolume that reads \(96, 96, 96\) needs 1\.1"
    ):
        plan(node_memory=1 << 30)


def test_a_box_is_divided_evenly() -> None:
    box = Box.of((0, 0, 0), (60, 250, 640))
    shape = sizes.plan_shape(box, (16, 16, 16), None, replace(RESOURCES, nodes=1))
    counts = SubvolumeGrid(box=box, shape=shape).counts
    assert shape[0] == 64  # whole chunks, even where the box has fewer voxels
    assert math.prod(counts) >= 4
    assert all(count * extent - n < 64 * count for count, extent, n in zip(counts, shape, box.shape, strict=True))


def test_overlap_is_what_the_field_of_view_needs_and_two_steps() -> None:
    assert sizes.plan_overlap((17, 33, 33), (4, 8, 8)) == (24, 48, 48)
    assert sizes.plan_overlap((5, 9, 9), (1, 2, 4)) == (16, 16, 16)


@pytest.mark.parametrize(
    ("count", "seconds", "processes", "expected"),
    [(1000, 10.0, 2, 30), (1000, 1000.0, 2, 1), (8, 1.0, 2, 1), (10**6, None, 10, 64), (100, 0.1, 1, 25)],
)
def test_jobs_last_some_minutes_and_leave_work_for_all(
    count: int, seconds: float | None, processes: int, expected: int
) -> None:
    assert sizes.plan_subvolumes_per_job(count, seconds, Resources(nodes=processes)) == expected
    assert sizes.plan_subvolumes_per_job(count, seconds, Resources(subvolumes_per_job=7)) == 7


@pytest.mark.parametrize(
    ("side", "expected"), [(64, 1024), (128, 1024), (256, 1024), (576, 104), (1088, 16), (10_000, 1)]
)
def test_jobs_of_wholly_masked_subvolumes_last_some_minutes_at_most(side: int, expected: int) -> None:
    """What they take is reading the masks."""
    assert sizes.plan_masked_per_job((side, side, side)) == expected


def test_masks_are_counted_by_tiles(tmp_path: Path) -> None:
    """Tiles of 64 that are masked whole: the share of every read box is exact."""
    excluded = np.zeros((100, 128, 192), np.uint8)
    excluded[:64, :, 64:] = 1
    excluded[64:, 64:, :] = 2
    write_volume(tmp_path / "m.zarr", excluded, VOXEL_NM)
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), excluded.shape), shape=(32, 32, 32), overlap=(8, 8, 8))
    for values in (None, (1,), (7,)):
        masks = (MaskParameters(volume=str(tmp_path / "m.zarr"), values=values),)
        coverage = measure_coverage(Lattice(grid), masks)
        hit = excluded != 0 if values is None else np.isin(excluded, values)
        truth = [hit[subvolume.read_box.slices()].mean() for subvolume in grid]
        np.testing.assert_allclose(coverage.share, truth, atol=1e-12)
        assert coverage.wholly.tolist() == [share == 1.0 for share in truth]
    # A single free voxel: nothing that sees its tile is wholly masked.
    excluded[:] = 1
    excluded[5, 5, 5] = 0
    write_volume(tmp_path / "m.zarr", excluded, VOXEL_NM)
    coverage = measure_coverage(Lattice(grid), (MaskParameters(volume=str(tmp_path / "m.zarr")),))
    assert coverage.wholly.tolist() == [max(subvolume.read_box.offset) >= 64 for subvolume in grid]


@pytest.mark.parametrize("numbers", [[], [3], [0, 1, 2], [0, 2, 3, 9], [1, 5, 6, 7, 8]])
def test_numbers_as_ranges(numbers: list[int]) -> None:
    ranges = ranges_of(np.array(numbers, np.int64))
    assert numbers_in(ranges).tolist() == numbers
    assert all(a < b for a, b in ranges)


def test_the_prediction_counts_what_masks_leave_and_the_jobs() -> None:
    grid = SubvolumeGrid(box=Box.of((0, 0, 0), (64, 64, 128)), shape=(64, 64, 64), overlap=(0, 0, 32))
    coverage = measure_coverage(Lattice(grid), ())
    coverage.share[0] = 0.5
    found = predict(Lattice(grid), coverage, 1000.0, 2, 1, Resources(nodes=2, jobs_per_node=2))
    read = 64 * 64 * 80
    assert found.segmented_voxels == read * 1.5
    assert found.read_voxels == 2 * read
    seconds = read * 1.5 / 1000 + 2 * JOB_START_S
    assert found.process_seconds == pytest.approx(seconds, rel=1e-3)
    assert found.node_hours == pytest.approx(found.process_seconds / 2 / 3600)
    assert found.wall_seconds == pytest.approx(seconds / 2, rel=1e-2)


def test_the_plan_names_every_subvolume_once_in_valid_tasks(deployment: Deployment, tmp_path: Path) -> None:
    deployment = replace(deployment, labels=str(tmp_path / "labels.zarr"))
    plan = plan_deployment(deployment, replace(RESOURCES, subvolumes_per_job=3, reconciliation_jobs=3, jobs_per_node=2))
    tasks = DeploymentTasks(plan, deployment)
    segmenting = list(tasks.segmenting())
    assert [number for job in segmenting for number in job.numbers] == list(range(8))
    assert [len(job.numbers) for job in segmenting] == [3, 3, 2]
    shared = [tasks.reconcile(action, index) for action in ("compare", "relabel") for index in range(3)]
    others = [tasks.reconcile("solve"), tasks.reconcile("finish"), tasks.reconcile("all"), tasks.evaluate()]
    everything = [*(job.task for job in segmenting), tasks.segment_alone(3).task, *shared, *others]
    for task in everything:
        load_stage(task.stage).parameters.from_json(task.parameters)
        assert (task.tags, task.jobs_per_node) == ({"model": "demo:1"}, 2)
    assert len({task.key for task in everything}) == len(everything)
    again = DeploymentTasks(plan_deployment(deployment, RESOURCES), deployment)
    assert again.reconcile("solve").key == tasks.reconcile("solve").key  # however many jobs share it
    other = plan_deployment(replace(deployment, inference={"min_size": 60}), RESOURCES)
    assert other.identity != plan.identity
    text = plan_table(plan, RESOURCES)
    for word in ("2 x 2 x 2 = 8 of 16 x 16 x 16", "3, of 3 subvolumes", "3 jobs to compare", "node-hours"):
        assert word in text


def test_wholly_masked_subvolumes_are_in_no_job_that_starts_a_network(deployment: Deployment, tmp_path: Path) -> None:
    box = Box.of((0, 0, 0), (128, 64, 64))
    excluded = np.zeros(box.shape, np.uint8)
    excluded[64:] = 1
    write_volume(tmp_path / "image.zarr", excluded, VOXEL_NM)
    write_volume(tmp_path / "m.zarr", excluded, VOXEL_NM)
    masked = replace(
        deployment, masks=(MaskParameters(volume=str(tmp_path / "m.zarr")),), subvolume=(32, 32, 32), overlap=(8, 8, 8)
    )
    plan = plan_deployment(masked, RESOURCES)
    assert plan.masked == ((12, 16),)  # the third layer sees four voxels of the free half
    jobs = list(DeploymentTasks(plan, masked).segmenting())
    assert [job.numbers for job in jobs][-1] == (12, 13, 14, 15)
    assert "masked" in jobs[-1].task.key
    assert not any({12, 13, 14, 15} & set(job.numbers) for job in jobs[:-1])
    assert "wholly masked   4" in plan_table(plan, RESOURCES)
    assert plan.prediction
    seconds = plan.prediction.process_seconds - plan.prediction.segmented_voxels / plan.prediction.speed
    assert seconds == pytest.approx(len(jobs) * JOB_START_S, abs=0.1)  # and next to nothing for reconciliation
    without = plan_deployment(replace(masked, masks=()), RESOURCES)
    assert plan.prediction and without.prediction
    assert plan.prediction.segmented_voxels < 0.6 * without.prediction.segmented_voxels


def refused(deployment: Deployment, error: type[UserError], words: str, **fields: Any) -> None:
    with pytest.raises(error, match=words):
        plan_deployment(replace(deployment, **fields), RESOURCES)


def test_what_does_not_fit_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    refused(deployment, DataError, "leaves the volume", box=Box(offset=(0, 0, 0), shape=(33, 8, 8)))
    refused(deployment, ParameterError, "empty", box=Box(offset=(0, 0, 0), shape=(0, 8, 8)))
    refused(deployment, DataError, "no such volume", image="none.zarr")
    refused(deployment, ParameterError, "is an input of the deployment", output=tmp_path / "image.zarr")
    refused(deployment, ParameterError, r"ends in \.zarr", output=tmp_path / "out.h5")
    refused(deployment, ParameterError, "overlap", overlap=(64, 64, 64))
    refused(deployment, ParameterError, "field of view", overlap=(6, 8, 8))
    refused(deployment, ParameterError, "field of view", subvolume=(32, 32, 16), overlap=(0, 0, 0))
    alone = replace(deployment, subvolume=None, overlap=(0, 0, 0))  # one subvolume needs none
    assert plan_deployment(alone, RESOURCES).grid.counts == (1, 1, 1)
    # At the volume's first face a thin box has context on one side only.
    refused(deployment, DataError, r"0:3,0:32,0:32: .*\(7, 20, 20\) is smaller", box=Box.of((0, 0, 0), (3, 32, 32)))
    plan_deployment(replace(deployment, box=Box.of((8, 0, 0), (3, 32, 32))), RESOURCES)
    write_volume(tmp_path / "short.zarr", np.ones((32, 32, 31), "uint32"), VOXEL_NM)
    refused(deployment, DataError, "expected that of the image", labels=str(tmp_path / "short.zarr"))
    write_volume(tmp_path / "float.zarr", np.ones((32, 32, 32), "float32"), VOXEL_NM)
    refused(deployment, DataError, "has dtype float32", labels=str(tmp_path / "float.zarr"))
    write_volume(tmp_path / "coarse.zarr", np.ones((32, 32, 32), "uint32"), (9.0, 9.0, 9.0))
    refused(deployment, DataError, r"coarse\.zarr: has voxels of .* nm; expected", labels=str(tmp_path / "coarse.zarr"))
    refused(deployment, DataError, "no such checkpoint", checkpoint=tmp_path / "none")
    for name, words in (("short.zarr", "on the image's grid"), ("none.zarr", "no such volume")):
        refused(deployment, DataError, words, masks=(MaskParameters(volume=str(tmp_path / name)),))
    assert not deployment.folder.exists()
    with pytest.raises(ParameterError, match="a job has 0"):
        plan_deployment(deployment, replace(RESOURCES, node_memory=1 << 20))


def test_an_image_of_other_voxels_than_the_models_is_refused(deployment: Deployment) -> None:
    refused(deployment, DataError, "trained at 8 x 8 x 8 nm", trained_voxel_size_nm=(8.0, 8.0, 8.0))
    plan_deployment(replace(deployment, trained_voxel_size_nm=(8.0, 8.0, 8.0), any_voxel_size=True), RESOURCES)
    plan_deployment(replace(deployment, trained_voxel_size_nm=(10.0, 10.0, 10.00001)), RESOURCES)
    plan_deployment(replace(deployment, trained_voxel_size_nm=None), RESOURCES)


def test_what_the_checkpoint_says_of_voxels_counts_before_the_row_and_jobs_are_told_to_take_any(
    deployment: Deployment,
) -> None:
    info = msgspec.structs.replace(read_info(deployment.checkpoint), voxel_size_nm=(8.0, 8.0, 8.0))
    save_checkpoint(deployment.checkpoint, info, read_weights(deployment.checkpoint, info.model), {})
    refused(deployment, DataError, "model demo:1 was trained at 8 x 8 x 8 nm.*--any-voxel-size")
    wanted = replace(deployment, any_voxel_size=True)
    job = next(DeploymentTasks(plan_deployment(wanted, RESOURCES), wanted).segmenting())
    given = {**job.task.parameters, "numbers": []}  # none to segment, so that the job only looks whether all fits
    inference = load_stage("inference")
    assert inference.run(inference.parameters.from_json(given), silent).to_dict()["count"] == 0
    with pytest.raises(DataError, match="trained at 8 x 8 x 8 nm"):
        inference.run(inference.parameters.from_json({**given, "any_voxel_size": False}), silent)


def test_numbers_that_cannot_be(deployment: Deployment) -> None:
    with pytest.raises(ParameterError, match="speed"):
        replace(deployment, speed=0.0)
    with pytest.raises(ParameterError, match="threads"):
        replace(deployment, threads=0)
    for name in ("nodes", "jobs_per_node", "wall_time_min", "subvolumes_per_job", "reconciliation_jobs", "budget"):
        with pytest.raises(ParameterError, match=name.replace("_", " ")):
            Resources(**{name: 0})


def test_a_budget_that_the_prediction_exceeds_is_refused_with_the_figure(deployment: Deployment) -> None:
    plan = plan_deployment(deployment, RESOURCES)
    assert plan.prediction is not None
    hours = plan.prediction.node_hours
    plan_deployment(deployment, replace(RESOURCES, budget=hours * 1.01))
    with pytest.raises(ParameterError, match=f"predicted are {hours:.3g} node-hours"):
        plan_deployment(deployment, replace(RESOURCES, budget=hours * 0.99))
    with pytest.raises(ParameterError, match="--speed"):
        plan_deployment(replace(deployment, speed=None), replace(RESOURCES, budget=1.0))
    assert "nobody has measured" in plan_table(plan_deployment(replace(deployment, speed=None), RESOURCES), RESOURCES)


def test_a_kept_plan_is_gone_on_with_and_another_request_for_its_output_refused(deployment: Deployment) -> None:
    automatic = replace(deployment, subvolume=None, overlap=None)
    plan = plan_deployment(automatic, RESOURCES)
    assert plan.grid.shape == (64, 64, 64)
    keep_plan(plan)
    assert plan_deployment(automatic, Resources(nodes=16)) == plan  # whatever the nodes are now
    with pytest.raises(StateError, match=r"subvolume \[64, 64, 64\] \(now \[16, 16, 16\]\)"):
        plan_deployment(deployment, RESOURCES)
    with pytest.raises(StateError, match="inference settings"):
        plan_deployment(replace(automatic, inference={"min_size": 1}), RESOURCES)
    assert plan_deployment(replace(automatic, labels=str(deployment.image)), RESOURCES) == plan


def test_what_a_later_run_may_change_of_a_kept_plan(deployment: Deployment) -> None:
    """What only jobs to come need is taken; what the names of jobs that are done say is kept, and that is said."""
    begun = replace(RESOURCES, subvolumes_per_job=2, reconciliation_jobs=2)
    plan = plan_deployment(deployment, begun)
    keep_plan(plan)
    assert what_changes(plan_deployment(deployment, begun), begun) == []
    other = replace(RESOURCES, jobs_per_node=4, node_memory=5 << 30, subvolumes_per_job=3, reconciliation_jobs=5)
    found = plan_deployment(deployment, other)
    assert what_changes(found, other) == [
        "kept from the plan, as jobs are done by it: --per-job 2 (not 3), --reconciliation-jobs 2 (not 5)"
    ]
    assert plan.prediction and found.prediction
    assert found.prediction.node_hours == pytest.approx(plan.prediction.node_hours / 4)
    taken = {"jobs_per_node": 4, "node_memory": 5 << 30, "prediction": found.prediction}
    assert found == msgspec.structs.replace(plan, **taken)
    assert "1.0 GiB needed, 1.2 GiB there\n" in plan_table(found, other) + "\n"
    renew_plan(found)
    assert plan_deployment(deployment, Resources()) == found  # as it was said last
    with pytest.raises(ParameterError, match=r"a job has 0\.5 GiB.*fewer jobs on a node"):
        plan_deployment(deployment, Resources(node_memory=2 << 30))
    slow = plan_deployment(replace(deployment, speed=1.0), Resources()).prediction
    assert slow and slow.speed == 1.0 and slow.node_hours > 100 * found.prediction.node_hours
    with pytest.raises(ParameterError, match="above the budget"):
        plan_deployment(replace(deployment, speed=1.0), Resources(budget=found.prediction.node_hours * 2))


def test_another_voxel_size_is_another_deployment(deployment: Deployment, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "image.h5", "w") as file:
        file["raw"] = np.full(SHAPE, 60, np.uint8)
    unsaid = replace(deployment, image=f"{tmp_path}/image.h5:raw", trained_voxel_size_nm=None, voxel_size_nm=VOXEL_NM)
    keep_plan(plan_deployment(unsaid, RESOURCES))
    assert plan_deployment(unsaid, RESOURCES).voxel_size_nm == VOXEL_NM
    with pytest.raises(StateError, match=r"voxel size \[10\.0, 10\.0, 10\.0\] \(now \[8\.0, 8\.0, 8\.0\]\)"):
        plan_deployment(replace(unsaid, voxel_size_nm=(8.0, 8.0, 8.0)), RESOURCES)


def test_another_image_under_the_same_name_is_another_deployment(deployment: Deployment) -> None:
    keep_plan(plan_deployment(deployment, RESOURCES))
    plan_deployment(deployment, RESOURCES)
    image = open_volume(deployment.image).read()
    shutil.rmtree(deployment.image)
    write_volume(deployment.image, image, VOXEL_NM)
    with pytest.raises(StateError, match="time of the image"):
        plan_deployment(deployment, RESOURCES)


def test_an_output_or_folder_of_something_else_is_refused(deployment: Deployment) -> None:
    deployment.folder.touch()
    with pytest.raises(StateError, match="out-deployment: is a file"):
        plan_deployment(deployment, RESOURCES)
    deployment.folder.unlink()
    deployment.folder.mkdir()
    (deployment.folder / "notes.txt").write_text("mine")
    with pytest.raises(StateError, match=r"holds no plan\.json"):
        plan_deployment(deployment, RESOURCES)
    (deployment.folder / "notes.txt").rename(deployment.folder / ".plan.json.abc.partial")  # of a plan, and of a kill
    plan = plan_deployment(deployment, RESOURCES)
    write_volume(deployment.output, np.zeros(SHAPE, np.uint64), VOXEL_NM)
    with pytest.raises(StateError, match="not of this deployment"):
        plan_deployment(deployment, RESOURCES)
    keep_plan(plan)
    with pytest.raises(StateError, match=r"out\.zarr: exists, and .* does not say that this deployment made it"):
        plan_deployment(deployment, RESOURCES)
