"""What simulated nodes were busy with, by the launcher's own clock.

The launcher of a simulated site appends a line to a file for every job that it starts: when it will end is known then.
A job that is ended before that gets a second line, which replaces the first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Span:
    """A job held `nodes` nodes from `start` to `end` (UTC epoch seconds); `hung` where its time limit ended it."""

    job: str
    nodes: int
    start: float
    end: float
    hung: bool = False

    def within(self, begin: float, end: float) -> float:
        """Node-seconds of it between two moments."""
        return self.nodes * max(0.0, min(self.end, end) - max(self.start, begin))


class ClockFile:
    """The file of one site.  Launchers append, anyone reads: `spans` holds what `read` has found so far."""

    def __init__(self, path: Path) -> None:
        self._path, self._read_bytes = path, 0
        self._spans: dict[tuple[str, float], Span] = {}

    @classmethod
    def of_site(cls, site_path: Path) -> ClockFile:
        return cls(site_path / "log" / "clocks.jsonl")

    @property
    def spans(self) -> list[Span]:
        """By start."""
        return sorted(self._spans.values(), key=lambda span: span.start)

    def append(self, span: Span) -> None:
        line = json.dumps([span.job, span.nodes, span.start, span.end, span.hung]) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def read(self) -> None:
        """Read what was appended since."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._read_bytes)
            data = stream.read()
        whole = data.rfind(b"\n") + 1  # a last line may be written just now
        self._read_bytes += whole
        for line in data[:whole].splitlines():
            span = Span(*json.loads(line))
            self._spans[span.job, span.start] = span


def all_busy_since(spans: Iterable[Span], nodes: int) -> float | None:
    """When so many nodes had been given their first work; None where they have not."""
    given = 0
    for span in spans:
        given += span.nodes
        if given >= nodes:
            return span.start
    return None


def utilisation(spans: Iterable[Span], nodes: int, begin: float, end: float) -> float:
    """Busy node-seconds / (nodes x window); 0 for an empty window."""
    if end <= begin:
        return 0.0
    return sum(span.within(begin, end) for span in spans) / (nodes * (end - begin))
