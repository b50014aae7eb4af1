"""Reading coordinate files: npz with and without a box, TFRecord, and what is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.ffn.coordinates import read_coordinates
from apps.ffn.google_coordinates import write_tfrecord

ZYX = np.array([[3, 4, 5], [6, 7, 8]], np.int32)


def test_npz_with_and_without_a_box(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    np.savez(file, zyx=ZYX.astype(np.uint16), fraction_class=np.zeros(2, np.uint8))
    found = read_coordinates(str(file)).of(None)
    assert found.zyx.dtype == np.int32 and found.zyx.tolist() == ZYX.tolist() and found.box is None
    np.savez(file, zyx=ZYX, box=np.array([[1, 2, 3], [10, 11, 12]]))
    found = read_coordinates(str(file)).of("any name")
    assert found.box == Box.of((1, 2, 3), (10, 11, 12))


def test_a_tfrecord_is_known_by_its_content(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "tf_record_file", ZYX, "validation1")
    file = read_coordinates(str(tmp_path / "tf_record_file"))
    for name in (None, "validation1"):
        assert file.of(name).zyx.tolist() == ZYX.tolist() and file.of(name).box is None
    with pytest.raises(DataError, match="no coordinate of a volume named 'other'; it has validation1"):
        file.of("other")


def test_several_volumes_need_a_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tfrecord(tmp_path / name, ZYX, name)
    both = tmp_path / "both.tfrecord.gz"
    both.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    file = read_coordinates(str(both))
    assert sorted(file.volumes) == ["a", "b"]
    with pytest.raises(DataError, match=r"both.tfrecord.gz: holds coordinates of several volumes, a, b"):
        file.of(None)


def test_bad_coordinate_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_coordinates(str(tmp_path / "none.npz"))
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(DataError, match=r"text.npz: is not a readable npz"):
        read_coordinates(str(tmp_path / "text.npz"))
    np.save(tmp_path / "array.npy", ZYX)
    with pytest.raises(DataError, match=r"array.npy: is not a readable npz"):
        read_coordinates(str(tmp_path / "array.npy"))
    np.savez(tmp_path / "empty.npz", zyx=np.zeros((0, 3), np.int32))
    with pytest.raises(DataError, match="holds no coordinate"):
        read_coordinates(str(tmp_path / "empty.npz"))
    np.savez(tmp_path / "floats.npz", zyx=np.zeros((4, 3)))
    with pytest.raises(DataError, match="float64"):
        read_coordinates(str(tmp_path / "floats.npz"))
    np.savez(tmp_path / "other.npz", xyz=np.zeros((4, 3), np.int32))
    with pytest.raises(DataError, match="zyx"):
        read_coordinates(str(tmp_path / "other.npz"))
    np.savez(tmp_path / "box.npz", zyx=ZYX, box=np.zeros(6, np.int64))
    with pytest.raises(DataError, match=r"box.npz: box is int64 of shape \(6,\)"):
        read_coordinates(str(tmp_path / "box.npz"))


def test_a_cut_off_npz_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", zyx=np.zeros((500, 3), np.int32))
    data = (tmp_path / "whole.npz").read_bytes()
    for length in (1, len(data) // 2, len(data) - 10):
        (tmp_path / "cut.npz").write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut.npz: is not a readable npz"):
            read_coordinates(str(tmp_path / "cut.npz"))
