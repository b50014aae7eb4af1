"""Whether the user's files have changed: by size and time, without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fingerprint(value: Any) -> list[Any]:
    """Size and time of every file or folder that a text in `value` (plain JSON) names from the root.

    `FILE.h5:DATASET` is the file.  Of a folder, as an OME-Zarr volume is one, the time of its `zarr.json` counts.
    """
    return [[text, *_state(text)] for text in sorted(set(_paths(value)))]


def file_state(path: Path) -> tuple[int, int] | None:
    """(bytes, modification time in nanoseconds); None where there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _state(text: str) -> list[int]:
    path = Path(text)
    if not path.exists() and ":" in text:
        path = Path(text.rpartition(":")[0])
    if path.is_dir():
        inner = path / "zarr.json"
        return list(file_state(inner if inner.exists() else path) or ())[1:]
    return list(file_state(path) or ())


def _paths(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value.startswith("/") else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [path for item in items for path in _paths(item)]
