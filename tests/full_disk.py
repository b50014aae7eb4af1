"""What stands for a disk that is full: no file of this process may grow above so many bytes."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator

import pytest

from apps.core.errors import EnsembleError, FailureKind, kind_of


@contextlib.contextmanager
def little_room(file_bytes: int) -> Iterator[None]:
    """The kernel refuses to write past it, with EFBIG: a real error of a real write (Python ignores the signal)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def refused_for_want_of_room(match: str) -> Iterator[None]:
    """The block raises an error of ours that says so, and is told from parameters that cannot work."""
    with pytest.raises(EnsembleError, match=match) as told:
        yield
    assert kind_of(told.value) is FailureKind.NO_ROOM
