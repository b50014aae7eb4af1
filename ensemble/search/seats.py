"""The seats of a search: one a driver, held while it lives.

Several drivers may share one search.  Each holds a seat: a number, and the kernel's lock on a file of that number in
the search's folder.  The lock ends with the process, however that ends, so that the others can tell whose trials
nobody looks after any more.  The folder must be on a file system where locks hold between the machines of the drivers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apps.core.errors import DataError
from apps.core.files import is_locked, try_lock


@dataclass(frozen=True)
class Seat:
    """A driver's place in a search: `number` 0, 1, ..., among the seats of `folder`."""

    number: int
    folder: Path

    def taken(self, number: int) -> bool:
        """Whether a driver holds the seat of that number: this one, or another that lives."""
        return number == self.number or is_locked(_file(self.folder, number))

    def others(self) -> list[int]:
        """The seats that other drivers hold."""
        return [number for number in held_seats(self.folder) if number != self.number]


@contextlib.contextmanager
def take_seat(folder: Path) -> Iterator[Seat]:
    """Hold the lowest free seat of the search in `folder`.  Raises DataError where the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                if try_lock(stack.enter_context(_file(folder, number).open("a"))):
                    break
        except OSError as error:
            raise DataError(
                f"{folder}: no driver can hold a place there ({os.strerror(error.errno or 0)}); give the campaign a "
                "writable folder, on a file system with locks"
            ) from error
        yield Seat(number, folder)


def held_seats(folder: Path) -> list[int]:
    """The seats of the search in `folder` that drivers hold just now, in order."""
    numbers = sorted(int(file.suffixes[0][1:]) for file in folder.glob("driver.*.lock"))
    return [number for number in numbers if is_locked(_file(folder, number))]


def _file(folder: Path, number: int) -> Path:
    return folder / f"driver.{number}.lock"
