"""Which task was the last to work on each unit of a pipeline (a section's montage, the solve).

A task of the same key may have been done long ago, and its result replaced since by one of other parameters: then it
has to be done again.  Balsam's jobs cannot tell that; this file can.  It is written before tasks are submitted: a task
that has ended well, and that no other was begun after, is what its unit's output holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from apps.core.errors import DataError
from apps.core.parameters import write_json
from ensemble.pipeline.planners.contract import unit_of

LEDGER_FILE = "latest.json"


class Ledger:
    """`latest.json` in a campaign's folder: unit -> key of the task that was begun last."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / LEDGER_FILE
        self._latest: dict[str, str] = {}
        if self._file.is_file():
            try:
                self._latest = dict(json.loads(self._file.read_text()))
            except ValueError as error:
                raise DataError(
                    f"{self._file}: is damaged ({error}); remove it: stages then look at their work again"
                ) from error

    def is_latest(self, key: str) -> bool:
        return self._latest.get(unit_of(key)) == key

    def begin(self, keys: Iterable[str]) -> None:
        """Write down that these tasks are about to be submitted."""
        new = {unit_of(key): key for key in keys}
        if new:
            self._latest |= new
            write_json(self._file, self._latest)
