"""What a deployment plans."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.stage import load_stage
from apps.core.volumes import write_volume
from apps.ffn.masks import MaskParameters
from ensemble.cli.deploy import deploy
from ensemble.cli.options import MaskType
from ensemble.deployment import Deployment, KeptOut, kept_out, plan_deployment
from ensemble.models import Model


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


def test_masks_reach_every_subvolume_and_are_checked(deployment: Deployment, tmp_path: Path) -> None:
    mask = np.zeros((40, 80, 80), "uint8")
    write_volume(tmp_path / "m.zarr", mask, (10, 10, 10))
    masks = (MaskParameters(volume=str(tmp_path / "m.zarr"), values=(1, 2)),)
    tasks = plan_deployment(replace(deployment, masks=masks))
    for task in tasks[:-2]:
        parameters = load_stage("inference").parameters.from_json(task.parameters)
        assert parameters.masks == masks
    assert not {task.key for task in tasks} & {task.key for task in plan_deployment(deployment)}
    with pytest.raises(ParameterError, match="is an input of the deployment"):
        plan_deployment(replace(deployment, masks=masks, output=tmp_path / "m.zarr"))
    write_volume(tmp_path / "s.zarr", mask[1:], (10, 10, 10))
    for name, word in (("s.zarr", "on the image's grid"), ("none.zarr", "no such volume")):
        with pytest.raises(DataError, match=word):
            plan_deployment(replace(deployment, masks=(MaskParameters(volume=str(tmp_path / name)),)))


def test_what_masks_kept_out_is_counted_once_where_subvolumes_overlap(deployment: Deployment) -> None:
    """The write boxes of the plan tile the box: their sum is the box's."""
    tasks = plan_deployment(deployment)
    owned = [Box(**target["write_box"]) for task in tasks[:-2] for target in task.parameters["subvolumes"]]
    assert sum(box.size for box in owned) == 40 * 80 * 80
    records = [
        {"result": {"masked_write": {"voxels": 600, "excluded": 60}, "subvolumes": [{}, {}], "without_look": 1}},
        {"result": {"masked_write": {"voxels": 400, "excluded": 65}, "subvolumes": [{}], "without_look": 0}},
    ]
    counted = kept_out(records)
    assert counted == KeptOut(voxels=1000, excluded=125, subvolumes=3, without_look=1)
    assert str(counted) == "125 of 1000 voxels kept out (12.5 %), 1 of 3 subvolumes without a look"


@pytest.mark.parametrize(
    ("text", "volume", "values"),
    [
        ("masks.zarr", "masks.zarr", None),
        ("masks.zarr=1,3", "masks.zarr", (1, 3)),
        ("em.h5:tissue=0", "em.h5:tissue", (0,)),
        ("run=3/masks.zarr", "run=3/masks.zarr", None),
        ("run=3/masks.zarr=2", "run=3/masks.zarr", (2,)),
    ],
)
def test_a_mask_on_the_command_line(text: str, volume: str, values: tuple[int, ...] | None) -> None:
    assert MaskType().convert(text, None, None) == MaskParameters(volume=volume, values=values)


@pytest.mark.parametrize("text", ["masks.zarr=", "masks.zarr=vessel", "=1"])
def test_a_mask_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"masks\.zarr=1,2"):
        MaskType().convert(text, None, None)


def test_the_command_hands_masks_on_and_says_what_they_kept_out(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ensemble deploy` with everything that needs a service replaced."""
    write_volume(tmp_path / "m.zarr", np.zeros((40, 80, 80), "uint8"), (10, 10, 10))
    asked: list[Deployment] = []

    def deployed(chosen: Deployment, jobs: object, display: object) -> dict[str, Any]:
        asked.append(chosen)
        counts = {"masked_write": {"voxels": 256000, "excluded": 64000}, "subvolumes": [{}] * 4, "without_look": 1}
        merged = {"segmentation": str(chosen.output), "objects": 3}
        return {"inference": [{"result": counts}], "reconciliation": {"result": merged}}

    model = Model(
        name="demo",
        version=1,
        created=0.0,
        checksum="",
        voxel_size_nm=(10.0, 10.0, 10.0),
        image_mean=128.0,
        image_std=33.0,
        inference=deployment.inference,
        row={},
        reason="",
    )
    for name, replacement in {
        "ensemble.models.find_model": lambda home, reference: model,
        "ensemble.deployment.checkpoint_of": lambda home, model: deployment.checkpoint,
        "ensemble.session.check_site": lambda home, site, workers: None,
        "ensemble.session.open_session": lambda *arguments: contextlib.nullcontext(),
        "ensemble.deployment.run_deployment": deployed,
    }.items():
        monkeypatch.setattr(name, replacement)
    monkeypatch.chdir(tmp_path)
    arguments = ["demo", "--site", "s", "--home", str(tmp_path / "home"), "--image", "i.zarr", "--out", "out.zarr"]
    done = CliRunner().invoke(deploy, [*arguments, "--mask", "m.zarr=1,2"], catch_exceptions=False)
    assert asked[0].masks == (MaskParameters(volume=str(tmp_path / "m.zarr"), values=(1, 2)),)
    assert "masks: 64000 of 256000 voxels kept out (25.0 %), 1 of 4 subvolumes without a look" in done.output
    done = CliRunner().invoke(deploy, arguments, catch_exceptions=False)
    assert asked[1].masks == ()
    assert "masks:" not in done.output
