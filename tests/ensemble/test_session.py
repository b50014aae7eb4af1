"""What a session keeps running, with a service and a site that are simulated; test_jobs_running.py has real ones."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ensemble import service, session
from ensemble.campaigns import CampaignPlan, create_campaign
from ensemble.sites import Site


class Machine:
    """A service in some phase, and a site with launchers of so many nodes; `asked`: what was done to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nodes: int = 8) -> None:
        self.phase, self.launchers, self.asked = service.Phase.RUNNING, list[int](), list[str]()
        self.site = cast(Site, SimpleNamespace(name="here", nodes=nodes))
        monkeypatch.setattr("ensemble.session.service.status", lambda home: SimpleNamespace(phase=self.phase))
        monkeypatch.setattr("ensemble.session.service.start", self._start)
        monkeypatch.setattr("ensemble.session.sites.start_agent", lambda site: None)
        monkeypatch.setattr("ensemble.session.sites.has_launcher", lambda site: bool(self.launchers))
        monkeypatch.setattr("ensemble.session.sites.launcher_nodes", lambda site: sum(self.launchers))
        monkeypatch.setattr("ensemble.session.sites.submit_batch_job", self._launch)
        monkeypatch.setattr(session, "LAUNCHER_CHECK_S", 0.02)

    def _start(self, home: Path) -> None:
        self.asked.append("service")
        self.phase = service.Phase.RUNNING

    def _launch(self, site: Site, nodes: int, wall_time_min: int) -> None:
        self.asked.append(f"launcher {nodes}")
        self.launchers.append(nodes)

    def wait_for(self, *asked: str) -> None:
        deadline = time.monotonic() + 10
        while self.asked != list(asked) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.asked == list(asked)


def test_a_crashed_service_and_an_ended_launcher_are_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    with session._kept_running(Path("/home"), machine.site, 2, 30, lambda: 0):
        machine.wait_for("launcher 2")
        machine.phase = service.Phase.CRASHED
        machine.wait_for("launcher 2", "service")
        machine.launchers.clear()
        machine.wait_for("launcher 2", "service", "launcher 2")
        machine.phase = service.Phase.STOPPED
        time.sleep(0.1)
        assert len(machine.asked) == 3, "a service that the user stopped stays stopped"


@pytest.mark.parametrize(
    ("there", "others", "missing"),
    [([], 0, 3), ([1], 0, 0), ([3], 2, 2), ([3, 2], 2, 0), ([3], 5, 3), ([3, 3], 9, 2), ([8], 9, 0)],
)
def test_drivers_that_share_a_site_get_nodes_for_all(
    there: list[int], others: int, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)
    machine.launchers = there
    assert session._missing_nodes(machine.site, 3, others) == missing


class Place:
    """A home where nothing runs, with what is told while a session is open in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, running: bool) -> None:
        self.told, self.running = list[str](), running
        phase = service.Phase.RUNNING if running else service.Phase.ABSENT
        site = SimpleNamespace(name="here", nodes=2, id=1, path=Path("/site"))
        names: dict[str, dict[str, Any]] = {
            "ensemble.session.service": {
                "status": lambda home: SimpleNamespace(phase=phase),
                "start": lambda home: self.told.append("  service"),
                "connect": lambda home: None,
                "stop": lambda home: self.told.append("  service stops"),
            },
            "ensemble.session.sites": {
                "create_site": lambda home, name, nodes: site,
                "open_site": lambda home, name: site,
                "agent_running": lambda site: running,
                "start_agent": lambda site: self.told.append("  agent"),
                "has_launcher": lambda site: running,
                "submit_batch_job": lambda *asked: self.told.append("  launcher"),
                "register_stages": lambda site: {},
            },
            "ensemble.session": {"end_all": lambda path: self.told.append("  agent and launcher end")},
        }
        for module, functions in names.items():
            for name, function in functions.items():
                monkeypatch.setattr(f"{module}.{name}", function)
        monkeypatch.setattr("ensemble.session.CampaignJobs", lambda *given: contextlib.nullcontext())

    @contextlib.contextmanager
    def tell(self, what: str) -> Iterator[None]:
        self.told.append(what)
        yield
        self.told.append("done")

    def open(self, home: Path) -> None:
        campaign = create_campaign(home, CampaignPlan(name="demo"))
        with session.open_session(home, campaign, "here", 2, 30, create_with_nodes=2, tell=self.tell):
            self.told.append("work")


def test_what_a_session_starts_and_stops_is_told_as_it_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(monkeypatch, running=False)
    place.open(tmp_path)
    told = [line for line in place.told if line != "done"]
    assert told == [
        "making a database, and starting PostgreSQL and the Balsam server",
        "  service",
        "starting the agent of site here",
        "  agent",
        "registering the stages at site here",
        "asking for a launcher of 2 nodes",
        "  agent",  # to which it does nothing where it runs
        "  launcher",
        "work",
        "stopping launcher here, agent here, service",
        "  agent and launcher end",
        "  agent and launcher end",
    ]


def test_of_what_runs_already_nothing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(monkeypatch, running=True)
    place.open(tmp_path)
    assert [line for line in place.told if not line.startswith(" ")] == [
        "registering the stages at site here",
        "done",
        "work",
    ]


def test_what_was_started_is_stopped_also_where_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = Place(monkeypatch, running=False)

    def tell(what: str) -> contextlib.AbstractContextManager[None]:
        if what.startswith("stopping"):
            raise SystemExit(1)  # as rich does where what it writes to has gone
        return contextlib.nullcontext()

    monkeypatch.setattr(place, "tell", tell)
    with pytest.raises(SystemExit):
        place.open(tmp_path)
    assert place.told.count("  agent and launcher end") == 2, "launcher and agent"
    assert not (tmp_path / session.STARTED_FILE).exists()
