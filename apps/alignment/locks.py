"""Who may work on one output at the same time.

One `solve` alone.  Any number that render or score, but none while the volume is made or grown: that waits until those
that are at work have ended, and they wait until it is done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apps.core.errors import StateError
from apps.core.files import lock, try_lock

_PATIENCE_S = 600.0  # longer than a group takes to render
_PAUSE_S = 0.1


@contextmanager
def solving_alone(output: Path) -> Iterator[None]:
    """Raises StateError where another process solves the same output."""
    path = output / "solve.lock"
    with path.open("a+b") as held:
        lock(held, path)
        yield


@contextmanager
def using_volume(output: Path, alone: bool) -> Iterator[None]:
    """Hold the volume, with others or alone.  Raises StateError where it is not to be had in ten minutes."""
    path = output / "volume.lock"
    end = time.monotonic() + _PATIENCE_S
    with path.open("a+b") as held:
        while not try_lock(held, shared=not alone):
            if time.monotonic() >= end:
                what = "renders or scores" if alone else "makes"
                raise StateError(f"{path}: another process still {what} the volume; wait for it, or end it first")
            time.sleep(_PAUSE_S)
        yield
