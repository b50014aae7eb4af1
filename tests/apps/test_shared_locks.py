"""Locks that jobs share: NFS wants the file open for reading then, and for writing where one holds it alone."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import pytest

from apps.agglomeration import stage as agglomeration
from apps.alignment.locks import solving_alone, using_volume
from apps.core.parts import Part
from apps.synapses.records import Paths, hold
from tests.apps.agglomeration.samples import parameters


def _agglomeration(folder: Path, part: Part | None) -> AbstractContextManager[None]:
    given = parameters(folder, action="score", part=part)
    given.work_folder.mkdir(parents=True)
    return agglomeration._hold(given)


HOLDERS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "agglomeration, a part": lambda folder: _agglomeration(folder, Part(index=0, of=2)),
    "agglomeration, all": lambda folder: _agglomeration(folder, None),
    "synapses, a part": lambda folder: hold(Paths(folder), alone=False),
    "synapses, all": lambda folder: hold(Paths(folder), alone=True),
    "alignment, rendering": lambda folder: using_volume(folder, alone=False),
    "alignment, making": lambda folder: using_volume(folder, alone=True),
    "alignment, solving": solving_alone,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_file_is_open_for_what_its_lock_needs(holder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, modes = fcntl.flock, []

    def look(stream: IO[Any], operation: int) -> None:
        modes.append(fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE)
        flock(stream, operation)

    monkeypatch.setattr("fcntl.flock", look)
    with HOLDERS[holder](tmp_path):
        assert modes == [os.O_RDWR]
