"""google/ffn's TFRecord of coordinates: written as TensorFlow's own parser reads it, read as TensorFlow writes it."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.ffn import google_coordinates
from apps.ffn.backend import import_tensorflow
from apps.ffn.google_coordinates import read_tfrecord, write_tfrecord


def records(path: Path) -> list[bytes]:
    """The records of a file, through TensorFlow in a way that the code does not take."""
    tf = import_tensorflow()
    return [record.numpy() for record in tf.data.TFRecordDataset(str(path), compression_type="GZIP")]


def record(center: list[int] | None, name: bytes | None, more: bool = False) -> bytes:
    tf = import_tensorflow()
    feature: dict[str, Any] = {}
    if center is not None:
        feature["center"] = tf.train.Feature(int64_list=tf.train.Int64List(value=center))
    if name is not None:
        feature["label_volume_name"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[name]))
    if more:
        feature["weight"] = tf.train.Feature(float_list=tf.train.FloatList(value=[0.5]))
    result: bytes = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    return result


def write_records(path: Path, content: list[bytes]) -> None:
    tf = import_tensorflow()
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for one in content:
            writer.write(one)


def test_what_is_written_is_what_google_ffn_parses(tmp_path: Path) -> None:
    tf = import_tensorflow()
    write_tfrecord(tmp_path / "c.tfrecord.gz", np.array([[1, 2, 3], [70000, 5, 6]], np.int32), "größe")
    form = {
        "center": tf.io.FixedLenFeature(shape=[1, 3], dtype=tf.int64),
        "label_volume_name": tf.io.FixedLenFeature(shape=[1], dtype=tf.string),
    }
    parsed = [tf.io.parse_single_example(one, form) for one in records(tmp_path / "c.tfrecord.gz")]
    assert [one["center"].numpy().tolist() for one in parsed] == [[[3, 2, 1]], [[6, 5, 70000]]]
    assert [one["label_volume_name"].numpy().tolist() for one in parsed] == [["größe".encode()]] * 2


def test_round_trip_over_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google_coordinates, "BLOCK", 64)
    zyx = np.random.default_rng(0).integers(0, 5000, (200, 3)).astype(np.int32)
    write_tfrecord(tmp_path / "a.gz", zyx, "a")
    write_tfrecord(tmp_path / "b.gz", zyx[:70], "b")
    found = read_tfrecord(tmp_path / "a.gz")
    assert list(found) == ["a"] and found["a"].dtype == np.int32
    np.testing.assert_array_equal(found["a"], zyx)
    mixed = [one for pair in zip(records(tmp_path / "a.gz"), records(tmp_path / "b.gz"), strict=False) for one in pair]
    write_records(tmp_path / "mixed.gz", mixed)
    found = read_tfrecord(tmp_path / "mixed.gz")
    np.testing.assert_array_equal(found["a"], zyx[:70])
    np.testing.assert_array_equal(found["b"], zyx[:70])


def test_the_same_coordinates_give_the_same_bytes(tmp_path: Path) -> None:
    zyx = np.arange(300, dtype=np.int32).reshape(100, 3)
    for name in ("one.gz", "two.gz"):
        write_tfrecord(tmp_path / name, zyx, "v")
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_other_features_are_ignored(tmp_path: Path) -> None:
    write_records(tmp_path / "c.gz", [record([7, 8, 9], b"v", more=True)])
    assert read_tfrecord(tmp_path / "c.gz")["v"].tolist() == [[9, 8, 7]]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([], "holds no coordinate"),
        ([record([1, 2, 3], b"v"), record([1, 2], b"v")], r"record 1 has center \[1, 2\]"),
        ([record(None, b"v")], r"record 0 has center \[\]"),
        ([record([1, 2, 3], None)], r"label_volume_name \[\]"),
        ([record([1, 2, -3], b"v")], r"center \[1, 2, -3\]"),
        ([record([1, 2, 2**40], b"v")], "center"),
        ([record([1, 2, 3], b"\xff")], "no UTF-8"),
        ([b"\xff\xff\xff\xff"], "not a whole TFRecord"),
    ],
)
def test_records_of_another_form_are_named(tmp_path: Path, content: list[bytes], word: str) -> None:
    write_records(tmp_path / "bad.gz", content)
    with pytest.raises(DataError, match=f"bad.gz: .*{word}"):
        read_tfrecord(tmp_path / "bad.gz")


def test_a_file_that_is_cut_off_anywhere_is_named(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "whole.gz", np.random.default_rng(0).integers(0, 999, (300, 3)).astype(np.int32), "v")
    data = (tmp_path / "whole.gz").read_bytes()
    for length in (0, 5, len(data) // 3, len(data) // 2, len(data) - 8, len(data) - 1):
        (tmp_path / "cut.gz").write_bytes(data[:length])
        with pytest.raises(DataError, match=r"cut.gz: "):
            read_tfrecord(tmp_path / "cut.gz")
    # Cut before it was compressed: the gzip file is whole, the last record is not.
    plain = gzip.decompress(data)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(plain[:-20]))
    with pytest.raises(DataError, match=r"cut.gz: is not a whole TFRecord"):
        read_tfrecord(tmp_path / "cut.gz")


def test_damaged_bytes_are_named(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "c.gz", np.arange(300, dtype=np.int32).reshape(100, 3), "v")
    data = bytearray((tmp_path / "c.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "c.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"c.gz: is a damaged or cut-off gzip file"):
        read_tfrecord(tmp_path / "c.gz")
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"x" * 40))
    with pytest.raises(DataError, match=r"c.gz: is not a whole TFRecord"):
        read_tfrecord(tmp_path / "c.gz")


def test_a_missing_file_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_tfrecord(tmp_path / "none.gz")
    with pytest.raises(DataError, match="cannot be written"):
        write_tfrecord(tmp_path / "nowhere" / "c.gz", np.zeros((1, 3), np.int32), "v")


def test_reading_leaves_the_number_of_threads_open(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "c.gz", np.zeros((1, 3), np.int32), "v")
    code = (
        "from apps.ffn.google_coordinates import read_tfrecord; from apps.ffn.backend import start_tensorflow\n"
        f"read_tfrecord({str(tmp_path / 'c.gz')!r})\n"
        "tf = start_tensorflow(3); tf.zeros(1)\n"
        "assert tf.config.threading.get_intra_op_parallelism_threads() == 3"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
