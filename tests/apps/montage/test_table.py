"""The tile table as microscopes write it, and one clear error for everything that can be wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apps.core.errors import DataError
from apps.montage.table import TileRow, holes, read_table


def table(folder: Path, text: str, name: str = "tiles.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_csv_with_further_columns_in_any_order(tmp_path: Path) -> None:
    rows = read_table(
        table(tmp_path, "x, y, tilt, path, section\n1.5,2,0,a.tif,7\n3,4,0,/abs/b.png,2\n5,6,0,c.tif,7\n")
    )
    assert list(rows) == [2, 7]
    assert [(row.path, row.y, row.x) for row in rows[7]] == [("a.tif", 2.0, 1.5), ("c.tif", 6.0, 5.0)]
    assert rows[7][0].file == tmp_path / "a.tif" and rows[2][0].file == Path("/abs/b.png")


def test_json_says_the_same(tmp_path: Path) -> None:
    entries = [{"path": "a.tif", "section": 0, "x": 1, "y": 2.5, "dwell": "3us"}]
    (row,) = read_table(table(tmp_path, json.dumps(entries), "tiles.json"))[0]
    assert (row.path, row.section, row.y, row.x) == ("a.tif", 0, 2.5, 1.0)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tiles.csv", "path,section,x\na.tif,0,1\n", "no column y"),
        ("tiles.csv", "", "no column path, section, x, y"),
        ("tiles.csv", "path,section,x,y\n", "lists no tiles"),
        ("tiles.csv", "path,section,x,y\na.tif,0,1,2\nb.tif,0,,2\n", "line 3 has no x"),
        ("tiles.csv", "path,section,x,y\na.tif,zero,1,2\n", "have to be numbers"),
        ("tiles.csv", "path,section,x,y\na.tif,0.5,1,2\n", "section number"),
        ("tiles.csv", "path,section,x,y\na.tif,0,nan,2\n", "finite x and y"),
        ("tiles.csv", "path,section,x,y\na.tif,0,1,-inf\n", "finite x and y"),
        ("tiles.csv", "path,section,x,y\na.tif,-1,1,2\n", "section number from 0 on"),
        ("tiles.json", "{}", "expected a JSON list"),
        ("tiles.json", "[{]", "is not JSON"),
        ("tiles.json", '[{"path": "a", "section": 0, "x": 1}]', "entry 0 has no y"),
    ],
)
def test_a_wrong_table_is_one_clear_error(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(table(tmp_path, text, name))


def test_a_missing_table_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "tiles.csv")
    (tmp_path / "tiles.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_table(tmp_path / "tiles.csv")


def grid(without: tuple[int, ...] = (), jitter: float = 5.0) -> list[TileRow]:
    """A 3 x 4 grid with steps of 100 and 80, read back from the stage with some jitter, without some of its tiles."""
    rng = np.random.default_rng(0)
    places = [
        (100.0 * i + rng.uniform(-jitter, jitter), 80.0 * j + rng.uniform(-jitter, jitter))
        for i in range(3)
        for j in range(4)
    ]
    return [TileRow(str(n), Path(str(n)), 0, y, x) for n, (y, x) in enumerate(places) if n not in without]


def test_a_tile_between_others_that_the_table_does_not_have() -> None:
    assert holes(grid()) == [] and holes(grid()[:1]) == [] and holes([]) == []
    ((y, x),) = holes(grid((5,)))
    assert abs(y - 100) < 12 and abs(x - 80) < 12
    assert len(holes(grid((1, 7)))) == 2
    assert holes(grid((0, 3))) == []  # a corner may just not have been imaged
