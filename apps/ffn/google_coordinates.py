"""google/ffn's file of training coordinates: a gzipped TFRecord of `tf.train.Example`.

Each record holds `center`, int64 [1, 3] xyz, and `label_volume_name`, bytes [1] (google/ffn's build_coordinates).  Both
directions go record by record.  Only TensorFlow's record files are used, which leaves its runtime unstarted: whoever
trains or infers afterwards still decides on its threads.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.core.errors import DataError
from apps.ffn.backend import import_tensorflow

Zyx = NDArray[np.int32]

BLOCK = 16384

_MOST = int(np.iinfo(np.int32).max)


def read_tfrecord(path: str | Path) -> dict[str, Zyx]:
    """Coordinates int32 [n, 3] zyx of each volume name, in the order of the file.

    Raises DataError that names the file where it is missing, damaged, cut short, empty, or of other records.
    """
    _check_gzip(Path(path))
    found: dict[bytes, list[Zyx]] = {}
    records = _records(str(path))
    while block := list(itertools.islice(records, BLOCK)):
        names = np.array([name for name, _ in block], object)
        zyx = np.array([xyz for _, xyz in block], np.int32)[:, ::-1]
        for name in set(names):
            found.setdefault(name, []).append(zyx[names == name])
    if not found:
        raise DataError(f"{path}: holds no coordinate; build it again from a labelled volume")
    return {_decoded(name, path): np.concatenate(parts) for name, parts in found.items()}


def write_tfrecord(path: str | Path, coordinates: Zyx, name: str) -> None:
    """Write coordinates int [n, 3] zyx of the volume `name`, the same bytes for the same coordinates.

    Writes in place: the caller gives a temporary name and renames it.  Raises DataError where it cannot be written.
    """
    tf = import_tensorflow()
    example = tf.train.Example()
    example.features.feature["label_volume_name"].bytes_list.value.append(name.encode())
    centre = example.features.feature["center"].int64_list.value
    centre.extend((0, 0, 0))
    try:
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for start in range(0, len(coordinates), BLOCK):
                for xyz in coordinates[start : start + BLOCK, ::-1].tolist():
                    centre[:] = xyz
                    # A map field has no order of its own; two runs have to write the same bytes.
                    writer.write(example.SerializeToString(deterministic=True))
    except tf.errors.OpError as error:
        raise DataError(f"{path}: cannot be written ({_first_line(error)}); give a writable place") from None


def _records(path: str) -> Iterator[tuple[bytes, list[int]]]:
    """Name and centre xyz of each record."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    tf = import_tensorflow()
    try:
        for number, record in enumerate(_open_records(tf, path)):
            # A message that is parsed into again and again keeps the memory of all; a new one costs no more.
            feature = tf.train.Example.FromString(record).features.feature
            # Asking a map for a key that it has not adds it, with no values.
            names, centre = feature["label_volume_name"].bytes_list.value, list(feature["center"].int64_list.value)
            if len(names) != 1 or len(centre) != 3 or min(centre) < 0 or max(centre) > _MOST:
                raise DataError(
                    f"{path}: record {number} has center {centre} and label_volume_name {list(names)}; expected "
                    "three voxels xyz and one name, as google/ffn's build_coordinates writes them"
                )
            yield names[0], centre
    except (tf.errors.OpError, DecodeError) as error:
        raise DataError(
            f"{path}: is not a whole TFRecord of training coordinates ({_first_line(error)}); build it again"
        ) from None


def _open_records(tf: Any, path: str) -> Iterator[bytes]:
    """TensorFlow's iterator over a gzipped TFRecord, without its advice to use one that starts the runtime."""
    logger, io = tf.get_logger(), tf.compat.v1.io
    level = logger.level
    logger.setLevel("ERROR")
    try:
        records: Iterator[bytes] = io.tf_record_iterator(path, io.TFRecordOptions(io.TFRecordCompressionType.GZIP))
    finally:
        logger.setLevel(level)
    return records


def _check_gzip(path: Path) -> None:
    """Read the compressed stream to its end: TensorFlow takes one that was cut between two records for whole."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected google/ffn's gzipped TFRecord of training coordinates")
    try:
        with gzip.open(path) as stream:
            while stream.read(2**20):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: is a damaged or cut-off gzip file ({error}); build it again") from error


def _decoded(name: bytes, path: str | Path) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds a label_volume_name that is no UTF-8 text, {name!r}; build it again") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
