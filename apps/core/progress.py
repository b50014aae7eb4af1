"""Progress of long work: on a terminal a bar, in a job a small file that the driver reads, otherwise nothing."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

PROGRESS_FILE = "progress.json"


class Reporter(Protocol):
    """What a stage is given to say how far it is."""

    def __call__(self, done: float, total: float, what: str = "") -> None: ...


def silent(done: float, total: float, what: str = "") -> None:
    """A reporter that says nothing."""


class FileReporter:
    """Writes `progress.json` into a folder at most once a second: fraction done, and a word on what is being done."""

    def __init__(self, folder: Path, interval_s: float = 1.0) -> None:
        self._path = folder / PROGRESS_FILE
        self._interval_s = interval_s
        self._last = -math.inf

    def __call__(self, done: float, total: float, what: str = "") -> None:
        now = time.monotonic()
        if now - self._last < self._interval_s and done < total:
            return
        self._last = now
        # Progress is a courtesy: a full disk must not end the work it describes, nor need it reach the disk at once.
        with contextlib.suppress(OSError):
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps({"fraction": done / total if total else 1.0, "what": what}))
            partial.rename(self._path)


def read_progress(folder: Path) -> tuple[float, str]:
    """What a FileReporter last wrote in `folder`: fraction and word; (0, "") where there is nothing."""
    try:
        found = json.loads((folder / PROGRESS_FILE).read_text())
        return float(found["fraction"]), str(found["what"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0, ""


@contextlib.contextmanager
def terminal_reporter(title: str) -> Iterator[Reporter]:
    """A reporter that shows a bar on standard error where that is a terminal, and is silent elsewhere."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=1.0, what="")

        def report(done: float, total: float, what: str = "") -> None:
            progress.update(task, completed=done / total if total else 1.0, what=what)

        yield report


@contextlib.contextmanager
def stage_reporter(folder: Path, title: str) -> Iterator[Reporter]:
    """What `python -m apps.<stage>` uses: the file in `folder`, and the bar on a terminal."""
    to_file = FileReporter(folder)
    with terminal_reporter(title) as to_terminal:

        def report(done: float, total: float, what: str = "") -> None:
            to_file(done, total, what)
            to_terminal(done, total, what)

        yield report
