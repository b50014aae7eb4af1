"""What a deployment plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.stage import load_stage
from apps.core.volumes import write_volume
from ensemble.deployment import Deployment, plan_deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    write_volume(tmp_path / "i.zarr", np.zeros((40, 80, 80), "uint8"), (10, 10, 10))
    write_volume(tmp_path / "l.zarr", np.ones((40, 80, 80), "uint32"), (10, 10, 10))
    return Deployment(
        model="demo:1",
        checkpoint=tmp_path / "checkpoint",
        inference={"min_size": 100},
        image=str(tmp_path / "i.zarr"),
        output=tmp_path / "out.zarr",
        subvolume=(40, 48, 48),
        overlap=(16, 16, 16),
        labels=str(tmp_path / "l.zarr"),
    )


def test_tasks_are_valid_and_wait_for_what_they_read(deployment: Deployment) -> None:
    tasks = plan_deployment(deployment)
    stages = [task.stage for task in tasks]
    assert stages == ["inference"] * (len(tasks) - 2) + ["reconciliation", "evaluation"]
    for task in tasks:
        load_stage(task.stage).parameters.from_json(task.parameters)
        assert task.tags == {"model": "demo:1"}
    assert tasks[-2].after == tuple(task.key for task in tasks[:-2])
    assert tasks[-1].after == (tasks[-2].key,)
    pieces = tasks[-2].parameters["pieces"]
    assert [(piece["segmentation"],) for piece in pieces] == [task.outputs for task in tasks[:-2]]
    assert len(pieces) > 1


@pytest.mark.parametrize("per_job", [1, 2, 3, 100])
def test_a_job_can_hold_several_subvolumes(deployment: Deployment, per_job: int) -> None:
    tasks = plan_deployment(replace(deployment, subvolumes_per_job=per_job))
    merge = next(task for task in tasks if task.stage == "reconciliation")
    inference = [task for task in tasks if task.stage == "inference"]
    counts = [len(task.parameters["subvolumes"]) for task in inference]
    assert set(counts[:-1]) <= {per_job}
    wanted = [(piece["read_box"], piece["segmentation"]) for piece in merge.parameters["pieces"]]
    targets = [target for task in inference for target in task.parameters["subvolumes"]]
    assert [(target["box"], target["output"]) for target in targets] == wanted
    assert [name for task in inference for name in task.outputs] == [target["output"] for target in targets]
    with pytest.raises(ParameterError, match="at least 1"):
        plan_deployment(replace(deployment, subvolumes_per_job=0))


def test_same_deployment_has_the_same_keys_and_another_has_others(deployment: Deployment) -> None:
    keys = [task.key for task in plan_deployment(deployment)]
    assert keys == [task.key for task in plan_deployment(deployment)]
    other = plan_deployment(replace(deployment, inference={"min_size": 200}))
    assert not set(keys) & {task.key for task in other}


def test_without_labels_nothing_is_evaluated(deployment: Deployment) -> None:
    assert plan_deployment(replace(deployment, labels=None))[-1].stage == "reconciliation"


def test_what_does_not_fit_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves the volume"):
        plan_deployment(replace(deployment, box=Box(offset=(0, 0, 0), shape=(41, 8, 8))))
    with pytest.raises(DataError, match="no such volume"):
        plan_deployment(replace(deployment, image="none.zarr"))
    with pytest.raises(ParameterError, match="is an input of the deployment"):
        plan_deployment(replace(deployment, output=tmp_path / "i.zarr"))
    write_volume(tmp_path / "short.zarr", np.ones((40, 80, 79), "uint32"), (10, 10, 10))
    with pytest.raises(DataError, match="expected that of the image"):
        plan_deployment(replace(deployment, labels=str(tmp_path / "short.zarr")))
    with pytest.raises(ParameterError, match=r"ends in \.zarr"):
        plan_deployment(replace(deployment, output=tmp_path / "out.h5"))
    with pytest.raises(ParameterError):
        plan_deployment(replace(deployment, overlap=(64, 64, 64)))
