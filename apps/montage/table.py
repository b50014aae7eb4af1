"""The tile table: which image lies where in which section, as microscopes write it.

CSV with a header, or a JSON list of objects; `path`, `section`, `x`, `y`, and further columns that nobody reads here.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from apps.core.errors import DataError

_NEAR = 50  # tiles about one, among which the next one and the one after it are

COLUMNS = ("path", "section", "x", "y")


@dataclass(frozen=True)
class TileRow:
    """One row of the table.

    Attributes:
        path: as the table names the image.
        file: the same from the root of the file system.
        section: its number.
        y, x: where the stage put the tile's first pixel, pixels.
    """

    path: str
    file: Path
    section: int
    y: float
    x: float


def read_table(path: str | Path) -> dict[int, tuple[TileRow, ...]]:
    """Section number -> its rows, in the table's order; sections in increasing order.

    Raises DataError, with the row in it, where the file is missing, is neither CSV nor JSON, lacks a column, or holds a
    value that is no number.
    """
    table = Path(path)
    if not table.is_file():
        raise DataError(f"{table}: no such file; expected a tile table (CSV or JSON) with {', '.join(COLUMNS)}")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table}: cannot be read as text ({error}); expected CSV or JSON in UTF-8") from error
    entries = _json_entries(table, text) if table.suffix.lower() == ".json" else _csv_entries(table, text)
    sections: dict[int, list[TileRow]] = {}
    for where, entry in entries:
        row = _row(table, where, entry)
        sections.setdefault(row.section, []).append(row)
    if not sections:
        raise DataError(f"{table}: lists no tiles; expected a row for each")
    return {section: tuple(sections[section]) for section in sorted(sections)}


def holes(rows: Sequence[TileRow]) -> list[tuple[float, float]]:
    """Places (y, x) of tiles that a section's rows lack though tiles are on both sides of them, in a row or a column.

    A step of the grid is what lies between most tiles and the next one.
    """
    if len(rows) < 3:
        return []
    stage = np.array([(row.y, row.x) for row in rows])
    near = stage[cKDTree(stage).query(stage, k=min(len(rows), _NEAR))[1]]
    found: list[tuple[float, float]] = []
    for axis in (0, 1):
        ahead = near[..., axis] - stage[:, None, axis]
        beside = np.abs(near[..., 1 - axis] - stage[:, None, 1 - axis])
        to_next = np.where((ahead > 0) & (beside < 0.5 * ahead), ahead, np.inf).min(axis=1)
        there = np.isfinite(to_next)
        if not there.any():
            continue
        step = float(np.median(to_next[there]))
        for y, x in stage[there & (np.abs(to_next - 2 * step) < 0.5 * step)]:
            place = (float(y) + step, float(x)) if axis == 0 else (float(y), float(x) + step)
            if all(max(abs(place[0] - other[0]), abs(place[1] - other[1])) >= 0.5 * step for other in found):
                found.append(place)
    return found


def _csv_entries(table: Path, text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        found = ", ".join(reader.fieldnames or ()) or "nothing"
        raise DataError(f"{table}: has no column {', '.join(missing)}; its first line names {found}")
    return [(f"line {reader.line_num}", dict(entry)) for entry in reader]


def _json_entries(table: Path, text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{table}: is not JSON ({error}); expected a list of objects") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{table}: expected a JSON list of objects with {', '.join(COLUMNS)}")
    return [(f"entry {index}", entry) for index, entry in enumerate(entries)]


def _row(table: Path, where: str, entry: dict[str, Any]) -> TileRow:
    values = {name: entry.get(name) for name in COLUMNS}
    absent = [name for name, value in values.items() if value is None or value == ""]
    if absent:
        raise DataError(f"{table}: {where} has no {', '.join(absent)}; every tile needs {', '.join(COLUMNS)}")
    try:
        section, x, y = (float(str(values[name])) for name in ("section", "x", "y"))
    except ValueError:
        raise DataError(f"{table}: {where} {values}: section, x and y have to be numbers") from None
    if not (math.isfinite(x) and math.isfinite(y) and section >= 0 and section.is_integer()):
        raise DataError(f"{table}: {where} {values}: expected a section number from 0 on, and finite x and y in pixels")
    name = str(values["path"])
    return TileRow(name, (table.parent / name).absolute(), int(section), y, x)
