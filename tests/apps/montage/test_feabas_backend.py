"""The optional backend: what it asks for where Feabas is missing, and what is done with its answer."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from apps.core.errors import DataError, ParameterError
from apps.core.progress import silent
from apps.montage.parameters import MontageParameters
from apps.montage.records import SectionRecord
from apps.montage.stage import run
from tests.apps.montage.samples import cut, write


def parameters(folder: Path, **more: object) -> MontageParameters:
    section = cut(grid=(1, 2), seed=1)
    table = write(folder, {0: section})
    given = {"tiles": str(table), "output": str(folder / "out"), "search": 20, "backend": "feabas", **more}
    return MontageParameters.from_json(given)


def python_that(folder: Path, says: str) -> str:
    """A stand-in for the Python of an environment with Feabas: called with program, request and answer."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{says}\n")
    file.chmod(0o755)
    return str(file)


def test_without_feabas_it_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"has no module feabas.*pip install feabas.*feabas_python"):
        run(parameters(tmp_path, feabas_python=python_that(tmp_path, "exit 3")), silent)
    with pytest.raises(ParameterError, match="cannot be started"):
        run(parameters(tmp_path, feabas_python=str(tmp_path / "none")), silent)
    assert not list((tmp_path / "out").rglob("*.json"))


def test_its_failure_is_said_with_its_last_word(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exit code 1: no match at all"):
        run(parameters(tmp_path, feabas_python=python_that(tmp_path, "echo no match at all >&2; exit 1")), silent)


def test_its_offsets_are_solved_and_drawn(tmp_path: Path) -> None:
    answer = '{"matches": [[0, 1, 2.5, 99.25, 0.6]], "positions": [], "seconds": 1}'
    says = f'test -s "$2" && echo \'{answer}\' > "$3"'
    result = run(parameters(tmp_path, feabas_python=python_that(tmp_path, says)), silent)
    record = SectionRecord.load(result.sections[0].record)
    a, b = record.tiles
    assert (b.y - a.y, b.x - a.x) == pytest.approx((2.5, 99.25))
    assert record.pairs[0].confidence == 0.6 and record.pairs[0].used
    assert record.scores.overlap_correlation is not None and record.scores.overlap_correlation < 0.6


def test_the_program_ends_with_its_own_code_where_feabas_is_missing(tmp_path: Path) -> None:
    if importlib.util.find_spec("feabas") is not None:
        pytest.skip("feabas is installed here")
    with pytest.raises(ParameterError, match=f"{sys.executable} has no module feabas"):
        run(parameters(tmp_path), silent)
