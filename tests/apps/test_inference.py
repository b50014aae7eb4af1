"""The inference stage on a network whose weights are set by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.core.volumes import open_volume, write_volume
from apps.ffn.checkpoint import CheckpointInfo, save_checkpoint
from apps.ffn.model import ModelParameters, Weights, initial_weights
from apps.ffn.settings import InferenceSettings
from apps.inference.stage import InferenceParameters, run
from tests.apps.ffn.tiny import GOOGLE_CHECKPOINT, MEAN, STD, needs_fib25, tiny_data

MODEL = ModelParameters(depth=1, features=2, fov=(9, 9, 9), deltas=(2, 2, 2))
BOX = Box.of((0, 0, 0), (24, 32, 32))


def bright_is_object() -> Weights:
    """A network that says: what is brighter than the mean belongs to the object, the rest does not."""
    weights = {name: np.zeros_like(value) for name, value in initial_weights(MODEL, 0).items()}
    weights["conv0_a/weights"][1, 1, 1, 0, 0] = 1.0  # the image's bright part
    weights["conv0_b/weights"][1, 1, 1, 0, 0] = 1.0
    weights["conv_lom/weights"][0, 0, 0, 0, 0] = 30.0
    weights["conv_lom/biases"][0] = -5.0
    return weights


def parameters(folder: Path, weights: Weights | None = None, **fields: Any) -> InferenceParameters:
    info = CheckpointInfo(model=MODEL, image_mean=MEAN, image_std=STD, step=1, provenance={})
    save_checkpoint(folder / "checkpoint", info, weights or bright_is_object(), {})
    values: dict[str, Any] = {
        "image": tiny_data(folder).image,
        "model": str(folder / "checkpoint"),
        "box": BOX,
        "output": str(folder / "result" / "box.zarr"),
        "settings": InferenceSettings(min_size=100, segment=0.6),
    }
    return InferenceParameters(**{**values, **fields})


def test_tubes_are_segmented(tmp_path: Path) -> None:
    result = run(parameters(tmp_path), silent)
    found = open_volume(result.segmentation)
    assert (found.shape, found.dtype, found.voxel_size_nm) == ((24, 32, 32), np.uint32, (10.0, 10.0, 10.0))
    labels, truth = found.read(), open_volume(str(tmp_path / "labels.zarr")).read()
    assert result.objects == 4
    # A network that looks at single voxels takes some of the neighbours too; most of a tube is one object all the same.
    inside = [labels[truth == number] for number in range(1, 5)]
    mostly = [int(np.bincount(tube).argmax()) for tube in inside]
    assert sorted(mostly) == [1, 2, 3, 4]
    assert all(np.mean(tube == number) > 0.6 for tube, number in zip(inside, mostly, strict=True))
    assert not labels[truth == 0].any()
    table = pd.read_parquet(result.table)
    assert list(table.columns) == ["id", "z", "y", "x", "voxels", "steps"]
    assert list(table["id"]) == [1, 2, 3, 4]
    for number, z, y, x, voxels, _ in table.to_numpy().tolist():
        assert labels[z, y, x] == number
        assert np.count_nonzero(labels == number) == voxels
    assert result.voxels == np.count_nonzero(labels)
    assert result.steps >= table["steps"].sum()
    assert not result.truncated
    assert result.voxels_per_second > 0


def test_a_box_inside_the_volume_and_a_second_run_give_the_same_bytes(tmp_path: Path) -> None:
    box = Box.of((2, 0, 1), (20, 32, 16))
    first = run(parameters(tmp_path, box=box), silent)
    table, labels = pd.read_parquet(first.table), open_volume(first.segmentation).read()
    assert labels.shape == box.shape
    for number, z, y, x, _, _ in table.to_numpy().tolist():
        assert labels[z - 2, y, x - 1] == number
    again = run(parameters(tmp_path, box=box), silent)
    np.testing.assert_array_equal(open_volume(again.segmentation).read(), labels)
    pd.testing.assert_frame_equal(pd.read_parquet(again.table), table)


def test_an_endless_flood_is_cut_and_said(tmp_path: Path) -> None:
    settings = InferenceSettings(min_size=100, max_steps_per_cell=0.001)
    result = run(parameters(tmp_path, settings=settings), silent)
    assert result.truncated
    assert result.steps == 4  # 0.001 steps for each of 3,072 cells of 2 x 2 x 2 voxels, rounded up


def test_a_network_that_finds_nothing_gives_an_empty_volume(tmp_path: Path) -> None:
    silent_weights = {name: np.zeros_like(value) for name, value in bright_is_object().items()}
    silent_weights["conv_lom/biases"][0] = -9.0
    result = run(parameters(tmp_path, silent_weights), silent)
    assert (result.objects, result.voxels) == (0, 0)
    assert result.rejected == result.steps == result.seeds
    assert not open_volume(result.segmentation).read().any()
    assert len(pd.read_parquet(result.table)) == 0


def test_field_of_view_can_be_given(tmp_path: Path) -> None:
    small = run(parameters(tmp_path, fov=(5, 5, 5), deltas=(1, 1, 1)), silent)
    assert small.objects == 4


def test_bad_input_is_named_before_any_work(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"box": Box.of((0, 0, 0), (25, 32, 32))}, "leaves the volume"),
        ({"box": Box.of((0, 0, 0), (8, 32, 32))}, "smaller than the field of view"),
        ({"image": str(tmp_path / "labels.zarr")}, "expected uint8"),
        ({"image": str(tmp_path / "none.zarr")}, "none.zarr"),
        ({"model": str(tmp_path / "none")}, "no such checkpoint"),
    ]
    for fields, word in cases:
        with pytest.raises(DataError, match=word):
            run(parameters(tmp_path, **fields), silent)
    assert not (tmp_path / "result").exists()
    with pytest.raises(ParameterError, match=r"ends in .zarr"):
        parameters(tmp_path, output="labels.h5")
    with pytest.raises(ParameterError, match="odd"):
        run(parameters(tmp_path, fov=(8, 9, 9)), silent)


@needs_fib25
def test_a_google_checkpoint_needs_the_normalisation(tmp_path: Path) -> None:
    write_volume(tmp_path / "grey.zarr", np.full((34, 34, 34), 128, np.uint8), (10.0, 10.0, 10.0))
    fields: dict[str, Any] = {
        "image": str(tmp_path / "grey.zarr"),
        "box": Box.of((0, 0, 0), (34, 34, 34)),
        "model": GOOGLE_CHECKPOINT,
    }
    with pytest.raises(ParameterError, match="image_mean"):
        run(parameters(tmp_path, **fields), silent)
    result = run(parameters(tmp_path, **fields, image_mean=128.0, image_std=33.0), silent)
    assert (result.objects, result.seeds) == (0, 0)
