"""What a training writes as it goes: tables that pandas reads, and TensorBoard's event files.

After a resume no step is there twice: the tables are rewritten from the rows that the checkpoint knows, and events of
steps past the checkpoint are taken out of the files of earlier runs.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apps.core.errors import DataError
from apps.core.files import write_atomically
from apps.ffn.backend import import_tensorflow

Values = Sequence[float | None]

# What TensorBoard looks for in the names of files, and the version of the format that has session starts.
EVENT_FILES, EVENT_VERSION = "events.out.tfevents", "brain.Event:2"
_numbers = itertools.count()


class TableFile:
    """A CSV file: rewritten from the rows known at the start, then appended to.  None is an empty field."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Iterable[Values]) -> None:
        text = ",".join(columns) + "\n" + "".join(_line(row) for row in rows)
        write_atomically(path, text.encode())
        self._path = path

    def append(self, row: Values) -> None:
        """Raises DataError where the file cannot be written."""
        try:
            with self._path.open("a") as stream:
                stream.write(_line(row))
        except OSError as error:
            raise DataError(f"{self._path}: cannot be written ({error.strerror or error}); free some space") from error


def _line(row: Values) -> str:
    return ",".join("" if value is None else f"{value:.9g}" for value in row) + "\n"


class EventFile:
    """Scalars of one run of a training, for TensorBoard: a TFRecord file of Event messages in `folder`."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step`: how many steps are done.  Events of later steps in the folder's files are removed.

        Raises DataError where the folder cannot be written.
        """
        tf = import_tensorflow()
        self._messages = tf.compat.v1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob(f"{EVENT_FILES}.*")):
                _keep_until(file, step)
            name = f"{EVENT_FILES}.{time.time_ns():020d}.{platform.node()}.{os.getpid()}.{next(_numbers)}"
            self._writer = tf.io.TFRecordWriter(str(folder / name))
            self._write(file_version=EVENT_VERSION)
            if step:
                # A TensorBoard that has been watching forgets from here on what it has seen before.
                start = self._messages.SessionLog(status=self._messages.SessionLog.START)
                self._write(step=step + 1, session_log=start)
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            raise DataError(f"{folder}: cannot be written ({error}); give a writable place") from error

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write one scalar per name (`group/quantity`); None is left out."""
        entry = self._messages.Summary.Value
        scalars = [entry(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        self._write(step=step, summary=self._messages.Summary(value=scalars))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write(self._messages.Event(wall_time=time.time(), **fields).SerializeToString())


def _keep_until(file: Path, step: int) -> None:
    """Rewrite an event file without the events of later steps, and without the torn end that a kill can leave."""
    tf = import_tensorflow()
    kept, whole = [], True
    try:
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            if event.step <= step:
                kept.append(event.SerializeToString())
            else:
                whole = False
    except tf.errors.DataLossError:
        whole = False
    if whole:
        return
    partial = file.with_name(f".{file.name}.partial")
    with tf.io.TFRecordWriter(str(partial)) as writer:
        for record in kept:
            writer.write(record)
    partial.replace(file)
