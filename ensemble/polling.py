"""Asking Balsam which jobs of a campaign have ended, again and again, for little.

A job's `last_update` is the start of the transaction that changed it, and the change is seen when that commits.  So
each query looks back behind the newest time stamp that was seen, by more than a transaction usually takes; and every
now and then by more than any takes.  Whoever asks sorts out what came before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from ensemble.job_requests import Row, fetch_jobs

FINISHED, FAILED = "JOB_FINISHED", "FAILED"
ENDED = (FINISHED, FAILED)
NOT_STARTED = ("CREATED", "AWAITING_PARENTS", "READY", "STAGED_IN", "PREPROCESSED", "RESTART_READY")

SHORT_OVERLAP, LONG_OVERLAP = timedelta(seconds=2), timedelta(seconds=20)
# With 70 jobs a second the long look brings 1,400 jobs, all known but for a straggler.
LONG_EVERY_S = 10.0
# Of the time of whoever asks, and of the server's, as much may go into asking.
SHARE = 0.2

Fetch = Callable[[dict[str, Any]], Sequence[Row]]


class EndedJobs:
    """The jobs with all of some tags (`name:value`) that have ended.  For one thread."""

    def __init__(
        self, tags: Sequence[str], fetch: Fetch = fetch_jobs, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tags, self._fetch, self._clock = list(tags), fetch, clock
        self._newest: datetime | None = None
        self._newest_asked: datetime | None = None
        self._last_long = clock()
        self._took_s = 0.0

    def ask(self) -> Sequence[Row]:
        """The first time all jobs, in whatever state; later those that ended since, and some again.

        What is not followed by `taken` is told again.
        """
        begin = self._clock()
        query: dict[str, Any] = {"tags": self._tags}
        is_long = begin - self._last_long >= LONG_EVERY_S
        if self._newest is not None:
            since = self._newest - (LONG_OVERLAP if is_long else SHORT_OVERLAP)
            query |= {"last_update_after": since.isoformat(), "state": list(ENDED)}
        rows = self._fetch(query)
        # The server's clock, not ours: the two may be on different machines.
        times = [datetime.fromisoformat(row["last_update"]) for row in rows]
        self._newest_asked = max([*times, self._newest] if self._newest else times, default=None)
        if is_long:
            self._last_long = begin
        self._took_s = self._clock() - begin
        return rows

    def taken(self) -> None:
        """What the last `ask` told has been taken note of."""
        self._newest = self._newest_asked

    def pause_s(self, shortest_s: float) -> float:
        """How long to wait before asking again, so that asking takes no more than its share of the time."""
        return max(shortest_s, self._took_s * (1 / SHARE - 1))
