"""Tables for pandas and events for TensorBoard: nothing twice after a resume, whatever a kill left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError
from apps.ffn.backend import import_tensorflow, start_tensorflow
from apps.ffn.summaries import EventFile, TableFile


@pytest.fixture(scope="module", autouse=True)
def threads() -> None:
    """As every test of this process has it: TensorFlow takes it once."""
    start_tensorflow(1)


def read_scalars(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all scalars in the folder's event files, in the order of files and records."""
    tf = import_tensorflow()
    return [
        (event.step, value.tag, value.simple_value)
        for file in sorted(folder.glob("*tfevents*"))
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    ]


def test_a_table_drops_what_the_checkpoint_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    file.write_text("left over from a run that was killed after its checkpoint\n")
    table = TableFile(file, ("step", "loss"), [(10, 0.5), (20, None)])
    table.append((30, 1 / 3))
    assert file.read_text() == "step,loss\n10,0.5\n20,\n30,0.333333333\n"
    frame = pd.read_csv(file)
    assert frame["step"].tolist() == [10, 20, 30]
    assert np.isnan(frame["loss"][1])


def test_tensorboard_reads_the_scalars(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "events", 0)
    events.add(5, {"training/loss": 0.5, "training/f1": None})
    # Before the file is closed: they are there as training goes.
    assert read_scalars(tmp_path / "events") == [(5, "training/loss", 0.5)]
    events.add(10, {"training/loss": 0.25, "training/f1": 0.75})
    events.close()
    assert read_scalars(tmp_path / "events")[1:] == [(10, "training/loss", 0.25), (10, "training/f1", 0.75)]
    tf = import_tensorflow()
    (file,) = (tmp_path / "events").iterdir()
    first = next(iter(tf.compat.v1.train.summary_iterator(str(file))))
    assert first.file_version == "brain.Event:2"


def test_events_of_abandoned_steps_are_gone_after_a_resume(tmp_path: Path) -> None:
    killed = EventFile(tmp_path, 0)
    for step in (5, 10, 15):
        killed.add(step, {"loss": float(step)})
    resumed = EventFile(tmp_path, 7)
    resumed.add(10, {"loss": -10.0})
    assert read_scalars(tmp_path) == [(5, "loss", 5.0), (10, "loss", -10.0)]
    # A TensorBoard that has read step 10 before it was taken out is told to forget it.
    tf = import_tensorflow()
    last = sorted(tmp_path.glob("*tfevents*"))[-1]
    starts = [event for event in tf.compat.v1.train.summary_iterator(str(last)) if event.HasField("session_log")]
    assert [(start.step, start.session_log.status) for start in starts] == [(8, tf.compat.v1.SessionLog.START)]


def test_a_torn_event_file_is_mended(tmp_path: Path) -> None:
    killed = EventFile(tmp_path, 0)
    killed.add(5, {"loss": 5.0})
    killed.add(10, {"loss": 10.0})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    EventFile(tmp_path, 10).add(15, {"loss": 15.0})
    assert read_scalars(tmp_path) == [(5, "loss", 5.0), (15, "loss", 15.0)]


def test_unwritable_places_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        EventFile(tmp_path / "file", 0)
    with pytest.raises(DataError, match="cannot be written"):
        TableFile(tmp_path / "none" / "curves.csv", ("step",), [])
