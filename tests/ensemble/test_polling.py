"""Asking for ended jobs: what is asked, how far back it looks, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ensemble.job_requests import Row
from ensemble.polling import LONG_EVERY_S, LONG_OVERLAP, SHORT_OVERLAP, EndedJobs

START = datetime(2026, 1, 1, tzinfo=UTC)


class Server:
    """Remembers the queries; each takes `took_s` of the clock and brings jobs of these times (seconds after START)."""

    def __init__(self) -> None:
        self.queries: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.now = 100.0
        self.took_s = 0.01

    def fetch(self, query: dict[str, Any]) -> Sequence[Row]:
        self.queries.append(query)
        self.now += self.took_s
        return [{"last_update": (START + timedelta(seconds=t)).isoformat()} for t in self.times]

    def clock(self) -> float:
        return self.now

    def since(self) -> datetime:
        return datetime.fromisoformat(self.queries[-1]["last_update_after"])


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def asked(server: Server) -> EndedJobs:
    return EndedJobs(["campaign:demo"], server.fetch, server.clock)


def ask(asked: EndedJobs) -> int:
    rows = asked.ask()
    asked.taken()
    return len(rows)


def test_first_everything_then_what_ended_since(server: Server, asked: EndedJobs) -> None:
    assert ask(asked) == 0
    assert server.queries == [{"tags": ["campaign:demo"]}]
    server.times = [5.0, 9.0, 7.0]
    assert ask(asked) == 3
    assert server.queries[-1] == {"tags": ["campaign:demo"]}  # nothing was known yet
    server.times = []
    ask(asked)
    assert server.since() == START + timedelta(seconds=9) - SHORT_OVERLAP
    assert server.queries[-1]["state"] == ["JOB_FINISHED", "FAILED"]
    server.times = [4.0]  # a straggler does not move the time back
    ask(asked)
    ask(asked)
    assert server.since() == START + timedelta(seconds=9) - SHORT_OVERLAP


def test_every_now_and_then_it_looks_back_further(server: Server, asked: EndedJobs) -> None:
    server.times = [9.0]
    overlaps = []
    for _ in range(100):
        ask(asked)
        server.now += 0.24
        if len(server.queries) > 1:
            overlaps.append(START + timedelta(seconds=9) - server.since())
    assert set(overlaps) == {SHORT_OVERLAP, LONG_OVERLAP}
    assert overlaps.count(LONG_OVERLAP) == 2  # 25 seconds
    assert LONG_EVERY_S == 10


def test_what_was_not_taken_is_told_again(server: Server, asked: EndedJobs) -> None:
    server.times = [9.0]
    ask(asked)
    server.times = [60.0]
    asked.ask()
    asked.ask()
    assert server.since() == START + timedelta(seconds=9) - SHORT_OVERLAP


def test_asking_takes_a_fifth_of_the_time_at_most(server: Server, asked: EndedJobs) -> None:
    ask(asked)
    assert asked.pause_s(0.25) == 0.25
    server.took_s = 0.5
    ask(asked)
    assert asked.pause_s(0.25) == pytest.approx(2.0)
