"""Where an output of many files is made: beside its name, until all of it is there.

Work in the making lies under a name with the hash of all that it depends on, so that what was begun with other
parameters is never taken up; the output gets its name when it is complete, with a note of what it was made of.
"""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.core.errors import DataError, StateError
from apps.core.files import lock, replace_folder
from apps.core.parameters import json_hash, write_json

PROVENANCE = "provenance.json"
_REMOVED = ".removed"


@dataclass(frozen=True)
class Workplace:
    """Where the output is to be, and where it is made.

    Attributes:
        output: the folder.
        stage: which makes it.
        identity: what it depends on, as JSON.
    """

    output: Path
    stage: str
    identity: dict[str, Any]

    @property
    def hash(self) -> str:
        return json_hash(self.identity)

    @property
    def folder(self) -> Path:
        """All work in the making."""
        return self.output.with_name(f".{self.output.name}-{self.hash}")

    @property
    def result(self) -> Path:
        """The output in the making."""
        return self.folder / "result"

    def made(self) -> dict[str, Any] | None:
        """What the output says of itself, where it is complete and just this; None otherwise.

        Raises StateError where something else is there, which is not replaced.
        """
        if not self.output.exists():
            return None
        try:
            found: dict[str, Any] = json.loads((self.output / PROVENANCE).read_text())
            stage, identity = found["stage"], found["identity"]
        except (OSError, ValueError, KeyError, TypeError):
            stage, identity = "", None
        if stage != self.stage:
            raise StateError(f"{self.output}: is there and was not made by the stage {self.stage}; give another place")
        return found if identity == self.hash else None

    def leftovers(self) -> list[Path]:
        """What this run or earlier ones have in the making for this output."""
        return list(self.output.parent.glob(f".{glob.escape(self.output.name)}-{'[0-9a-f]' * 16}*"))

    def clear(self) -> None:
        """Remove the leftovers."""
        # What a killed run was removing goes first: it has the name that the others get.
        for folder in sorted(self.leftovers(), key=lambda path: not path.name.endswith(_REMOVED)):
            # Renamed first: a kill must not leave half of it under a name by which it would be taken up.
            going = folder.with_name(folder.name.removesuffix(_REMOVED) + _REMOVED)
            folder.rename(going)
            shutil.rmtree(going)

    def publish(self, totals: dict[str, float]) -> None:
        """Give the complete result the output's name, in place of an earlier one, and remove what is left over."""
        note = {"stage": self.stage, "identity": self.hash, "of": self.identity, "totals": totals}
        write_json(self.result / PROVENANCE, note)
        replace_folder(self.result, self.output)
        self.clear()

    def is_complete(self, alone: bool) -> bool:
        """Whether the output is there and just this; one that is alone then removes what a killed run has left."""
        if self.made() is None:
            return False
        if alone and self.leftovers():
            with self.hold(alone=True):
                self.clear()
        return True

    @contextlib.contextmanager
    def hold(self, alone: bool) -> Iterator[None]:
        """Keep others from the work: jobs may each do a part, one that completes it has to be alone.

        Raises StateError where another process is at work, and DataError where nothing can be written.
        """
        path = self.output.with_name(f".{self.output.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b") as stream:
                lock(stream, self.output, alone)
                self.folder.mkdir(exist_ok=True)
                yield
                if alone:
                    path.unlink(missing_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise DataError(f"{self.output}: cannot be written ({why}); give it a place with room") from error
