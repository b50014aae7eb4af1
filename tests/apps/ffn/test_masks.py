from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError, ParameterError
from apps.core.volumes import open_volume, write_volume
from apps.ffn.masks import MaskParameters, check_masks, read_masks

# One row of classes: 0 none, 1 tissue, 2 vessel, 3 soma.
CLASSES = np.array([0, 1, 2, 3, 1, 2], np.uint8).reshape(1, 1, 6)
ALL = Box.of((0, 0, 0), (1, 1, 6))


@pytest.fixture
def volume(tmp_path: Path) -> str:
    write_volume(tmp_path / "classes.zarr", CLASSES, (8.0, 4.0, 4.0))
    return str(tmp_path / "classes.zarr")


def excluded(*masks: MaskParameters, box: Box = ALL) -> list[int]:
    found = read_masks(masks, box)
    assert found is not None
    assert found.shape == box.shape
    assert found.dtype == np.bool_
    return np.flatnonzero(found).tolist()


def test_a_mask_excludes_what_is_not_zero(volume: str) -> None:
    assert excluded(MaskParameters(volume=volume)) == [1, 2, 3, 4, 5]
    assert excluded(MaskParameters(volume=volume, invert=True)) == [0]


def test_a_mask_excludes_its_values(volume: str) -> None:
    vessel = MaskParameters(volume=volume, values=(2,))
    assert excluded(vessel) == [2, 5]
    assert excluded(MaskParameters(volume=volume, values=(2, 3))) == [2, 3, 5]
    assert excluded(vessel, box=Box.of((0, 0, 1), (1, 1, 3))) == [1]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", ">i2", "int32", "uint64"])
def test_values_are_found_in_integers_of_any_kind(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(np.dtype(dtype))
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["mask"] = np.array([limits.min, 0, 7, 7, limits.max, 8], dtype).reshape(1, 1, 6)
    mask = MaskParameters(volume=f"{tmp_path}/mask.h5:mask", values=(7, int(limits.max), int(limits.min)))
    assert excluded(mask) == [*([0, 1] if limits.min == 0 else [0]), 2, 3, 4]


def test_a_tissue_mask_excludes_the_rest(volume: str) -> None:
    assert excluded(MaskParameters(volume=volume, values=(1,), invert=True)) == [0, 2, 3, 5]


def test_masks_add_up(volume: str) -> None:
    assert excluded(MaskParameters(volume=volume, values=(2,)), MaskParameters(volume=volume, values=(3,))) == [2, 3, 5]
    assert read_masks((), ALL) is None


def test_an_hdf5_mask(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mask.h5", "w") as file:
        file["vessels"] = CLASSES.astype(np.int16) - 2
    assert excluded(MaskParameters(volume=f"{tmp_path}/mask.h5:vessels", values=(-2,))) == [0]


def test_parameters_go_through_json(volume: str) -> None:
    mask = MaskParameters(volume=volume, values=(1, 2), invert=True)
    assert MaskParameters.from_json(mask.to_dict()) == mask
    with pytest.raises(ParameterError, match="values is empty"):
        MaskParameters(volume=volume, values=())


def test_masks_on_the_images_grid_pass(volume: str, tmp_path: Path) -> None:
    write_volume(tmp_path / "image.zarr", CLASSES, (8.0, 4.0, 4.0))
    check_masks([MaskParameters(volume=volume)], open_volume(str(tmp_path / "image.zarr")))
    with h5py.File(tmp_path / "image.h5", "w") as file:  # which says no voxel size
        file["raw"] = CLASSES
    check_masks([MaskParameters(volume=volume)], open_volume(f"{tmp_path}/image.h5:raw"))


@pytest.mark.parametrize(
    ("mask", "voxel_size", "message"),
    [
        (np.zeros((1, 1, 7), np.uint8), (8.0, 4.0, 4.0), r"shape \(1, 1, 7\).*\(1, 1, 6\)"),
        (np.zeros((1, 6, 1), np.uint8), (8.0, 4.0, 4.0), r"shape \(1, 6, 1\)"),
        (np.zeros((1, 1, 6), np.float32), (8.0, 4.0, 4.0), "float32; expected integers"),
        (np.zeros((1, 1, 6), np.uint8), (8.0, 8.0, 8.0), "voxels of .* nm"),
    ],
)
def test_masks_off_the_images_grid_are_refused(
    mask: Any, voxel_size: tuple[float, float, float], message: str, volume: str, tmp_path: Path
) -> None:
    write_volume(tmp_path / "mask.zarr", mask, voxel_size)
    with pytest.raises(DataError, match=rf"mask\.zarr: .*{message}"):
        check_masks([MaskParameters(volume=str(tmp_path / "mask.zarr"))], open_volume(volume))


def test_what_cannot_be_read_is_refused(volume: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such volume"):
        check_masks([MaskParameters(volume=str(tmp_path / "none.zarr"))], open_volume(volume))
    with pytest.raises(DataError, match=r"never holds the values \[256, -1\]"):
        read_masks([MaskParameters(volume=volume, values=(1, 256, -1))], ALL)
    with pytest.raises(DataError, match="leaves the volume"):
        read_masks([MaskParameters(volume=volume)], Box.of((0, 0, 1), (1, 1, 6)))
