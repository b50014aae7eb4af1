"""Which task was the last to work on each part of a pipeline's outputs (a section's montage, the solve).

A task of the same key may have been done long ago, and its result replaced since by one of other parameters: then it
has to be done again.  Balsam's jobs cannot tell that; this file can.  It is written before tasks are submitted: a task
that has ended well, and that no other was begun after, is what its parts of the output hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from apps.core.errors import DataError
from apps.core.parameters import write_json
from ensemble.jobs import Task

LEDGER_FILE = "latest.json"


class Ledger:
    """`latest.json` in a campaign's folder: part -> key of the task that was begun last.

    A task's parts are its `claims`, or what its key says before the hash: two tasks that write the same have a part in
    common, however the work is divided.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER_FILE
        self._latest: dict[str, str] = {}
        if self._file.is_file():
            try:
                self._latest = dict(json.loads(self._file.read_text()))
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{self._file}: is damaged ({error}); remove it: stages then look at their work again"
                ) from error

    def is_latest(self, task: Task) -> bool:
        return all(self._latest.get(part) == task.key for part in _parts(task))

    def begin(self, tasks: Iterable[Task]) -> None:
        """Write down that these tasks are about to be submitted."""
        new = {part: task.key for task in tasks for part in _parts(task)}
        if new:
            self._latest |= new
            write_json(self._file, self._latest)


def _parts(task: Task) -> tuple[str, ...]:
    return task.claims or (task.key.rpartition("-")[0],)
