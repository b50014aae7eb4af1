"""The pieces of a deployment on disk: which are finished, and what they say where no job's record does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from apps.core.errors import DataError
from apps.core.subvolumes import piece_path
from apps.inference.outputs import summary_path

_SUMS = ("objects", "steps", "seed_seconds", "model_seconds", "other_seconds")


class Pieces(Protocol):
    """What the driver asks about subvolumes."""

    def there(self, number: int) -> bool:
        """Whether the subvolume is segmented."""

    def record(self, numbers: Sequence[int]) -> dict[str, Any]:
        """What an inference job of these subvolumes, which are all there, would have told, had it ended well.

        Raises DataError where what a piece says is damaged.
        """


class PiecesOnDisk:
    """The pieces in a folder, as the stage `inference` leaves them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def there(self, number: int) -> bool:
        piece = piece_path(self._folder, number)
        return summary_path(piece).is_file() and piece.is_dir()

    def record(self, numbers: Sequence[int]) -> dict[str, Any]:
        files = [summary_path(piece_path(self._folder, number)) for number in numbers]
        parts = list(map(_result, files))
        masked = {
            box: {name: sum(part[box][name] for part in parts) for name in ("voxels", "excluded")}
            for box in ("masked_read", "masked_write")
        }
        sums = {name: sum(part[name] for part in parts) for name in _SUMS}
        without_look = sum(part["steps"] == 0 for part in parts)
        # Nobody has noted when the job began, which failed; what the pieces themselves took stands in their seconds.
        end = max(file.stat().st_mtime for file in files)
        return {
            "result": {"count": len(parts), "without_look": without_look, **sums, **masked},
            "cost": {"start": end, "end": end},
        }


def _result(summary: Path) -> dict[str, Any]:
    """What a piece's summary says.  Raises DataError where it is damaged."""
    try:
        result: dict[str, Any] = json.loads(summary.read_text())["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{summary}: is damaged ({error}); remove it, and give the same command: its piece is made again"
        ) from error
    return result
