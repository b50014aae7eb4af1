"""What a long command shows: bars on a terminal, one line an event elsewhere (a log file, a CI job)."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from apps.core.progress import read_progress
from apps.core.stage import RESULT_FILE
from ensemble.workflow import Jobs

Folders = Callable[[], dict[str, Path]]

BARS_S, LINES_S = 0.5, 60.0  # how often running jobs are looked at, for bars and for a log
LOG_WIDTH = 160  # characters
MOST = 4  # jobs that a line of a log names


def output_console() -> Console:
    """Standard output, for tables: as wide as the terminal; in a log, so wide that names and paths stay whole."""
    return Console(width=None if sys.stdout.isatty() else LOG_WIDTH, highlight=False)


class Update(Protocol):
    """Says how far a phase is: `done` of `total`, and with what words, where those are not the numbers."""

    def __call__(self, done: int, total: int, what: str = "") -> None: ...


def last_part(key: str) -> str:
    """What a task is called among those of one phase."""
    return key.rpartition("/")[2]


def job_folders(jobs: Jobs, keys: Iterable[str], name: Callable[[str], str] = last_part) -> dict[str, Path]:
    """Name, made from the key -> work directory, of the tasks that have no result yet."""
    folders = {name(key): jobs.workdir(key) for key in keys}
    return {label: folder for label, folder in folders.items() if not (folder / RESULT_FILE).exists()}


class Display:
    """Phases of a command, each with a bar, and under it a bar for every job that runs; in a log a line a minute.

    Use as a context manager.  Job bars are fed by the `progress.json` files that stages write in their folders.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>4.0f}%"),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._stop = threading.Event()
        self._folders: Folders | None = None
        self._bars: dict[str, TaskID] = {}
        self._said = ""
        self._lock = threading.Lock()  # the bars belong to the watching thread and to the one that ends a phase
        self._thread = threading.Thread(target=self._watch, name="display", daemon=True)

    def __enter__(self) -> Display:
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._clear()
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays; not broken in a log, so that paths in it can be copied and searched for."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say that `what` is being done, on a terminal with a bar that moves, and at its end how long it took."""
        begin = time.monotonic()
        bar = self._progress.add_task(what, total=None, what="")
        if not self.console.is_terminal:
            self.say(f"{what} ...")
        try:
            yield
        finally:
            self._progress.remove_task(bar)
        self.say(f"{what}: {time.monotonic() - begin:.1f} s")

    @contextlib.contextmanager
    def phase(self, title: str, folders: Folders | None = None) -> Iterator[Update]:
        """A bar named `title`; yields its `update`.  `folders`: label -> folder of the jobs that run now."""
        bar = self._progress.add_task(title, total=None, what="")
        if not self.console.is_terminal:
            self.say(f"{title} ...")
        self._folders = folders
        last: Any = None

        def update(done: int, total: int, what: str = "") -> None:
            nonlocal last
            self._progress.update(bar, completed=done, total=total, what=what or f"{done} of {total}")
            # A line for every percent where the steps have a text of their own: there may be millions of them.
            now = (100 * done // max(total, 1), total) if what else (done, total)
            if not self.console.is_terminal and last != now:
                self.say(f"{title}: {what or f'{done} of {total}'}")
            last = now

        try:
            yield update
        finally:
            self._folders = None
            self._clear()
            self._progress.stop_task(bar)

    def _watch(self) -> None:
        show = self._show if self.console.is_terminal else self._tell
        while not self._stop.wait(BARS_S if self.console.is_terminal else LINES_S):
            folders = self._folders
            if folders is not None:
                with self._lock:
                    show(folders())

    def _show(self, folders: dict[str, Path]) -> None:
        for label in set(self._bars) - set(folders):
            self._progress.remove_task(self._bars.pop(label))
        for label, folder in folders.items():
            fraction, what = read_progress(folder)
            if label not in self._bars and fraction > 0:
                self._bars[label] = self._progress.add_task(f"  {label}", total=1.0, what=what)
            if label in self._bars:
                self._progress.update(self._bars[label], completed=fraction, what=what)

    def _tell(self, folders: dict[str, Path]) -> None:
        """A line on those that run, where it is another than the last."""
        found = ((label, *read_progress(folder)) for label, folder in folders.items())
        running = [f"{label} {100 * fraction:.0f} % {what}".rstrip() for label, fraction, what in found if fraction > 0]
        if not running:
            return
        more = f" and {len(running) - MOST} more" if len(running) > MOST else ""
        line = f"  under way: {', '.join(running[:MOST])}{more}"
        if line != self._said:
            self.say(line)
        self._said = line

    def _clear(self) -> None:
        with self._lock:
            for bar in self._bars.values():
                self._progress.remove_task(bar)
            self._bars.clear()
