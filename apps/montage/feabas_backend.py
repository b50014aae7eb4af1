"""The other way to measure offsets: Feabas, in a process of its own, which may be of another environment."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from apps.core.errors import DataError, ParameterError
from apps.montage.offsets import Extent
from apps.montage.records import Point
from apps.montage.table import TileRow

PROGRAM = Path(__file__).with_name("feabas_program.py")
_NOT_INSTALLED = 3  # exit code of the program

Matches = dict[tuple[int, int], tuple[Point, float]]


def match_with_feabas(rows: list[TileRow], shape: Extent, search: int, min_overlap: int, python: str | None) -> Matches:
    """(a, b) -> offset (y, x) of b to a, and confidence, for the pairs that Feabas finds matches in.

    Tiles are indices into `rows`, all of `shape`; a < b.  Raises ParameterError, with what to install, where `python`
    is none or has no feabas; DataError where Feabas fails.
    """
    interpreter = python or sys.executable
    request = {
        "paths": [str(row.file) for row in rows],
        "boxes": [[row.x, row.y, row.x + shape[1], row.y + shape[0]] for row in rows],
        "margin": search,
        "min_overlap": min_overlap,
    }
    with tempfile.TemporaryDirectory(prefix="ensemble-feabas-") as name:
        asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
        asked.write_text(json.dumps(request))
        try:
            done = subprocess.run(
                [interpreter, str(PROGRAM), str(asked), str(answered)],
                cwd=name,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise ParameterError(f"feabas_python {interpreter}: cannot be started ({error.strerror})") from error
        if done.returncode == _NOT_INSTALLED:
            raise ParameterError(
                f"backend feabas: {interpreter} has no module feabas; make an environment that has "
                "(python -m venv feabas && feabas/bin/pip install feabas) and name its Python as feabas_python, "
                'or take backend "own"'
            )
        if done.returncode or not answered.is_file():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise DataError(f"backend feabas: failed on {rows[0].file.parent} with exit code {done.returncode}: {last}")
        answer = json.loads(answered.read_text())
    return {(int(a), int(b)): ((float(y), float(x)), float(confidence)) for a, b, y, x, confidence in answer["matches"]}
