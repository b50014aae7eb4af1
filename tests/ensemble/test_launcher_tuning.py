"""What the launcher and the agent of a local site send to the server, and how often they pause."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("balsam")

from balsam.schemas import MAX_ITEMS_PER_BULK_OP

from ensemble import launcher_tuning

BEGIN = datetime(2026, 1, 1)


class Server:
    """Takes bulk updates as Balsam's does: the fields of a request are those of its first update."""

    def __init__(self) -> None:
        self.requests: list[list[dict[str, Any]]] = []
        self.jobs: dict[int, list[tuple[str, Any]]] = {}

    def bulk_patch(self, url: str, updates: list[dict[str, Any]]) -> None:
        self.requests.append(updates)
        fields = set(updates[0])
        numbers = [update["id"] for update in updates]
        assert len(numbers) == len(set(numbers))
        for update in updates:
            assert fields <= set(update), "500: a value is required"
            kept = {name: update[name] for name in fields}
            self.jobs.setdefault(update["id"], []).append((kept["state"], kept.get("data")))


def update(number: int, state: str, second: float, **fields: Any) -> dict[str, Any]:
    return {"id": number, "state": state, "state_timestamp": BEGIN + timedelta(seconds=second), **fields}


def send(updates: list[dict[str, Any]]) -> Server:
    server = Server()
    launcher_tuning._perform_updates(SimpleNamespace(client=server), updates)
    return server


def test_updates_with_and_without_data_do_not_spoil_each_other() -> None:
    """Balsam's own puts them in one request, which forgets a record or fails for good."""
    mixed = [
        update(1, "PREPROCESSED", 0),
        update(2, "POSTPROCESSED", 1, data={"record": 7}),
        update(3, "PREPROCESSED", 2),
        update(4, "POSTPROCESSED", 3, data={"record": 8}),
    ]
    server = send(mixed)
    assert server.jobs == {
        1: [("PREPROCESSED", None)],
        2: [("POSTPROCESSED", {"record": 7})],
        3: [("PREPROCESSED", None)],
        4: [("POSTPROCESSED", {"record": 8})],
    }
    assert len(server.requests) == 2


def test_updates_of_one_job_go_out_in_the_order_of_their_time() -> None:
    server = send([update(1, "RUN_DONE", 5), update(1, "RUNNING", 1), update(2, "RUNNING", 2)])
    assert [state for state, _ in server.jobs[1]] == ["RUNNING", "RUN_DONE"]
    assert [len(request) for request in server.requests] == [2, 1]


def test_no_request_is_larger_than_the_server_takes() -> None:
    limit = MAX_ITEMS_PER_BULK_OP
    server = send([update(number, "RUNNING", 0) for number in range(limit + 3)])
    assert [len(request) for request in server.requests] == [limit, 3]


def test_a_launcher_whose_turns_take_long_works_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    launcher_tuning._pace.jobs_came()
    turns = launcher_tuning._countdown(1, 0)
    next(turns)
    assert now[0] == pytest.approx(launcher_tuning.LAUNCHER_POLL_S)
    now[0] += 0.2  # a turn
    begin = now[0]
    next(turns)
    assert now[0] - begin == pytest.approx(0.2)
    now[0] += 10
    begin = now[0]
    next(turns)
    assert now[0] - begin == pytest.approx(launcher_tuning.QUIET_POLL_S)
    now[0] = 61
    assert next(turns, None) == pytest.approx(0.0, abs=0.01) or now[0] > 60
    now[0] += 1
    assert next(turns, None) is None


class Ending:
    """What a launcher has around it, at the end of its time with one job that runs: says in which order it is used."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.over = False
        self.launcher: Any = object.__new__(launcher_tuning.PromptLauncher)
        running = SimpleNamespace(poll=lambda: None, terminate=lambda: None, wait=lambda timeout: 0)
        parts: dict[str, Any] = {
            "timer": iter(()),
            "idle_time": None,
            "max_concurrent_runs": 10,
            "job_stash": [],
            "active_runs": {3: running},
            "sig_handler": SimpleNamespace(set=self._end, is_set=lambda: self.over),
            "node_manager": SimpleNamespace(
                count_empty_nodes=lambda: 0,
                aggregate_free_nodes=lambda: 0.0,
                allow_node_packing=True,
                free=lambda number: None,
            ),
            "status_updater": SimpleNamespace(
                put=lambda number, state, **more: self.said.append(f"job {number} {state.value}"),
                terminate=lambda: self.said.append("updates sent"),
                join=lambda: None,
            ),
            "job_source": SimpleNamespace(terminate=lambda: self.said.append("lease given back"), join=lambda: None),
        }
        for name, part in parts.items():
            setattr(self.launcher, name, part)

    def _end(self) -> None:
        self.over = True


def test_a_launcher_at_its_end_times_its_jobs_out_before_it_gives_their_lease_back() -> None:
    """The server would end them itself, as those of a launcher that was lost."""
    ending = Ending()
    ending.launcher.run()
    assert ending.said[:3] == ["job 3 RUN_TIMEOUT", "updates sent", "lease given back"]
