"""Files of columns, and the lists of pairs that a user gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apps.core.errors import DataError
from apps.reconciliation.columns import read_columns, read_header, write_columns
from apps.reconciliation.pair_lists import read_pairs


def test_columns_come_back(tmp_path: Path) -> None:
    path = tmp_path / "unit.columns"
    columns = {"pairs.a": np.arange(5, dtype=np.uint32), "pairs.vi": np.array([0.5]), "none": np.empty(0, np.int64)}
    written = write_columns(path, {"content": "x"}, columns)
    header, found = read_columns(path)
    assert header == written == read_header(path)
    assert header.about == {"content": "x"}
    assert {name: (values.dtype, values.tolist()) for name, values in found.items()} == {
        name: (values.dtype, values.tolist()) for name, values in columns.items()
    }
    assert list(read_columns(path, ["pairs."])[1]) == ["pairs.a", "pairs.vi"]
    again = write_columns(tmp_path / "other", {"content": "y"}, columns)
    assert again.digest == header.digest, "it is of the columns alone"
    columns["pairs.a"] = columns["pairs.a"] + np.uint32(1)
    assert write_columns(path, {}, columns).digest != header.digest
    assert read_header(tmp_path / "gone") is None


@pytest.mark.parametrize("where", [3, 12, 30, -1])
def test_damage_is_noticed(tmp_path: Path, where: int) -> None:
    path = tmp_path / "unit.columns"
    write_columns(path, {}, {"a": np.arange(100)})
    data = bytearray(path.read_bytes())
    data[where] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"unit\.columns: is damaged; remove it"):
        read_columns(path)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(DataError, match="is damaged"):
        read_columns(path)


def test_a_missing_file_of_columns_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such file"):
        read_columns(tmp_path / "gone")


def test_pairs_are_read_from_csv_and_parquet(tmp_path: Path) -> None:
    large = (1 << 53) - 1
    table = pd.DataFrame({"note": ["x", "y", "z"], "b": [7, 16777217, 5], "a": [large, 3, 7]})
    table.to_csv(tmp_path / "pairs.csv", index=False)
    table.to_parquet(tmp_path / "pairs.parquet")
    expected = [[3, 16777217], [5, 7], [7, large]]
    for name in ("pairs.csv", "pairs.parquet"):
        found = read_pairs(str(tmp_path / name))
        assert found.dtype == np.uint64
        assert found.tolist() == expected
    assert read_pairs(None).shape == (0, 2)
    (tmp_path / "empty.csv").write_text("a,b\n")
    assert read_pairs(str(tmp_path / "empty.csv")).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,c\n1,2\n", "cannot be read as a table with the columns a and b"),
        ("a,b\n1.5,2\n", "column a is of type double"),
        ("a,b\n1,x\n", "column b is of type string"),
        ("a,b\n1,\n2,3\n", "column b"),
        ("a,b\n0,2\n", "column a holds 0"),
        ("a,b\n1,9007199254740992\n", "column b holds 9007199254740992"),
        ("a,b\n4,4\n", "names the pair 4, 4"),
    ],
)
def test_a_bad_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(str(path))
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        read_pairs(str(tmp_path / "none.csv"))
