"""The table of synapses: as it is written, as it is read, and labels at its points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from apps.core.boxes import Box
from apps.core.errors import DataError
from apps.core.volumes import open_volume, write_volume
from apps.synapses.table import COLUMNS, SynapseTable, read_synapses, sample_labels, write_synapses
from tests.apps.synapses.samples import table

HEADER = "id,pre,post,z,y,x,pre_z,pre_y,pre_x,post_z,post_y,post_x,direction_z,direction_y,direction_x"
LARGE = 2**64 - 1


def test_what_is_written_is_read(tmp_path: Path) -> None:
    synapses = table([(1.5, 2, 3), (4, 5.25, 6)], [(LARGE, 0), (2**53 + 1, 7)])
    write_synapses(tmp_path / "synapses.parquet", synapses)
    assert tuple(parquet.read_schema(tmp_path / "synapses.parquet").names) == COLUMNS
    again = read_synapses(tmp_path / "synapses.parquet")
    for name, array in vars(synapses).items():
        np.testing.assert_array_equal(getattr(again, name), array)
        assert getattr(again, name).dtype == array.dtype


def test_no_synapses(tmp_path: Path) -> None:
    write_synapses(tmp_path / "none.parquet", SynapseTable.none())
    assert len(read_synapses(tmp_path / "none.parquet")) == 0


def test_a_truth_in_csv(tmp_path: Path) -> None:
    file = tmp_path / "synapses.csv"
    file.write_text(f"{HEADER},diameter\n5,{LARGE},9,1,2,3,0,2,3,2.5,2,3,1,0,0,12.5\n")
    found = read_synapses(file)
    assert (found.id[0], found.partners[0].tolist()) == (5, [LARGE, 9])
    assert found.points[0].tolist() == [[0, 2, 3], [2.5, 2, 3]]
    assert (found.confidence[0], found.voxels[0]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,pre\n1,2\n", "lacks the columns post, z"),
        (f"{HEADER}\n1,2,3,inf,0,0,0,0,0,0,0,0,1,0,0\n", "centre holds NaN"),
        (f"{HEADER}\n1,2,3,,0,0,0,0,0,0,0,0,1,0,0\n", "the column z has empty places"),
        (f"{HEADER}\n1,2,3,here,0,0,0,0,0,0,0,0,1,0,0\n", "is no table of synapses"),
        (f"{HEADER}\n1,-2,3,0,0,0,0,0,0,0,0,0,1,0,0\n", "is no table of synapses"),
        (f"{HEADER},z\n1,2,3,0,0,0,0,0,0,0,0,0,1,0,0,9\n", "has the columns z more than once"),
        (f"{HEADER}\n" + 2 * "1,2,3,0,0,0,0,0,0,0,0,0,1,0,0\n", "same id"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_synapses(file)
    assert str(file) in str(error.value)


def test_no_file_and_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_synapses(tmp_path / "none.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="is no table of synapses"):
        read_synapses(tmp_path / "damaged.parquet")


def test_within_a_box() -> None:
    synapses = table([(0, 0, 0), (0, 0, 3.4), (0, 0, 3.6)])
    assert synapses.within(Box.of((0, 0, 0), (1, 1, 4))).id.tolist() == [1, 2]


def test_labels_at_points(tmp_path: Path) -> None:
    labels = np.arange(1, 6 * 7 * 8 + 1, dtype=np.uint64).reshape(6, 7, 8) + np.uint64(2**60)
    write_volume(tmp_path / "labels.zarr", labels, (1, 1, 1), chunks=(3, 4, 5))
    volume = open_volume(str(tmp_path / "labels.zarr"))
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, (6, 7, 8), (40, 2, 3))
    points = (voxels + rng.uniform(-0.4, 0.4, voxels.shape)).astype(np.float64)
    found = sample_labels(volume, points)
    np.testing.assert_array_equal(found, labels[tuple(np.moveaxis(voxels, -1, 0))])
    np.testing.assert_array_equal(sample_labels(volume, points + 10, (10, 10, 10)), found)
    assert sample_labels(volume, np.array([[-1.0, 0, 0], [6, 0, 0], [0.2, 0, 0]])).tolist() == [0, 0, 2**60 + 1]
    assert sample_labels(volume, np.zeros((0, 2, 3))).shape == (0, 2)
