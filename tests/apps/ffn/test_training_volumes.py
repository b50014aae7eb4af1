"""What is checked of the volumes of a training before any long work."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from apps.core.errors import DataError, ParameterError
from apps.core.volumes import open_volume, write_volume
from apps.ffn import google_coordinates
from apps.ffn.google_coordinates import write_tfrecord
from apps.ffn.training_volumes import TrainingVolume, open_training_volumes
from tests.apps.ffn.tiny import TinyData, tiny_data


def volume(data: TinyData, **more: object) -> TrainingVolume:
    given = {"image": data.image, "labels": data.labels, "coordinates": data.coordinates, **more}
    return TrainingVolume.from_json(given)


def test_what_is_named_is_opened(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    (opened,) = open_training_volumes([volume(data)])
    assert opened.image.name == data.image and opened.labels.name == data.labels and opened.mask is None
    assert opened.normalisation is None and opened.voxel_size_nm == (10.0, 10.0, 10.0)
    assert len(opened.coordinates.zyx) == 200
    (opened,) = open_training_volumes(
        [volume(data, mask=data.labels, image_mean=1.0, image_std=2.0, voxel_size_nm=(40.0, 8.0, 8.0))]
    )
    assert opened.mask is not None and opened.mask.name == data.labels
    assert opened.normalisation == (1.0, 2.0) and opened.voxel_size_nm == (40.0, 8.0, 8.0)


def test_hdf5_has_no_voxel_size_of_its_own(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["raw"] = open_volume(data.image).read()
    name = f"{tmp_path}/v.h5:raw"
    assert open_training_volumes([volume(data, image=name)])[0].voxel_size_nm is None
    assert open_training_volumes([volume(data, image=name, voxel_size_nm=(2, 1, 1))])[0].voxel_size_nm == (2, 1, 1)


def test_volumes_share_one_tfrecord_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path)
    for number, name in enumerate("ab"):
        write_tfrecord(tmp_path / name, np.full((2 + number, 3), 12 + number, np.int32), name)
    both = tmp_path / "both.tfrecord.gz"
    both.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    reads: list[str] = []
    read = google_coordinates.read_tfrecord

    def counted(path: str) -> dict[str, NDArray[np.int32]]:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(google_coordinates, "read_tfrecord", counted)
    given = [volume(data, coordinates=str(both), name=name) for name in ("b", "a")]
    opened = open_training_volumes(given)
    assert [one.coordinates.zyx.tolist() for one in opened] == [[[13] * 3] * 3, [[12] * 3] * 2]
    assert len(reads) == 1
    with pytest.raises(DataError, match="several volumes, a, b; give the volume's name"):
        open_training_volumes([volume(data, coordinates=str(both))])


def test_mean_and_deviation_go_together(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="image_mean and image_std go together"):
        volume(tiny_data(tmp_path), image_mean=128.0)


def test_bad_volumes_are_named(tmp_path: Path) -> None:
    data = tiny_data(tmp_path)
    shape = open_volume(data.image).shape
    write_volume(tmp_path / "small.zarr", np.zeros((8, 8, 8), np.uint32), (10.0, 10.0, 10.0))
    write_volume(tmp_path / "float.zarr", np.zeros(shape, np.float32), (10.0, 10.0, 10.0))
    small, floats = str(tmp_path / "small.zarr"), str(tmp_path / "float.zarr")
    for given, word in (
        ({"image": data.labels}, r"labels.zarr: has dtype uint32; expected uint8"),
        ({"image": str(tmp_path / "none.zarr")}, r"none.zarr: no such volume"),
        ({"labels": floats}, r"float.zarr: has dtype float32; expected integer labels"),
        ({"labels": small}, r"small.zarr: has the shape \(8, 8, 8\), but .*image.zarr"),
        ({"mask": floats}, r"float.zarr: has dtype float32; expected integer values"),
        ({"mask": small}, r"small.zarr: has the shape \(8, 8, 8\)"),
        ({"coordinates": str(tmp_path / "none.npz")}, r"none.npz: no such file"),
    ):
        with pytest.raises(DataError, match=word):
            open_training_volumes([volume(data, **given)])
    with pytest.raises(ParameterError, match="at least one"):
        open_training_volumes([])
