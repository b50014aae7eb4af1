"""How a volume is divided and prepared."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from apps.core.errors import DataError, ParameterError
from apps.core.stage import load_stage
from apps.core.volumes import write_volume
from ensemble.campaigns import CampaignPlan
from ensemble.preparation import PHANTOM_SHAPE, Geometry, check_inputs, divide, geometry_for, plan_preparation


@pytest.mark.parametrize("shape", [PHANTOM_SHAPE, (170, 250, 250), (64, 96, 128), (40, 90, 600)])
def test_boxes_are_disjoint_and_inside(shape: tuple[int, int, int]) -> None:
    from apps.core.boxes import Box

    division = divide(shape, Geometry())
    boxes = [division.training, division.validation, division.test]
    assert all(Box(offset=(0, 0, 0), shape=shape).contains(box) for box in boxes)
    assert all(a.intersection(b).empty for a, b in itertools.combinations(boxes, 2))
    assert division.test.size >= division.validation.size


def test_too_small_a_volume_says_what_is_enough() -> None:
    with pytest.raises(DataError, match=r"\(10, 20, 20\) is too small.*at least \(19, 57, 43\)"):
        divide((10, 20, 20), Geometry())
    divide((19, 57, 43), Geometry())


def volumes(folder: Path, labels_shape: tuple[int, int, int] = (8, 8, 8), dtype: str = "uint32") -> CampaignPlan:
    write_volume(folder / "i.zarr", np.zeros((8, 8, 8), "uint8"), (10, 10, 10))
    write_volume(folder / "l.zarr", np.ones(labels_shape, dtype), (10, 10, 10))
    return CampaignPlan(name="demo", image=str(folder / "i.zarr"), labels=str(folder / "l.zarr"))


def test_inputs_are_checked_before_any_job(tmp_path: Path) -> None:
    assert check_inputs(volumes(tmp_path)) == (8, 8, 8)
    with pytest.raises(DataError, match=r"l\.zarr: has shape \(8, 8, 9\); expected that of the image"):
        check_inputs(volumes(tmp_path, (8, 8, 9)))
    with pytest.raises(DataError, match="expected integer labels"):
        check_inputs(volumes(tmp_path, dtype="float32"))
    with pytest.raises(DataError, match="no such volume"):
        check_inputs(CampaignPlan(name="demo", image="none.zarr", labels="none.zarr"))


def test_hdf5_needs_a_voxel_size(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "em.h5", "w") as file:
        file["raw"] = np.zeros((8, 8, 8), "uint8")
        file["labels"] = np.ones((8, 8, 8), "uint32")
    image, labels = f"{tmp_path}/em.h5:raw", f"{tmp_path}/em.h5:labels"
    with pytest.raises(ParameterError, match="--voxel-size"):
        check_inputs(CampaignPlan(name="demo", image=image, labels=labels))
    assert check_inputs(CampaignPlan(name="demo", voxel_size_nm=(8, 8, 8), image=image, labels=labels)) == (8, 8, 8)


@pytest.mark.parametrize("real", [False, True])
def test_planned_tasks_are_valid_parameters_in_an_order_that_works(tmp_path: Path, real: bool) -> None:
    plan = volumes(tmp_path) if real else CampaignPlan(name="demo", seed=4)
    tasks = plan_preparation(plan, tmp_path, divide(PHANTOM_SHAPE, Geometry()), Geometry())
    known: set[str] = set()
    for task in tasks:
        load_stage(task.stage).parameters.from_json(task.parameters)
        assert set(task.after) <= known
        known.add(task.key)
    assert [task.stage for task in tasks] == [*([] if real else ["phantom"]), "ingest", "partition", "evaluation"]


def test_a_larger_checkpoint_sets_the_geometry(tmp_path: Path) -> None:
    wanted = Geometry()
    assert geometry_for(wanted, None) == wanted
    (tmp_path / "model.ckpt-1.index").write_bytes(b"")
    assert geometry_for(wanted, str(tmp_path / "model.ckpt-1")) == Geometry((33, 33, 33), (8, 8, 8))
    with pytest.raises(DataError, match="no such checkpoint"):
        geometry_for(wanted, str(tmp_path / "none"))
